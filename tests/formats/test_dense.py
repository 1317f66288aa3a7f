import ml_dtypes
import numpy as np
import pytest

from llmq.formats.dense import to_float32


@pytest.mark.parametrize(
    ("dtype", "kind"), [("F16", np.float16), ("BF16", ml_dtypes.bfloat16), ("F32", np.float32), ("F64", np.float64)]
)
def test_stored_floats_become_float32(dtype, kind):
    values = np.array([[1.5, -2.0, 0.0], [np.inf, 65504.0, 2.0**-10]]).astype(kind)
    found = to_float32(values.reshape(-1).view(np.uint8), dtype, np.empty((2, 3), np.float32))
    np.testing.assert_array_equal(found, values.astype(np.float32))


def test_what_overflows_is_infinite():
    raw = np.array([1e300]).view(np.uint8)
    assert np.isinf(to_float32(raw, "F64", np.empty(1, np.float32)))
