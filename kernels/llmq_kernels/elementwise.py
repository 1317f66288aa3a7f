"""Loops over the elements of a run, emitted as explicit vectors: short IR that compiles in no time, on any target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llvmlite import ir
from numba.core import cgutils

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Elements", "data_of", "emit_loops"]

WIDTHS: Final = (32, 8, 1)
"""Elements that are taken together: as many as fill a vector of bytes, then what is left of a run."""


class Elements:
    """Emits operations on `width` elements at a time; LLVM splits vectors that are too long for the machine."""

    def __init__(self, builder: Any, width: int) -> None:
        self.builder = builder
        self.width = width

    def kind(self, scalar: Any) -> Any:
        """Type of `width` elements."""
        return ir.VectorType(scalar, self.width) if self.width > 1 else scalar

    def word(self, bits: int) -> Any:
        """Type of `width` integers."""
        return self.kind(ir.IntType(bits))

    def constant(self, kind: Any, value: float) -> Any:
        """`value` in every element."""
        return ir.Constant(kind, [value] * self.width if self.width > 1 else value)

    def spread(self, scalar: Any) -> Any:
        """Copy a scalar to every element."""
        if self.width == 1:
            return scalar
        one = self.builder.insert_element(ir.Constant(self.kind(scalar.type), ir.Undefined), scalar, ir.IntType(32)(0))
        return self.builder.shuffle_vector(one, one, self.constant(self.word(32), 0))

    def load(self, data: Any, index: Any, scalar: Any) -> Any:
        """Elements from the one at `index` on, as aligned as one of them."""
        return self.builder.load(self._place(data, index, scalar), align=scalar_bytes(scalar))

    def store(self, value: Any, data: Any, index: Any, scalar: Any) -> None:
        """Write elements from the one at `index` on."""
        self.builder.store(value, self._place(data, index, scalar), align=scalar_bytes(scalar))

    def _place(self, data: Any, index: Any, scalar: Any) -> Any:
        first = self.builder.gep(self.builder.bitcast(data, scalar.as_pointer()), [index])
        return self.builder.bitcast(first, self.kind(scalar).as_pointer())


def scalar_bytes(scalar: Any) -> int:
    """Size of a float or an integer."""
    return 4 if isinstance(scalar, ir.FloatType) else int(scalar.width) // 8


def emit_loops(builder: Any, count: Any, body: Callable[[Elements, Any], None], widths: Sequence[int] = WIDTHS) -> None:
    """Emit a loop over `count` elements, int64, for each width; `body(elements, index)` emits what is done."""
    done, left = count.type(0), count
    for width in widths:
        n_vectors = builder.udiv(left, count.type(width))
        with cgutils.for_range(builder, n_vectors) as loop:
            body(Elements(builder, width), builder.add(done, builder.mul(loop.index, count.type(width))))
        done = builder.add(done, builder.mul(n_vectors, count.type(width)))
        left = builder.urem(left, count.type(width))  # which tells LLVM that the next loop is short


def data_of(context: Any, builder: Any, kind: Any, array: Any) -> tuple[Any, list[Any]]:
    """Pointer to the data, and the shape, of a C-contiguous array."""
    found = context.make_array(kind)(context, builder, array)
    return found.data, [builder.extract_value(found.shape, axis) for axis in range(kind.ndim)]
