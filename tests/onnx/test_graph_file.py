"""Files that strangers wrote: whatever their bytes, one clear error and no more memory than they hold."""

import contextlib
import os

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

import llmq.onnx.graph_file
from llmq.errors import InputError, LlmqError, UnsupportedError
from llmq.onnx.graph_check import check_graph, every_tensor
from llmq.onnx.graph_file import LARGE, read_graph
from llmq.onnx.planned_model import read_model


@pytest.fixture(scope="module")
def sound(tmp_path_factory, write_onnx):
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    return write_onnx(
        tmp_path_factory.mktemp("sound") / "m.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Add", ["a", "b"], ["y"])],
        {"w": weight, "b": np.ones(64, np.float32)},
        {"x": (np.float32, [2, 64])},
        {"y": (np.float32, [2, 64])},
    )


def test_large_initializers_stay_in_the_file_and_the_rest_is_what_protobuf_reads(sound, exported):
    for path in (sound, exported["cnn-script"][0], exported["encoder-script"][0]):
        found, whole = read_graph(path), onnx.load(path, load_external_data=False)
        content = path.read_bytes()
        for tensor in whole.graph.initializer:
            if tensor.name in found.regions:
                offset, length = found.regions[tensor.name]
                assert content[offset : offset + length] == tensor.raw_data
                tensor.ClearField("raw_data")
        assert found.proto == whole
        assert all(len(tensor.raw_data) < LARGE for tensor in found.proto.graph.initializer)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut short"),
        (b"\x08", "cut short"),
        (b"\x3a\xff\xff\xff\xff\x0f" + b"x" * 20, "cut short"),
        (b"\xff" * 64, "cut short"),
        (b"\x0b\x0c" * 9, "cut short"),
        (b"\x3a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", "cut short"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"PK\x03\x04" + b"x" * 60, "a zip archive"),
        (b'{"a": 1}' + b" " * 60, "it is JSON"),
        (bytes(100), "starts with zeros"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "cut short"),
    ],
)
def test_other_files_are_refused_with_a_guess(tmp_path, content, message):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"m.onnx: not an ONNX model.*{message}"):
        read_graph(path)


def test_folders_fifos_and_missing_files_are_refused_without_waiting(tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    os.mkfifo(tmp_path / "fifo.onnx")
    for name, message in (("folder", "it is a folder"), ("fifo", "not a regular file"), ("none", "no such file")):
        with pytest.raises(InputError, match=message):
            read_graph(tmp_path / f"{name}.onnx")


def test_a_file_cut_anywhere_is_refused_or_whole(sound, tmp_path):
    content = sound.read_bytes()
    path = tmp_path / "m.onnx"
    for size in [*range(120), *range(120, len(content), 97)]:
        path.write_bytes(content[:size])
        with pytest.raises(InputError):
            read_model(path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 16_000), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes_never_cause_anything_but_our_errors(sound, tmp_path, changes):
    content = bytearray(sound.read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with contextlib.suppress(LlmqError):
        read_model(path)


def changed(sound, tmp_path, change):
    model = onnx.load(sound)
    change(model)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda m: setattr(m, "ir_version", 99), UnsupportedError, "unknown version of the ONNX format .*found 99"),
        (lambda m: setattr(m, "ir_version", 2), UnsupportedError, "IR version 3 to"),
        (lambda m: setattr(m.opset_import[0], "version", 99), UnsupportedError, "unknown set of operators"),
        (lambda m: setattr(m.opset_import[0], "version", 6), UnsupportedError, "opset 7 to"),
        (lambda m: m.training_info.add(), UnsupportedError, "a model for training"),
        (lambda m: m.graph.initializer.append(m.graph.initializer[0]), InputError, "one name"),
        (lambda m: m.graph.initializer.append(m.graph.initializer[1]), InputError, "two initializers of one name"),
        (lambda m: m.graph.node[0].input.__setitem__(0, "y"), InputError, "not a sound ONNX model: .*sorted"),
        (lambda m: m.graph.node[0].input.__setitem__(0, "nowhere"), InputError, "not a sound ONNX model"),
        (lambda m: setattr(m.graph.node[1], "op_type", "Frobnicate"), InputError, "not a sound ONNX model"),
        (lambda m: m.graph.node[1].output.__setitem__(0, "a"), InputError, "not a sound ONNX model"),
    ],
)  # fmt: skip
def test_models_that_are_malformed_or_unknown_are_refused(sound, tmp_path, change, kind, message):
    with pytest.raises(kind, match=message):
        read_model(changed(sound, tmp_path, change))


def test_every_tensor_is_found_wherever_it_stands():
    tensor = onnx.TensorProto(data_type=1, dims=[1])
    inner = helper.make_graph([], "g", [], [], [tensor])
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    values, indices = (onnx.TensorProto(data_type=t, dims=[1]) for t in (1, 7))
    sparse = onnx.SparseTensorProto(values=values, indices=indices, dims=[9])
    function = helper.make_function(
        "d", "f", [], ["y"], [helper.make_node("Constant", [], ["y"], value=tensor)], [helper.make_opsetid("", 18)]
    )
    graph = helper.make_graph(
        [node, helper.make_node("Constant", [], ["s"], sparse_value=sparse)], "g", [], [], [tensor]
    )
    model = helper.make_model(graph, functions=[function])
    assert len(list(every_tensor(model))) == 1 + 2 + 2 + 1


def test_a_sound_model_passes(sound):
    check_graph(read_graph(sound))


def test_a_structure_that_protobuf_cannot_hold_is_refused(sound, monkeypatch):
    monkeypatch.setattr(llmq.onnx.graph_file, "_MOST", 100)
    with pytest.raises(InputError, match="its structure alone is larger than protobuf can hold"):
        read_graph(sound)
