"""Weights and geometries that tests of integer layers share."""

from __future__ import annotations

import numpy as np

from llmq_kernels.convolution import Convolution
from llmq_kernels.integer_weight import IntegerWeight

__all__ = ["GEOMETRIES", "drawn", "weight_of"]

GEOMETRIES = {
    "1x1": (Convolution((1, 1)), 24, 40),
    "1x1 stride": (Convolution((1, 1), stride=(2, 2)), 16, 20),
    "3x3": (Convolution((3, 3), padding=(1, 1)), 20, 33),
    "3x3 stride": (Convolution((3, 3), stride=(2, 2), padding=(1, 1)), 9, 17),
    "7x7 stride": (Convolution((7, 7), stride=(2, 2), padding=(3, 3)), 3, 18),
    "dilated": (Convolution((3, 2), padding=(2, 0), dilation=(2, 3)), 7, 5),
    "uneven": (Convolution((2, 5), stride=(3, 1), padding=(0, 4)), 6, 8),
    "one line": (Convolution((1, 5), padding=(0, 2)), 12, 16),
    "groups": (Convolution((3, 3), padding=(1, 1), groups=4), 12, 20),
    "depthwise": (Convolution((3, 3), padding=(1, 1), groups=24), 24, 24),
    "depthwise stride": (Convolution((3, 3), stride=(2, 2), padding=(1, 1), groups=10), 10, 10),
    "depthwise dilated": (Convolution((3, 3), padding=(2, 2), dilation=(2, 2), groups=6), 6, 6),
    "depthwise multiplied": (Convolution((5, 5), padding=(2, 2), groups=6), 6, 18),
}


def drawn(rng: np.random.Generator, rows: int, columns: int, bits: int, symmetric: bool = False) -> IntegerWeight:
    """Random codes, and zero points unless symmetric."""
    codes = rng.integers(0, 2**bits, (rows, columns), np.uint8)
    return IntegerWeight.of(codes, bits, None if symmetric else rng.integers(0, 2**bits, rows, np.uint8))


def weight_of(
    rng: np.random.Generator, geometry: Convolution, channels: int, filters: int, bits: int, symmetric: bool = False
) -> IntegerWeight:
    """Random filters that fit a geometry and a number of channels."""
    columns = channels // geometry.groups * geometry.kernel[0] * geometry.kernel[1]
    return drawn(rng, filters, columns, bits, symmetric)
