from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llmq.integer import Quantized


@pytest.fixture
def same() -> Callable[[Any, Any], None]:
    """Compare what a layer gives with its reference, to the last bit."""

    def compare(found: Any, expected: Any) -> None:
        assert type(found) is type(expected)
        if isinstance(found, Quantized):
            assert (found.bits, float(found.scale), int(found.zero_point)) == (
                expected.bits,
                float(expected.scale),
                int(expected.zero_point),
            )
            found, expected = found.codes, expected.codes
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)

    return compare
