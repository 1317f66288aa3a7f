from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmq.checkpoint.dtypes import NUMPY_DTYPES
from llmq.errors import InputError, UnsupportedError
from llmq.formats import FORMATS
from llmq.formats.bitstream import pack_columns, unpack_columns
from llmq.formats.compressed_tensors import decode, encode, entries
from llmq.spec import FLOAT_DTYPES, QuantizedTensor, QuantSpec


def make(bits, rows, groups, group_size, symmetric=True, dtype="bfloat16", seed=0) -> QuantizedTensor:
    rng = np.random.default_rng(seed)
    columns = groups * group_size
    codes = rng.integers(0, 1 << bits, (rows, columns), np.uint8)
    packed = np.ascontiguousarray(pack_columns(np.ascontiguousarray(codes.T), bits).T).view(np.uint8)
    scale = rng.standard_normal((rows, groups)).astype(FLOAT_DTYPES[dtype])
    zero_point = None if symmetric else rng.integers(0, 1 << bits, (rows, groups), np.uint8)
    spec = QuantSpec(bits=bits, group_size=group_size, symmetric=symmetric, scale_dtype=dtype)
    return QuantizedTensor(spec, (rows, columns), packed, scale, zero_point)


def values(q: QuantizedTensor) -> np.ndarray:
    """The formula, from its words."""
    rows, columns = q.shape
    words = np.ascontiguousarray(np.ascontiguousarray(q.packed).view("<i4").T)
    codes = unpack_columns(words, q.spec.bits, columns).T.astype(np.float32)
    middle = 0.5 if q.spec.bits == 1 else 1 << (q.spec.bits - 1)
    zero = np.full((rows, 1), middle) if q.zero_point is None else q.zero_point.repeat(q.spec.group_size, 1)
    return q.scale.astype(np.float32).repeat(q.spec.group_size, 1) * (codes - zero)


cases = st.tuples(
    st.integers(1, 8), st.integers(1, 70), st.integers(1, 4), st.integers(1, 40), st.booleans(),
    st.sampled_from(sorted(FLOAT_DTYPES)), st.integers(0, 99),
)  # fmt: skip


@settings(deadline=None)
@given(cases, st.sampled_from([32, 64, 1000]))
def test_what_is_planned_is_encoded_and_decoded(case, block):
    q = make(*case)
    parts = []
    for start in range(0, q.shape[0], block):
        rows = slice(start, start + block)
        zero_point = None if q.zero_point is None else q.zero_point[rows]
        count = q.packed[rows].shape[0]
        parts.append(
            encode(
                replace(q, shape=(count, q.shape[1]), packed=q.packed[rows], scale=q.scale[rows], zero_point=zero_point)
            )
        )
    arrays = {suffix: np.concatenate([part[suffix] for part in parts]) for suffix in parts[0]}
    arrays["weight_shape"] = np.array(q.shape)
    planned = {tensor.name.removeprefix("m."): tensor for tensor in entries("m", q.spec, q.shape)}
    assert list(planned) == [
        name for name in ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape") if name in arrays
    ]
    for suffix, tensor in planned.items():
        assert arrays[suffix].shape == tensor.shape
        assert arrays[suffix].dtype == NUMPY_DTYPES[tensor.dtype]
    scheme = QuantSpec(bits=2 if q.spec.bits == 1 and q.spec.symmetric else q.spec.bits, symmetric=q.spec.symmetric)
    back = decode(arrays, replace(scheme, group_size=q.spec.group_size), "m")
    np.testing.assert_array_equal(values(back), values(q))
    if scheme.bits == q.spec.bits:
        assert back.spec == replace(scheme, group_size=q.spec.group_size, scale_dtype=q.spec.scale_dtype)
        np.testing.assert_array_equal(back.packed, q.packed)
        assert np.shares_memory(back.packed, arrays["weight_packed"])
        assert np.shares_memory(back.scale, arrays["weight_scale"])
    back.matrix  # noqa: B018  (checks itself)


def test_golden_bytes():
    """The example of the format's description: q = [-8, -7, 0, 1, 2, 3, 4, 7]."""
    codes = np.array([[0, 1, 8, 9, 10, 11, 12, 15]], np.uint8)
    packed = np.ascontiguousarray(pack_columns(codes.T, 4).T).view(np.uint8)
    spec = QuantSpec(bits=4, group_size=8, scale_dtype="float16")
    arrays = encode(QuantizedTensor(spec, (1, 8), packed, np.ones((1, 1), np.float16)))
    assert arrays["weight_packed"].view(np.uint32).tolist() == [[0xFCBA9810]]


