import numpy as np
from onnx import numpy_helper

from llmq.onnx.decoder_graph import Graph


def test_equal_constants_are_one_and_all_others_are_not():
    graph = Graph()
    values = [5, [5], [[1, 2, 3, 4]], [[1, 2], [3, 4]], list(range(9)), [12], [1, 2]]
    names = [graph.constant(value) for value in values]
    names.append(graph.constant([5], np.float32))
    assert len(set(names)) == len(names)
    assert [graph.constant(value) for value in values] == names[:-1]
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializers}
    for name, value in zip(names, values, strict=False):
        np.testing.assert_array_equal(held[name], value)
