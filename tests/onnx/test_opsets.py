from onnx import helper

from llmq.onnx.opsets import least_ir_version, opset_of


def test_versions_of_the_format():
    assert (least_ir_version(8), least_ir_version(21)) == (4, 10)


def test_versions_of_the_standard_operators():
    imports = [helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("ai.onnx", 17)]
    graph = helper.make_graph([], "g", [], [])
    assert opset_of(helper.make_model(graph, opset_imports=imports)) == 17
    assert opset_of(helper.make_model(graph, opset_imports=imports[:1])) == 1
