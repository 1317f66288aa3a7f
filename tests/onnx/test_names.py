import importlib
import pkgutil

import pytest

import llmq.onnx


def test_no_public_name_is_that_of_a_module():
    modules = {module.name for module in pkgutil.iter_modules(llmq.onnx.__path__)}
    assert len(modules) > 20
    assert modules.isdisjoint(llmq.onnx.__all__)


@pytest.mark.parametrize("name", llmq.onnx.__all__)
def test_public_names_are_found_where_they_are_said_to_be(name):
    value = getattr(llmq.onnx, name)
    assert value is getattr(importlib.import_module(value.__module__), name)
    assert name in dir(llmq.onnx)


def test_names_that_are_not_there():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = llmq.onnx.nothing
