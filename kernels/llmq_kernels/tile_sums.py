"""The microkernel of integer layers: a tile meets rows, and 32-bit sums of their products grow in memory.

A tile holds one row of a matrix in each 32-bit lane of its vectors: four operands of a byte at a time, or two of 16
bits (see `tile_accumulator`). The other matrix comes row by row, four or two operands for all lanes at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Final

from llvmlite import ir
from numba.core import cgutils, types

from llmq_kernels.planes import chunk_codes
from llmq_kernels.simd import I32, Accumulator, Emitter, Target, intrinsic, target, tile_accumulator
from llmq_kernels.tiles import tile_shape
from llmq_kernels.workers import length

__all__ = [
    "FLOATS",
    "INTEGERS",
    "TILE_IS_CODES",
    "TILE_IS_INPUTS",
    "TileOutputs",
    "emit_outputs",
    "multiply_sums",
    "step_unit",
]

INTEGERS: Final = 1
FLOATS: Final = 2
"""Of workers: inputs are int8 or float32, outputs int32 or float32."""

TILE_IS_CODES: Final = 1
"""Of `multiply_sums`: the tile holds codes, and rows are inputs."""
TILE_IS_INPUTS: Final = 2
"""The tile holds inputs, and rows are codes."""

_STEPS: Final = 2
"""Steps that are emitted one after the other: of more, LLVM would move the loads up and spill them."""

_ENDLESS: Final = 1 << 20
"""Bursts from which sums are never settled."""

_SHORT: Final = 2
"""Bursts up to which sums stay in registers from one to the next."""

_SIDE_BY_SIDE: Final = {"avx512vnni": 8}
"""Rows that meet a tile at a time where they are more than `tile_shape` says: no sums of floats take registers too."""


@intrinsic
def multiply_sums(typingctx: Any, tile: Any, rows: Any, sums: Any, counts: Any, bits: Any, side: Any) -> Any:
    """Add the products of a tile and some rows to their sums, exactly.

    Parameters
    ----------
    tile : int64
        Address of the operands (steps, vectors, bytes of a vector).
    rows : (int64, int64)
        Address of the first row's operands, and bytes from one row to the next.
    sums : int64
        Address of int32 (rows, lanes of a tile).
    counts : (int64, int64)
        Steps, of four bytes of each row, whole multiples of `step_unit`; and rows.
    bits, side : pointers
        Their lengths are the width of a code, and `TILE_IS_CODES` or `TILE_IS_INPUTS`.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emitter = Emitter(builder, target())
        pairs = [[builder.extract_value(args[i], j) for j in (0, 1)] for i in (1, 3)]
        variant = length(signature.args[4]), length(signature.args[5])
        emit_products(emitter, variant, args[0], pairs, TileSums(emitter, args[2]))
        return context.get_dummy_value()

    return types.void(tile, rows, sums, counts, bits, side), emit


def emit_products(
    emitter: Emitter, variant: tuple[int, int], tile: Any, operands: list[list[Any]], sums: TileSums
) -> None:
    """Emit what `multiply_sums` does, with sums that begin and end as `sums` has it.

    Parameters
    ----------
    emitter : Emitter
    variant : (int, int)
        Width of a code, and `TILE_IS_CODES` or `TILE_IS_INPUTS`.
    tile : value
        See `multiply_sums`.
    operands : [[value, value], [value, value]]
        Its `rows` and `counts`.
    sums : TileSums
    """
    rows, (steps, count) = operands
    side_by_side = _SIDE_BY_SIDE.get(emitter.target.name, tile_shape(emitter.target)[1])
    whole = emitter.builder.mul(emitter.builder.sdiv(count, emitter.number(side_by_side)), emitter.number(side_by_side))
    for first, last, at_a_time in ((emitter.number(0), whole, side_by_side), (whole, count, 1)):
        kernel = _Kernel(emitter, variant, at_a_time)

        def body(i: Any, values: list[Any], first: Any = first, kernel: Any = kernel) -> list[Any]:
            kernel.emit(tile, rows, sums, (emitter.add(first, i), steps))
            return values

        emitter.loop(emitter.builder.sub(last, first), at_a_time, [], body)


