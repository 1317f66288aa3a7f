"""The smallest and the largest of a run of floats, found in their bits as explicit vectors of integers.

Bits of floats that are not negative are integers of the same order, and of negative ones, taken as unsigned, of the
opposite order and larger than those of all others: one comparison finds the largest, another the least, sixteen float16
or bfloat16 to a vector, without widening. NaN and infinity lie beyond every finite value.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from llmq_kernels.simd import intrinsic

__all__ = ["extreme_bits", "extreme_bits_reference", "largest_bits", "largest_bits_reference"]

_VECTOR_BITS: Final = 256


def extreme_bits_reference(bits: np.ndarray) -> tuple[int, int]:
    """Specify `extreme_bits` of one run, uint16 or uint32 (n,), in plain NumPy.

    Zero counts as one of the run, and -0 is less than it. A NaN lies beyond infinity, on the side of its sign.

    Examples
    --------
    >>> bits = np.array([1.5, -2.0, 0.25], np.float16).view(np.uint16)
    >>> np.array(extreme_bits_reference(bits), np.uint16).view(np.float16).tolist()
    [-2.0, 1.5]
    """
    width = 8 * bits.itemsize
    flip = (1 << (width - 1)) - 1
    signed = bits.view(f"i{bits.itemsize}").astype(np.int64)
    ordered = np.append(np.where(signed < 0, signed ^ flip, signed), 0)
    low, high = int(ordered.min()), int(ordered.max())
    return (low ^ flip if low < 0 else low) % (1 << width), high


def largest_bits_reference(bits: np.ndarray) -> int:
    """Specify `largest_bits` of one run, uint16 or uint32 (n,), in plain NumPy.

    A NaN is larger than infinity.

    Examples
    --------
    >>> found = largest_bits_reference(np.array([1.5, -2.0, 0.25], np.float16).view(np.uint16))
    >>> np.array(found, np.uint16).view(np.float16).item()
    2.0
    """
    return int((bits & ((1 << (8 * bits.itemsize - 1)) - 1)).max(initial=0))


class _Emitter:
    """Emits operations on floats of `width` bits."""

    def __init__(self, builder: Any, width: int) -> None:
        self.builder = builder
        self.scalar = ir.IntType(width)
        self.lanes = _VECTOR_BITS // width
        self.vector = ir.VectorType(self.scalar, self.lanes)

    def _full(self, like: Any, value: int) -> Any:
        return ir.Constant(like, [value] * self.lanes if like == self.vector else value)

    def load(self, data: Any, index: Any) -> Any:
        """Vector `index` of a run."""
        place = self.builder.gep(data, [self.builder.mul(index, index.type(self.lanes))])
        return self.builder.load(self.builder.bitcast(place, self.vector.as_pointer()), align=self.scalar.width // 8)

    def magnitude(self, x: Any) -> Any:
        """Clear the sign."""
        return self.builder.and_(x, self._full(x.type, (1 << (self.scalar.width - 1)) - 1))

    def keep(self, place: Any, x: Any, *, signed: bool) -> None:
        """Replace the variable `place` by `x` where `x` is more."""
        kept = self.builder.load(place)
        more = (self.builder.icmp_signed if signed else self.builder.icmp_unsigned)(">", x, kept)
        self.builder.store(self.builder.select(more, x, kept), place)

    def variable(self, like: Any) -> Any:
        """Make a variable that starts at zero."""
        place = cgutils.alloca_once(self.builder, like)
        self.builder.store(self._full(like, 0), place)
        return place

    def reduced(self, x: Any, name: str) -> Any:
        """Reduce a vector to its largest element, as signed (`smax`) or unsigned (`umax`) integers."""
        kind = ir.FunctionType(self.scalar, [self.vector])
        name = f"llvm.vector.reduce.{name}.v{self.lanes}i{self.scalar.width}"
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), [x])


def _run_of(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Pointer to the first of the columns that an intrinsic is given as (bits, row, start, count)."""
    array = context.make_array(signature.args[0])(context, builder, args[0])
    columns = builder.extract_value(array.shape, 1)
    return builder.gep(array.data, [builder.add(builder.mul(args[1], columns), args[2])])


@intrinsic
def extreme_bits(typing: Any, bits: Any, row: Any, start: Any, count: Any) -> Any:
    """Find the least and the largest of some columns of a row, and of zero.

    Parameters
    ----------
    bits : uint16 or uint32 (rows, columns), C-contiguous
        Floats.
    row, start, count : int64
        Columns `start` to `start + count` of `row`.

    Returns
    -------
    low, high : uint32
        Bits of floats as wide as those of `bits`.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = _Emitter(builder, signature.args[0].dtype.bitwidth)
        data = _run_of(context, builder, signature, args)
        n_vectors = builder.udiv(args[3], args[3].type(e.lanes))
        low, high = e.variable(e.vector), e.variable(e.vector)
        with cgutils.for_range(builder, n_vectors) as loop:
            x = e.load(data, loop.index)
            e.keep(low, x, signed=False)
            e.keep(high, x, signed=True)
        last_low, last_high = e.variable(e.scalar), e.variable(e.scalar)
        builder.store(e.reduced(builder.load(low), "umax"), last_low)
        builder.store(e.reduced(builder.load(high), "smax"), last_high)
        with cgutils.for_range_slice(
            builder, builder.mul(n_vectors, args[3].type(e.lanes)), args[3], args[3].type(1), inc=True
        ) as (index, _):
            x = builder.load(builder.gep(data, [index]))
            e.keep(last_low, x, signed=False)
            e.keep(last_high, x, signed=True)
        found = [builder.load(place) for place in (last_low, last_high)]
        zero = ir.Constant(e.scalar, 0)
        found[0] = builder.select(builder.icmp_signed("<", found[0], zero), found[0], zero)
        word = ir.IntType(32)
        found = [x if e.scalar.width == word.width else builder.zext(x, word) for x in found]
        return context.make_tuple(builder, signature.return_type, found)

    place = (types.int64, types.int64, types.int64)
    return types.UniTuple(types.uint32, 2)(bits, *place), emit


@intrinsic
def largest_bits(typing: Any, bits: Any, row: Any, start: Any, count: Any) -> Any:
    """Find the largest magnitude of some columns of a row: half the work of `extreme_bits`.

    Parameters
    ----------
    bits : uint16 or uint32 (rows, columns), C-contiguous
        Floats.
    row, start, count : int64
        Columns `start` to `start + count` of `row`.

    Returns
    -------
    uint32
        Bits of a float as wide as those of `bits`; 0 if there are no columns.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        e = _Emitter(builder, signature.args[0].dtype.bitwidth)
        data = _run_of(context, builder, signature, args)
        n_vectors = builder.udiv(args[3], args[3].type(e.lanes))
        most = e.variable(e.vector)
        with cgutils.for_range(builder, n_vectors) as loop:
            e.keep(most, e.magnitude(e.load(data, loop.index)), signed=False)
        last = e.variable(e.scalar)
        builder.store(e.reduced(builder.load(most), "umax"), last)
        rest = builder.mul(n_vectors, args[3].type(e.lanes))
        with cgutils.for_range_slice(builder, rest, args[3], args[3].type(1), inc=True) as (index, _):
            e.keep(last, e.magnitude(builder.load(builder.gep(data, [index]))), signed=False)
        found, word = builder.load(last), ir.IntType(32)
        return found if e.scalar.width == word.width else builder.zext(found, word)

    return types.uint32(bits, types.int64, types.int64, types.int64), emit
