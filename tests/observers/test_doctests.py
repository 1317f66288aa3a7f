import doctest
import importlib
import pkgutil

import pytest

import llmq.observers

MODULES = [f"llmq.observers.{module.name}" for module in pkgutil.iter_modules(llmq.observers.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
