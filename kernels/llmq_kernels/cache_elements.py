"""Elements of a key-value cache as attention reads them: loaded from where they are stored, widened to floats."""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core import cgutils

from llmq_kernels.simd import Emitter, host_features, target

__all__ = ["BLOCK", "PADDED", "Elements", "Matrix", "elements_of"]

PADDED: Final = 16
"""Elements that heads are padded to multiples of, in 4 bits of `BLOCK`: a vector of any instruction set."""

BLOCK: Final = 32
"""Elements of which 4-bit codes lie together: the first half in the lower halves of 16 bytes, the others above."""

_I32: Final = ir.IntType(32)
_I64: Final = ir.IntType(64)
_FLOAT: Final = ir.FloatType()


class Matrix:
    """A C-contiguous matrix as pointers; of uint8, which holds two codes, there are twice as many columns."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        array = context.make_array(kind)(context, builder, value)
        self._builder = builder
        self._base = array.data
        self.element = kind.dtype
        self.rows, self._stride = cgutils.unpack_tuple(builder, array.shape, 2)
        self.columns = builder.mul(self._stride, _I64(2)) if kind.dtype == types.uint8 else self._stride

    def at(self, row: Any, column: Any) -> Any:
        """Pointer to what is stored in a column of those that are stored."""
        offset = self._builder.add(self._builder.mul(row, self._stride), column)
        return self._builder.gep(self._base, [offset])


class Elements:
    """How stored elements are loaded and widened to vectors of floats.

    Parameters
    ----------
    element : numba type
        float32, uint16, int8 or uint8.
    lanes : int
        Of a vector: 8 or 16.

    Attributes
    ----------
    step : int
        Elements of a turn.
    stored : int
        Stored numbers of a turn.
    places : list of list of int
        For each vector that is loaded in a turn, where the vectors of floats made of it lie among the step's elements.
    """

    def __init__(self, builder: Any, element: Any, lanes: int) -> None:
        self._builder = builder
        self._element = element
        self.lanes = lanes
        self.step, self.stored, self.places = lanes, lanes, [[0]]
        if element == types.uint8:
            self.step, self.stored = BLOCK, BLOCK // 2
            self.places = [[first, first + self.stored] for first in range(0, self.stored, lanes)]

    def load(self, pointer: Any, number: int) -> Any:
        """Load the vector `number` of the turn that begins at a pointer; codes of 4 bits stay in pairs."""
        builder, element = self._builder, self._element
        stored = ir.VectorType({types.float32: _FLOAT}.get(element, ir.IntType(element.bitwidth)), self.lanes)
        pointer = builder.gep(pointer, [_I64(number * self.lanes)])
        raw = builder.load(builder.bitcast(pointer, stored.as_pointer()), align=element.bitwidth // 8)
        if element == types.float32:
            return raw
        wide, floats = ir.VectorType(_I32, self.lanes), ir.VectorType(_FLOAT, self.lanes)
        if element == types.uint16:
            shift = ir.Constant(wide, [16] * self.lanes)
            return builder.bitcast(builder.shl(builder.zext(raw, wide), shift), floats)
        if element == types.uint8:
            return builder.zext(raw, wide)
        return builder.sitofp(builder.sext(raw, wide), floats)

    def part(self, loaded: Any, number: int) -> Any:
        """Make the floats `number` of a vector that was loaded."""
        if self._element != types.uint8:
            return loaded
        if self.lanes == 16 and "avx512f" in host_features():
            return self._looked_up(loaded, number)
        builder, wide = self._builder, loaded.type
        up, down = (ir.Constant(wide, [shift] * self.lanes) for shift in (28 - 4 * number, 28))
        return builder.sitofp(builder.ashr(builder.shl(loaded, up), down), ir.VectorType(_FLOAT, self.lanes))

    def _looked_up(self, pairs: Any, number: int) -> Any:
        """Floats of 16 codes by a table; its index is the low 4 bits of a lane, whatever stands above them."""
        builder = self._builder
        floats = ir.VectorType(_FLOAT, 16)
        table = ir.Constant(floats, [float(code - 16 * (code > 7)) for code in range(16)])
        index = builder.lshr(pairs, ir.Constant(pairs.type, [4] * 16)) if number else pairs
        return Emitter(builder, target()).call("llvm.x86.avx512.permvar.sf.512", floats, table, index)


def elements_of(builder: Any, matrix: Matrix, rows: int) -> Elements:
    """Vectors as they suit a number of rows.

    One row with elements of 16 bits and more reads memory faster in small steps; otherwise large ones are quicker.
    """
    wide = target().width == 64 and (rows > 1 or matrix.element.bitwidth == 8)
    return Elements(builder, matrix.element, 16 if wide else 8)