class TileSums:
    """Sums in memory, int32 (rows, lanes of a tile), that are added to.

    Parameters
    ----------
    emitter : Emitter
    kept : value
        Address of the sums.
    before : (value, value), optional
        Address of the sums to begin with, and bytes from one row to the next, which may be 0; otherwise `kept`.
    """

    def __init__(self, emitter: Emitter, kept: Any, before: tuple[Any, Any] | None = None) -> None:
        self.emitter = emitter
        self.lanes, self.width = emitter.target.lanes, emitter.target.width
        self.vectors = tile_shape(emitter.target)[0]
        self.kind = ir.VectorType(I32, self.lanes)
        self._kept = kept
        self._before = before or (kept, emitter.number(self.vectors * self.width))

    def begin(self, rows: list[Any]) -> list[Any]:
        """Sums to begin with, of the rows of some numbers and of each vector."""
        start, step = self._before
        emitter = self.emitter
        starts = [emitter.add(start, emitter.builder.mul(row, step)) for row in rows]
        return [emitter.load(at, self.kind, v * self.width) for at in starts for v in range(self.vectors)]

    def keep(self, rows: list[Any], values: list[Any]) -> None:
        """Write sums to their places in memory."""
        for (at, offset), value in zip(self.places(rows), values, strict=True):
            self.emitter.store(value, at, offset)

    def places(self, rows: list[Any]) -> list[tuple[Any, int]]:
        """Addresses and offsets of sums in memory."""
        starts = [self.emitter.add(self._kept, self.emitter.mul(row, self.vectors * self.width)) for row in rows]
        return [(at, v * self.width) for at in starts for v in range(self.vectors)]

    def end(self, rows: list[Any], values: list[Any]) -> None:
        """Do with whole sums what is to be done."""
        self.keep(rows, values)


class TileOutputs(TileSums, ABC):
    """Sums that become outputs; see `emit_outputs`.

    Parameters
    ----------
    emitter : Emitter
    parts : list of list of value
        The arguments of an intrinsic from its sums on: `sums`, `counts`, `forms`, `items`, `out`.
    ending : (bool, bool)
        Whether sums are doubled first, and whether outputs are float32 rather than int32.
    """

    def __init__(self, emitter: Emitter, parts: list[list[Any]], ending: tuple[bool, bool]) -> None:
        (before, step, kept), _, (forms, kind_bytes), self.items, self._out = parts
        super().__init__(emitter, kept, (before, step))
        self.forms = [emitter.add(forms, emitter.mul(kind_bytes, kind)) for kind in range(5)]
        self._doubled, self.floating = ending

    def end(self, rows: list[Any], values: list[Any]) -> None:
        """Make outputs of whole sums."""
        emitter, builder = self.emitter, self.emitter.builder
        # All is loaded before anything is stored: LLVM cannot know that a store changes none of them.
        doubled = [builder.add(value, value) if self._doubled else value for value in values]
        results = self.finished(rows, [doubled[i : i + self.vectors] for i in range(0, len(values), self.vectors)])
        for row, result in zip(rows, results, strict=True):
            to = emitter.add(self._out[0], emitter.mul(row, self._out[1]))
            for v, value in enumerate(result):
                emitter.store(value, to, v * self.width)

    @abstractmethod
    def finished(self, rows: list[Any], sums: list[list[Any]]) -> list[list[Any]]:
        """Outputs of some rows, for each vector, of their sums."""


