import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from llmq.onnx.decoder_graph import Graph
from llmq.onnx.decoder_rows import RowProduct, block_rows, multiply_in_blocks
from llmq.onnx.external import OwnData
from llmq.system.progress import NullProgress


@pytest.mark.parametrize(("rows", "columns"), [(32000, 2048), (32003, 2048), (151936, 896), (1, 1 << 21), (7, 3)])
def test_blocks_hold_about_a_million_elements(rows, columns):
    step = block_rows(rows, columns)
    assert 1 <= step <= rows
    assert step == 1 or step * columns <= 1 << 20
    assert step == rows or 2 * step * columns > (1 << 20) - 2 * columns or rows % step == 0


@pytest.mark.parametrize("rows", [24, 29, 5])
def test_products_in_blocks(rows, monkeypatch, tmp_path):
    monkeypatch.setattr("llmq.onnx.decoder_rows._ELEMENTS", 48)
    rng = np.random.default_rng(0)
    weight, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, 6), (2, 3, 6)))
    graph, own = Graph(), OwnData("data")
    stored = own.add("weight", np.float32, weight.shape, lambda: (weight[:2], weight[2:]))

    def nodes(inner, result, count):
        assert count <= 8
        turned = helper.make_node("Transpose", list(inner), [f"{result}.turned"])
        return [turned, helper.make_node("MatMul", ["x", f"{result}.turned"], [result])]

    multiply_in_blocks(graph, RowProduct("y", weight.shape, (stored,), nodes))
    assert sum(node.op_type == "Scan" for node in graph.nodes) == (2 if rows == 29 else 1)
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        graph.nodes,
        "product",
        [value("x", TensorProto.FLOAT, ["b", "s", 6])],
        [value("y", TensorProto.FLOAT, ["b", "s", rows])],
        graph.initializers,
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), tmp_path / "m.onnx")
    own.write(tmp_path / "data", NullProgress())
    found = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"x": x})[0]
    np.testing.assert_allclose(found, x @ weight.T, atol=1e-5)
