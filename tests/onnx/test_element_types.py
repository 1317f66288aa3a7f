"""Types by number, and codes in as few bits as ONNX stores them."""

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from llmq.onnx.element_types import code_type, element_bits, packed_codes, type_name


def test_names_and_widths_of_types():
    assert [type_name(t) for t in (1, 10, 11, 16, 22, 25)] == [
        "float32", "float16", "float64", "bfloat16", "int4", "uint2",
    ]  # fmt: skip
    assert [element_bits(t) for t in (1, 10, 22, 26, TensorProto.STRING, 99)] == [32, 16, 4, 2, None, None]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("shape", [(3, 7), (5,), (2, 2, 3), ()])
def test_codes_are_packed_as_onnx_packs_them(bits, signed, shape):
    low = -(1 << (bits - 1)) if signed else 0
    codes = np.random.default_rng(0).integers(low, low + (1 << bits), shape).astype(np.int8 if signed else np.uint8)
    dtype = np.dtype(getattr(ml_dtypes, f"{'int' if signed else 'uint'}{bits}", codes.dtype))
    assert code_type(bits, signed=signed) == helper.np_dtype_to_tensor_dtype(dtype)
    made = helper.make_tensor("t", code_type(bits, signed=signed), shape, codes.astype(dtype).ravel())
    packed = packed_codes(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.tobytes() == (made.raw_data or bytes(value & 255 for value in made.int32_data))
