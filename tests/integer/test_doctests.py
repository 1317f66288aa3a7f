import doctest
import importlib
import pkgutil

import pytest

import llmq.integer

MODULES = [f"llmq.integer.{module.name}" for module in pkgutil.iter_modules(llmq.integer.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
