"""Packed weights of every form, and how far a product may be off: for the tests, and for the programs that they start.

Microkernels are compiled for a width, a group of activations, a number of tokens, and whether there are zero points.
`VARIANTS` names the ones that tests use: whatever else differs costs no compiling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llmq_kernels.activations import activation_group, activations_reference
from llmq_kernels.layout import SCALE_KINDS, PackedMatrix, midpoint, row_bytes
from llmq_kernels.matmul import matmul, matmul_reference
from llmq_kernels.pack import unpack_reference
from llmq_kernels.quantize import scales_reference


@dataclass(frozen=True)
class Variant:
    """What microkernels are compiled for: choices that cost a second each.

    Parameters
    ----------
    bits : int
    group : int
        Columns that share a scale of the activations.
    tokens : tuple of int
        Numbers of tokens to draw from.
    symmetric : tuple of bool
        What to draw from, for more tokens than `FEW`.
    """

    bits: int
    group: int
    tokens: tuple[int, ...]
    symmetric: tuple[bool, ...]

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Groups of a weight that lead to `group`."""
        if self.group == 256:
            return 256, 512, 768
        return tuple(self.group * n for n in (1, 3, 5, 7))

    def __str__(self) -> str:
        return f"{self.bits}bits-{self.group}"


FEW = 4
MANY = (5, 6, 7, 8, 9, 12, 13, 20)


def _variants() -> tuple[Variant, ...]:
    both = True, False
    some = []
    for bits in range(1, 9):
        few = (1, 2, 4) if bits % 2 == 0 else (1, 2)
        small = 16 if bits in (2, 5, 8) else 32
        some.append(Variant(bits, small, few + MANY, both if bits in (1, 4, 8) else (bits % 2 == 0,)))
        some.append(Variant(bits, 256, ((1,) if bits in (1, 3, 4, 8) else ()) + MANY, (bits % 2 == 1,)))
    return (*some, Variant(4, 64, (1, *MANY), (True,)), Variant(4, 128, (1, *MANY), (False,)))


VARIANTS = _variants()


def placed(array: np.ndarray, beside: int) -> np.ndarray:
    """Copy to an address that is `beside` modulo 64."""
    buffer = np.empty(array.nbytes + 128, np.uint8)
    start = (beside - buffer.ctypes.data) % 64
    found = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    found[...] = array
    return found


def random_scales(rng: np.random.Generator, shape: tuple[int, int], kind: str, spread: float = 2.0) -> np.ndarray:
    """Bits of scales of either sign that range over `2 * spread` powers of ten."""
    values = (rng.choice([-1.0, 1.0], shape) * 10.0 ** rng.uniform(-spread, spread, shape)).astype(np.float32)
    if kind == "float16":
        return values.astype(np.float16).view(np.uint16)
    words = values.view(np.uint16)
    return words if kind == "float32" else np.ascontiguousarray(words[:, 1::2])


def random_packed(
    rng: np.random.Generator,
    shape: tuple[int, int],
    form: tuple[int, int, bool],
    *,
    kind: str = "float16",
    beside: int = 0,
    spread: float = 2.0,
) -> PackedMatrix:
    """Draw a weight of `shape`, `form` being (bits, group size, symmetric); bits behind the last column are noise."""
    (rows, columns), (bits, group_size, symmetric) = shape, form
    groups = rows, columns // group_size
    packed = rng.integers(0, 256, (rows, row_bytes(columns, bits)), np.uint8)
    zero = None if symmetric else placed(rng.integers(0, 1 << bits, groups, np.uint8), beside)
    scale = placed(random_scales(rng, groups, kind, spread), beside * 2)
    return PackedMatrix(placed(packed, beside), scale, zero, bits, group_size, columns, SCALE_KINDS[kind])


def product_bound(x: np.ndarray, matrix: PackedMatrix) -> np.ndarray:
    """Bound what rounding costs an int8 product: float32's unit for each step of a sum, times the sum of magnitudes.

    Products with codes and with zero points are summed apart, so their magnitudes count even where they cancel; some
    instruction sets take 128 off codes of 8 bits.
    """
    group = activation_group(matrix.group_size)
    codes, x_scale, _ = activations_reference(x, group)
    x = np.abs(codes) * np.repeat(x_scale.astype(np.float64), group, axis=1)
    scale = np.abs(np.repeat(scales_reference(matrix).astype(np.float64), matrix.group_size, axis=1))
    zero = midpoint(matrix.bits)
    if matrix.zero_point is not None:
        zero = np.repeat(matrix.zero_point, matrix.group_size, axis=1)
    size = unpack_reference(matrix.packed, matrix.bits, matrix.columns) + zero + (256.0 if matrix.bits == 8 else 0.0)
    steps = matrix.columns / group + 8
    # Scales, and products of scales, below the normal numbers lose more.
    least = 2.0**-149 * (127 * 512 * matrix.columns + 512 * x.sum(axis=1, keepdims=True))
    return steps * 2.0**-23 * (x @ (scale * size).T) + least


def check_product(x: np.ndarray, matrix: PackedMatrix, found: np.ndarray | None = None) -> None:
    """Compare `found`, or what `matmul` finds, with the reference."""
    if found is None:
        found = matmul(x, matrix)
    expected = matmul_reference(x, matrix)
    wrong = ~(np.abs(found - expected) <= product_bound(x, matrix))
    if wrong.any():
        t, row = np.argwhere(wrong)[0]
        raise AssertionError(
            f"{matrix.form}, {x.shape} by {matrix.rows} rows, zero points {matrix.zero_point is not None}: "
            f"{found[t, row]} for {expected[t, row]} at {t}, {row}, and {wrong.sum()} in all"
        )
