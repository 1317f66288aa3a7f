import doctest
import importlib
import pkgutil

import pytest

import llmq_kernels

MODULES = [info.name for info in pkgutil.iter_modules(llmq_kernels.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    assert doctest.testmod(importlib.import_module(f"llmq_kernels.{name}")).failed == 0