def test_one_bit_is_stored_in_two():
    q = make(1, 2, 2, 24)
    arrays = encode(q)
    assert arrays["weight_packed"].shape == (2, 3)
    np.testing.assert_array_equal(arrays["weight_scale"].astype(np.float32), q.scale.astype(np.float32) / 2)


def arrays_of(q):
    return encode(q) | {"weight_shape": np.array(q.shape)}


def test_whole_rows():
    q = make(4, 5, 1, 48)
    back = decode(arrays_of(q), QuantSpec(bits=4, group_size=-1), "m")
    assert back.spec.group_size == 48
    np.testing.assert_array_equal(values(back), values(q))


def test_files_of_others():
    q = make(4, 5, 2, 16, symmetric=False)
    arrays = arrays_of(q)
    old = arrays | {"weight_zero_point": (q.zero_point.astype(np.int16) - 8).astype(np.int8)}
    scheme = QuantSpec(bits=4, group_size=16, symmetric=False)
    for given_arrays in (
        old,
        arrays | {"weight_g_idx": np.arange(32) // 16},
        arrays | {"weight_g_idx": np.full(32, -1)},
    ):
        np.testing.assert_array_equal(decode(given_arrays, scheme, "m").zero_point, q.zero_point)
    symmetric = make(4, 5, 2, 16)
    back = decode(
        arrays_of(symmetric) | {"weight_zero_point": np.zeros((5, 2), np.int8)}, QuantSpec(bits=4, group_size=16), "m"
    )
    assert back.zero_point is None


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"weight_packed": None}, "weight_packed is missing"),
        ({"weight_scale": None}, "weight_scale is missing"),
        ({"weight_zero_point": None}, "weight_zero_point is missing"),
        ({"weight_shape": None}, "weight_shape is missing"),
        ({"weight_shape": np.array([5, 33])}, "weight_packed: shape does not fit"),
        ({"weight_shape": np.array([5, 0])}, "two positive integers"),
        ({"weight_shape": np.array([5.0, 32.0])}, "two positive integers"),
        ({"weight_shape": np.array([5, 32, 1])}, "two positive integers"),
        ({"weight_packed": np.zeros((5, 4), np.int64)}, "wrong dtype"),
        ({"weight_packed": np.zeros((4, 4), np.int32)}, r"expected \[5, 4\], found \[4, 4\]"),
        ({"weight_packed": np.zeros((5, 8), np.int32)}, r"expected \[5, 4\], found \[5, 8\]"),
        ({"weight_scale": np.zeros((5, 2), np.float64)}, "wrong dtype"),
        ({"weight_scale": np.zeros((5, 1), np.float16)}, "weight_scale: shape does not fit"),
        ({"weight_zero_point": np.zeros((5, 2), np.int32)}, "weight_zero_point: shape does not fit"),
        ({"weight_zero_point": np.zeros((5, 2), np.int16)}, "wrong dtype"),
        ({"weight_zero_point": np.full((5, 2), 8, np.int8)}, "zero points out of range"),
    ],
)
def test_what_does_not_fit_is_refused(change, what):
    arrays = arrays_of(make(4, 5, 2, 16, symmetric=False)) | change
    arrays = {suffix: array for suffix, array in arrays.items() if array is not None}
    with pytest.raises(InputError, match=what):
        decode(arrays, QuantSpec(bits=4, group_size=16, symmetric=False), "m")


def test_zero_points_in_a_symmetric_scheme():
    arrays = arrays_of(make(4, 5, 2, 16)) | {"weight_zero_point": np.ones((5, 2), np.int8)}
    with pytest.raises(InputError, match="zero points in a symmetric scheme"):
        decode(arrays, QuantSpec(bits=4, group_size=16), "m")


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_padded_packing_is_refused_by_name(bits):
    arrays = arrays_of(make(bits, 5, 2, 32)) | {"weight_packed": np.zeros((5, -(-64 // (32 // bits))), np.int32)}
    with pytest.raises(UnsupportedError, match=f"{bits}-bit codes in the padded packing"):
        decode(arrays, QuantSpec(bits=bits, group_size=32), "m")


def test_unsupported_tensors():
    arrays = arrays_of(make(4, 5, 2, 16))
    with pytest.raises(UnsupportedError, match="groups of 24 do not divide rows of 32"):
        decode(arrays, QuantSpec(bits=4, group_size=24), "m")
    with pytest.raises(UnsupportedError, match="columns in activation order"):
        decode(arrays | {"weight_g_idx": np.arange(32) % 2}, QuantSpec(bits=4, group_size=16), "m")


def test_registered():
    assert FORMATS["compressed-tensors"].decode is decode