def emit_outputs(outputs: type[TileOutputs], context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Emit an intrinsic that adds the last products of a tile to their sums, and makes outputs of them.

    Its arguments, addresses and bytes in int64, are those of `multiply_sums` but for `sums`, and others::

        tile, rows, sums, counts, forms, items, out, bits, side, factor, result

    Parameters
    ----------
    outputs : type
        Of `TileOutputs`.

    Notes
    -----
    `sums` are the address of the sums to begin with, bytes from one row to the next, and the address of room for sums,
    int32 (rows, lanes of a tile). `forms` are the address of the first number of a weight's rows, and bytes from one
    kind of number to the next (see `RowForms`); `items` what `outputs` needs beside them; `out` the address of the
    first row's outputs, whole vectors, and bytes from one row to the next. The lengths of `factor` and `result` are
    what sums are multiplied by, and `INTEGERS` or `FLOATS`.
    """
    emitter = Emitter(builder, target())
    rows, *parts = (cgutils.unpack_tuple(builder, args[i]) for i in range(1, 7))
    bits, side, factor, result = (length(kind) for kind in signature.args[7:])
    sums = outputs(emitter, parts, (factor == 2, result == FLOATS))
    emit_products(emitter, (bits, side), args[0], [rows, parts[1]], sums)
    return context.get_dummy_value()


def step_unit(goal: Target, bits: int) -> int:
    """Columns of which `multiply_sums` takes whole multiples.

    Examples
    --------
    >>> [step_unit(Target("avx2", 32, half=True), bits) for bits in range(1, 9)]
    [256, 128, 32, 32, 16, 8, 8, 4]
    """
    dot = tile_accumulator(Emitter(None, goal), bits)
    return max(_STEPS, _burst(dot, goal, bits)) * 4 // goal.operand(bits)


def _burst(dot: Accumulator, goal: Target, bits: int) -> int:
    """Steps between two times that sums are settled: chunks are whole bursts; 0 if there need be none."""
    whole = chunk_codes(bits, goal.width) * goal.operand(bits) // 4
    return 0 if dot.burst >= _ENDLESS else min(dot.burst, whole)


class _Kernel:
    """Emits the products of a tile with a few rows."""

    def __init__(self, emitter: Emitter, variant: tuple[int, int], rows: int) -> None:
        self.emitter = emitter
        bits, side = variant
        self.swapped = side == TILE_IS_INPUTS
        self.dot = tile_accumulator(emitter, bits)
        self.vectors, self.rows = tile_shape(emitter.target)[0], rows
        self.burst = _burst(self.dot, emitter.target, bits)

    def emit(self, tile: Any, rows: list[Any], sums: TileSums, counts: tuple[Any, Any]) -> None:
        """Emit the loop over steps for the rows from number ``counts[0]`` on."""
        emitter = self.emitter
        number = [emitter.add(counts[0], r) for r in range(self.rows)]
        row_at = [emitter.add(rows[0], emitter.mul(n, rows[1])) for n in number]
        if self.burst > _SHORT:
            # Registers hold the sums of a burst alone.
            places = sums.places(number)
            sums.keep(number, sums.begin(number))

            def add_burst(start: Any, values: list[Any]) -> list[Any]:
                for value, (at, offset) in zip(self._burst(tile, row_at, start), places, strict=True):
                    emitter.store(emitter.builder.add(emitter.load(at, sums.kind, offset), value), at, offset)
                return values

            emitter.loop(counts[1], self.burst, [], add_burst)
            sums.end(number, [emitter.load(at, sums.kind, offset) for at, offset in places])
            return

        def run(start: Any, totals: list[Any]) -> list[Any]:
            if not self.burst:
                return self._run(tile, row_at, start, _STEPS, totals)
            for step in range(0, _STEPS, self.burst):
                found = self._run(tile, row_at, emitter.add(start, step), self.burst, [self.dot.zero()] * len(totals))
                settled = map(self.dot.settle, found)
                totals = [emitter.builder.add(total, value) for total, value in zip(totals, settled, strict=True)]
            return totals

        sums.end(number, emitter.loop(counts[1], _STEPS, sums.begin(number), run))

    def _burst(self, tile: Any, row_at: list[Any], start: Any) -> list[Any]:
        """Sums of a whole burst, int32."""
        emitter = self.emitter

        def run(step: Any, running: list[Any]) -> list[Any]:
            return self._run(tile, row_at, emitter.add(start, step), _STEPS, running)

        running = [self.dot.zero()] * (self.rows * self.vectors)
        return [self.dot.settle(value) for value in emitter.loop(emitter.opaque(self.burst), _STEPS, running, run)]

    def _run(self, tile: Any, row_at: list[Any], first: Any, steps: int, running: list[Any]) -> list[Any]:
        emitter, width, kind = self.emitter, self.emitter.target.width, self.dot.operand
        tile = emitter.add(tile, emitter.mul(first, self.vectors * width))
        at = [emitter.add(base, emitter.mul(first, 4)) for base in row_at]
        for step in range(steps):
            lanes = [emitter.load(tile, kind, (step * self.vectors + v) * width) for v in range(self.vectors)]
            results = []
            for r in range(self.rows):
                row = emitter.builder.bitcast(emitter.splat(emitter.load(at[r], I32, 4 * step)), kind)
                for v in range(self.vectors):
                    codes, x = (row, lanes[v]) if self.swapped else (lanes[v], row)
                    results.append(self.dot.add(running[r * self.vectors + v], codes, x))
            running = results
        return running
