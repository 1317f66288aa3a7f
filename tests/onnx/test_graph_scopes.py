"""Which names are constant, and who reads them."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from llmq.onnx.graph_scopes import readers, scopes_of


def tensor(name, *shape):
    return numpy_helper.from_array(np.zeros(shape, np.float32), name)


def test_inner_names_hide_outer_ones_and_outer_ones_are_seen():
    out = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
    inner = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["r"])], "inner", [], [out], [tensor("w", 2, 3)])
    other = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["r"])], "other", [], [out])
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=other)
    scopes = list(scopes_of(helper.make_graph([node], "outer", [], [], [tensor("w", 4, 5)])))
    outer, branch, then = scopes  # attributes stand in the order of their names
    assert [list(s.constant("w").holder.tensor.dims) for s in (outer, then, branch)] == [[4, 5], [2, 3], [4, 5]]
    assert then.constant("x") is outer.constant("") is None
    read = readers(scopes)
    assert [len(read[s.holders[0]]) for s in (outer, then)] == [1, 1]
    assert branch.holders == []


def test_values_are_followed_through_what_does_not_change_them_and_no_further():
    nodes = [
        helper.make_node("Identity", ["w"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"]),
        helper.make_node("Transpose", ["b"], ["c"], perm=[1, 0]),
        helper.make_node("Transpose", ["b"], ["same"], perm=[0, 1]),
        helper.make_node("Cast", ["b"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["b"], ["whole"], to=TensorProto.INT32),
        helper.make_node("Relu", ["b"], ["d"]),
        helper.make_node("Transpose", ["cube"], ["e"], perm=[2, 1, 0]),
        helper.make_node("Identity", ["b"], ["mine"], domain="mine"),
    ]
    (scope,) = scopes_of(helper.make_graph(nodes, "g", [], [], [tensor("w", 4, 5), tensor("cube", 2, 3, 4)]))
    found = {name: scope.constant(name) for name in ("a", "b", "c", "same", "half", "whole", "d", "e", "mine")}
    assert [name for name, constant in found.items() if constant is None] == ["same", "whole", "d", "e", "mine"]
    assert [found[name].transposed for name in "abc"] == [False, True, False]
    assert (found["half"].data_type, found["half"].transposed) == (TensorProto.FLOAT16, True)
    read = readers([scope])
    assert [use.node.op_type for use in read[scope.constant("w").holder]] == ["Transpose", "Cast", "Relu", "Identity"]


def test_a_long_chain_is_no_deep_recursion():
    nodes = [helper.make_node("Identity", [f"v{i}"], [f"v{i + 1}"]) for i in range(20_000)]
    (scope,) = scopes_of(helper.make_graph(nodes, "g", [], [], [tensor("v0", 4, 5)]))
    assert scope.constant("v20000").holder.name == "v0"
