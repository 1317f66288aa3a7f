"""The decoder printed in docs/format.md, run."""

import re
from pathlib import Path

import numpy as np
import pytest

from llmq.formats.bitstream import pack_columns
from llmq.formats.compressed_tensors import encode
from llmq.formats.schemes import stored_bits
from llmq.spec import FLOAT_DTYPES, QuantizedTensor, QuantSpec

PAGE = Path(__file__).parents[2] / "docs" / "format.md"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def printed():
    (block,) = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    names = {}
    exec(block, names)
    return names["dequantize"]


@pytest.mark.parametrize("shape", [(1, 1, 1), (37, 3, 11), (64, 2, 32), (33, 1, 100)])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(1, 9))
def test_the_printed_decoder(printed, bits, symmetric, dtype, shape):
    rows, groups, group_size = shape
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 1 << bits, (groups * group_size, rows), np.uint8)
    q = QuantizedTensor(
        QuantSpec(bits=bits, group_size=group_size, symmetric=symmetric, scale_dtype=dtype),
        (rows, groups * group_size),
        np.ascontiguousarray(pack_columns(codes, bits).T).view(np.uint8),
        rng.standard_normal((rows, groups)).astype(FLOAT_DTYPES[dtype]),
        None if symmetric else rng.integers(0, 1 << bits, (rows, groups), np.uint8),
    )
    arrays = encode(q)
    found = printed(
        arrays["weight_packed"], arrays["weight_scale"], q.shape, stored_bits(q.spec), arrays.get("weight_zero_point")
    )
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, q.dequantize())
