"""External data: inside the model's folder only, and exactly as long as the tensor says."""

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from llmq.errors import InputError
from llmq.onnx import quantize_model
from llmq.onnx.graph_file import read_graph
from llmq.onnx.initializers import TensorFiles, element_bits, type_name
from llmq.onnx.planned_model import stored_tensors


@pytest.fixture
def model(write_onnx, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    return write_onnx(
        folder / "m.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"w": weight},
        {"x": (np.float32, [2, 64])},
        {"y": (np.float32, [2, 64])},
        external="w.bin",
    )


def edit(path, **fields):
    """Give the one tensor other fields of external data; None removes one."""
    proto = onnx.load(path, load_external_data=False)
    tensor = proto.graph.initializer[0]
    known = {e.key: e.value for e in tensor.external_data} | fields
    del tensor.external_data[:]
    for key, value in known.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())


def refused(path, message, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        quantize_model(path, tmp_path / "out.onnx")
    assert "m.onnx" in str(error.value)
    assert not list(tmp_path.glob("out.onnx*"))
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "location",
    [
        "../secret.bin", "a/../../secret.bin", "./../secret.bin", "/etc/passwd", "//server/share", "..",
        "a\\..\\..\\secret.bin", "C:\\secret.bin", "C:secret.bin", "\\\\server\\share", "", ".", "./", "w.bin\0.txt",
        "x" * 5000,
    ],
)  # fmt: skip
def test_places_outside_the_folder_are_refused_by_name(model, tmp_path, location):
    (tmp_path / "secret.bin").write_bytes(bytes(64 * 64 * 4))
    edit(model, location=location)
    refused(model, "w: (its external data lies outside|external data is not described)", tmp_path)


@pytest.mark.parametrize("link", ["file", "parent", "hidden"])
def test_links_that_lead_out_are_refused(model, tmp_path, link):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.bin").write_bytes(bytes(64 * 64 * 4))
    place = {"file": "secret.bin", "parent": "inner/secret.bin", "hidden": "a/b/secret.bin"}[link]
    if link == "file":
        (model.parent / "secret.bin").symlink_to(outside / "secret.bin")
    elif link == "parent":
        (model.parent / "inner").symlink_to(outside)
    else:
        (model.parent / "a").mkdir()
        (model.parent / "a" / "b").symlink_to(outside)
    edit(model, location=place)
    refused(model, "w: its data: secret.bin: it leads out", tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"location": "none.bin"}, "none.bin: no such file"),
        ({"offset": "-1"}, "offset of its external data is no size"),
        ({"offset": "1e3"}, "offset of its external data is no size"),
        ({"offset": "9" * 30}, "offset of its external data is no size"),
        ({"offset": "4"}, "its data ends behind the end of w.bin .expected 16388, found 16384"),
        ({"offset": "9" * 18}, "its data ends behind the end"),
        ({"length": "16383"}, "another size than its shape .expected 16384, found 16383"),
        ({"length": "-5"}, "length of its external data is no size"),
        ({"location": None}, "not described as ONNX does"),
        ({"pickle": "yes"}, "not described as ONNX does"),
    ],
)
def test_sizes_and_fields_that_do_not_fit_are_refused(model, tmp_path, fields, message):
    edit(model, **fields)
    refused(model, message, tmp_path)


@pytest.mark.parametrize(
    ("dims", "data_type", "message"),
    [
        ([64, -64], 1, "not a sound|its shape is negative"),
        ([2**40, 2**40], 1, "another size than its shape|not a sound"),
        ([64, 64], 99, "unknown data type|not a sound"),
        ([64, 64], TensorProto.STRING, "text cannot be external data|not a sound"),
    ],
)
def test_shapes_and_types_are_not_believed(model, tmp_path, dims, data_type, message):
    proto = onnx.load(model, load_external_data=False)
    tensor = proto.graph.initializer[0]
    del tensor.dims[:]
    tensor.dims.extend(dims)
    tensor.data_type = data_type
    model.write_bytes(proto.SerializeToString())
    refused(model, message, tmp_path)


def test_special_files_are_refused_without_waiting(model, tmp_path):
    os.mkfifo(model.parent / "fifo")
    edit(model, location="fifo")
    refused(model, "w: its data: fifo: it is not a regular file", tmp_path)


def test_external_data_of_attributes_is_checked_too(model, tmp_path):
    proto = onnx.load(model, load_external_data=False)
    held = TensorProto(name="k", data_type=1, dims=[64, 64], data_location=TensorProto.EXTERNAL)
    held.external_data.add(key="location", value="../secret.bin")
    proto.graph.node.append(helper.make_node("Constant", [], ["k"], value=held))
    model.write_bytes(proto.SerializeToString())
    refused(model, "k: its external data lies outside", tmp_path)


def test_a_source_that_changes_meanwhile_is_noticed(model):
    file = read_graph(model)
    with TensorFiles(file) as files:
        stored_tensors(file, files)
        files.check_unchanged()
        os.utime(model.parent / "w.bin", ns=(1, 1))
        with pytest.raises(InputError, match="changed while it was read"):
            files.check_unchanged()


def test_a_file_that_became_shorter_is_no_crash(model):
    file = read_graph(model)
    with TensorFiles(file) as files:
        ((_, stored),) = stored_tensors(file, files)
        os.truncate(model.parent / "w.bin", 100)
        with pytest.raises(InputError, match="w: its file became shorter"):
            files.read(stored, 0, np.empty(200, np.uint8))


def test_data_in_a_folder_below_and_overlapping_data_are_fine(model, tmp_path, run):
    (model.parent / "data").mkdir()
    (model.parent / "w.bin").rename(model.parent / "data" / "w.bin")
    edit(model, location="data/./w.bin", checksum="whatever")
    quantize_model(model, tmp_path / "out.onnx")
    assert run(tmp_path / "out.onnx", x=np.ones((2, 64), np.float32))[0].shape == (2, 64)


def test_names_and_widths_of_types():
    assert [type_name(t) for t in (1, 10, 11, 16, 22, 25)] == [
        "float32", "float16", "float64", "bfloat16", "int4", "uint2",
    ]  # fmt: skip
    assert [element_bits(t) for t in (1, 10, 22, 26, TensorProto.STRING, 99)] == [32, 16, 4, 2, None, None]
