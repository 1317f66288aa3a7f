"""The names of `llmq.onnx`."""

import inspect
import pkgutil

import llmq.onnx


def test_no_function_has_the_name_of_a_module():
    # Importing the module would put it in the function's place.
    assert {module.name for module in pkgutil.iter_modules(llmq.onnx.__path__)}.isdisjoint(llmq.onnx.__all__)


def test_all_names_are_there():
    values = [getattr(llmq.onnx, name) for name in llmq.onnx.__all__]
    assert all(inspect.isclass(value) or inspect.isfunction(value) for value in values)
