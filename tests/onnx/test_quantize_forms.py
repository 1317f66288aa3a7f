"""Bytes of quantized weights in each form, against what the operators' definitions say."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

import llmq
from llmq.onnx.quantize_forms import Form, Kind, Layout
from llmq.spec import QuantSpec

FLOAT = TensorProto.FLOAT


def written(layout, weight):
    """Parts as arrays of bytes, from rows quantized in two strips."""
    parts = {part.suffix: np.zeros(part.nbytes, np.uint8) for part in layout.parts()}
    rows = np.zeros((layout.rows, layout.padded), np.float32)
    rows[:, : layout.columns] = weight
    spec = layout.resolved
    for start, stop in ((0, 8), (8, layout.rows)):
        quantized = llmq.quantize_tensor(
            rows[start:stop], spec.bits, spec.group_size, symmetric=spec.symmetric, scale_dtype=spec.scale_dtype
        )
        for write in layout.writes(start, quantized):
            for i, row in enumerate(write.data):
                place = write.offset + i * write.stride
                assert place + row.size <= parts[write.suffix].size
                parts[write.suffix][place : place + row.size] = row
    return parts


def fields(data, bits, count):
    """Little-endian fields of so many bits."""
    stream = np.unpackbits(data, bitorder="little")[: count * bits].reshape(count, bits)
    return (stream.astype(np.int64) << np.arange(bits)).sum(axis=1)


@given(
    bits=st.sampled_from([2, 4, 8]),
    symmetric=st.booleans(),
    rows=st.integers(9, 20),
    columns=st.integers(1, 90),
    group=st.sampled_from([16, 32, 64]),
)
def test_blocked_codes_of_a_convolution_are_one_stream_in_the_types_of_the_standard(
    bits, symmetric, rows, columns, group
):
    weight = np.random.default_rng(rows * columns).standard_normal((rows, columns)).astype(np.float32)
    spec = QuantSpec(bits=bits, group_size=group, symmetric=symmetric)
    layout = Layout(Form(Kind.DEQUANTIZE, False, FLOAT), spec, (rows, columns, 1))
    parts = written(layout, weight)
    n = layout.n_groups
    codes = fields(parts["codes"], bits, rows * columns).reshape(rows, columns)
    scale = np.repeat(parts["scale"].view(np.float32).reshape(rows, n), layout.group_size, axis=1)[:, :columns]
    if symmetric:
        signed = np.where(codes >= 1 << (bits - 1), codes - (1 << bits), codes)
        found = signed * scale
    else:
        points = fields(parts["zero_point"], bits, rows * n).reshape(rows, n)
        found = (codes - np.repeat(points, layout.group_size, axis=1)[:, :columns]) * scale
    padded = np.zeros((rows, layout.padded), np.float32)
    padded[:, :columns] = weight
    ours = llmq.quantize_tensor(padded, bits, layout.group_size, symmetric=symmetric).dequantize()[:, :columns]
    np.testing.assert_array_equal(found.astype(np.float32), ours)


@pytest.mark.parametrize(("bits", "zero", "dtype"), [(8, 128, np.uint8), (7, 0, np.int8)])
def test_integer_products_have_transposed_codes_that_never_saturate(bits, zero, dtype):
    weight = np.random.default_rng(0).standard_normal((20, 33)).astype(np.float32)
    layout = Layout(Form(Kind.MATMUL_INTEGER, False, FLOAT), QuantSpec(bits=bits, signed_scale=True), (20, 33))
    parts = written(layout, weight)
    codes = parts["codes"].view(dtype).reshape(33, 20).T.astype(np.float32) - zero
    ours = llmq.quantize_tensor(weight, bits, -1).dequantize()
    np.testing.assert_array_equal(codes * parts["scale"].view(np.float32)[:, None], ours)
    assert layout.parts()[0].data_type == (TensorProto.INT8 if bits == 7 else TensorProto.UINT8)
    if bits == 7:
        # Pairs of products with unsigned bytes are added up in 16 bits on processors without VNNI.
        assert 2 * 255 * int(np.abs(codes).max()) <= 32767


def test_filters_of_integer_convolutions_keep_their_shape():
    layout = Layout(Form(Kind.CONV_INTEGER, False, FLOAT), QuantSpec(bits=8), (12, 4, 3, 3))
    codes, scale = layout.parts()
    assert (codes.dims, codes.data_type, scale.dims) == ((12, 4, 3, 3), TensorProto.UINT8, (12, 1, 1))


@pytest.mark.parametrize(
    ("columns", "group", "expected"), [(9, 64, 16), (17, 64, 32), (100, 64, 64), (64, 64, 64), (9, 16, 16)]
)
def test_groups_are_no_longer_than_short_rows_need(columns, group, expected):
    layout = Layout(Form(Kind.MATMUL_NBITS, False, FLOAT), QuantSpec(bits=4, group_size=group), (10, columns))
    assert (layout.group_size, layout.padded % expected) == (expected, 0)
    assert layout.parts()[0].dims == (10, layout.n_groups, expected // 2)


def test_scales_have_the_type_of_the_activations():
    for data_type, dtype in ((TensorProto.FLOAT16, np.float16), (TensorProto.BFLOAT16, ml_dtypes.bfloat16)):
        layout = Layout(Form(Kind.GATHER, True, data_type), QuantSpec(bits=8, symmetric=False), (64, 40))
        codes, scale, points = layout.parts()
        assert (scale.data_type, scale.nbytes) == (data_type, 40 * np.dtype(dtype).itemsize)
        assert (codes.dims, points.dims) == ((40, 64), (40, 1))
