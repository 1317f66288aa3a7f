"""The error of every quantized tensor, block by block: neither checkpoint is ever held as a whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from llmq.checkpoint.dtypes import FLOATS
from llmq.errors import InputError, UnsupportedError
from llmq.evaluate.grid import GridUse
from llmq.evaluate.inventory import inventory
from llmq.evaluate.rows import raw_bytes, read_quantized, read_rows
from llmq.evaluate.sums import ErrorSums, decibels, normalized
from llmq.system.progress import NullProgress

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from llmq.checkpoint.source import Source
    from llmq.evaluate.inventory import Entry
    from llmq.spec import Watch
    from llmq.system.progress import Progress

__all__ = ["Comparison", "TensorError", "compare"]

_BLOCK_ELEMENTS: Final = 1 << 20
_ROWS: Final = 32
"""Zero points are packed across so many rows."""

_COLUMNS: Final = (
    "name",
    "bits",
    "bits_per_weight",
    "quantized",
    "unchanged",
    "nmse",
    "sqnr_db",
    "cosine",
    "max_error",
    "saturation",
    "end_codes",
)


@dataclass(frozen=True)
class TensorError:
    """How far a weight is from what it was.

    Parameters
    ----------
    name : str
    bits : int
        Of a code, or of an element where it is not packed.
    quantized, unchanged : bool
        Whether it is packed; whether its bytes are the source's.
    squared_error, squares : float
        Sums over all elements of the squared error and of the squared source.
    cosine : float
        Between both weights as vectors; 1 where both are zero.
    max_error : float
        Largest absolute error.
    bits_per_weight : float
        Every stored byte of it, scales and shapes included, over its elements.
    saturation, end_codes : float or None
        Of a packed one: the share of its weights that lie more than half a step beyond the grid, and of those that have
        the first or the last code.
    """

    name: str
    bits: int
    quantized: bool
    unchanged: bool
    squared_error: float
    squares: float
    cosine: float
    max_error: float
    bits_per_weight: float
    saturation: float | None = None
    end_codes: float | None = None

    @property
    def nmse(self) -> float:
        """Squared error over squares."""
        return normalized(self.squared_error, self.squares)

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise in decibels; infinite where nothing changed."""
        return decibels(self.nmse)

    def to_json(self) -> dict[str, Any]:
        """Return its entry of `llmq compare --json`."""
        return {name: getattr(self, name) for name in _COLUMNS}


@dataclass(frozen=True)
class Comparison:
    """An output against its source.

    Parameters
    ----------
    tensors : tuple of TensorError
        In the order of the output.
    """

    tensors: tuple[TensorError, ...]

    @property
    def quantized(self) -> tuple[TensorError, ...]:
        """The packed ones."""
        return tuple(t for t in self.tensors if t.quantized)

    @property
    def nmse(self) -> float:
        """Sum of squared error over sum of squares, quantized tensors only."""
        return normalized(sum(t.squared_error for t in self.quantized), sum(t.squares for t in self.quantized))

    @property
    def sqnr_db(self) -> float:
        """The same in decibels."""
        return decibels(self.nmse)

    def to_json(self) -> dict[str, Any]:
        """Return the object that `llmq compare --json` prints, without its schema number."""
        return {"nmse": self.nmse, "sqnr_db": self.sqnr_db, "tensors": [t.to_json() for t in self.tensors]}


def compare(
    source: Source,
    output: Source,
    *,
    progress: Progress | None = None,
    watch: Watch | None = None,
    names: Collection[str] | None = None,
) -> Comparison:
    """Compare all weights of two open checkpoints, either of which may be packed.

    Parameters
    ----------
    source : Source
        What the output was made from.
    output : Source
    progress : Progress, optional
        Told of the bytes of the output.
    watch : callable, optional
        Called for each block of rows of a packed weight, with its name, the source's rows (float32) and the
        `QuantizedTensor` that they became.
    names : collection of str, optional
        Compare only these.

    Raises
    ------
    InputError
        They do not have the same weights, in the same shapes.
    UnsupportedError
        One is quantized in a way that llmq does not read.
    """
    theirs = {entry.name: entry for entry in _entries(source)}
    ours = _entries(output)
    _check_names(source.label, theirs, output.label, ours)
    ours = ours if names is None else tuple(entry for entry in ours if entry.name in names)
    told = progress or NullProgress()
    told.start("comparing", sum(entry.nbytes for entry in ours))
    found = []
    for entry in ours:
        before = theirs[entry.name]
        if entry.shape != before.shape:
            raise InputError(
                "other shape than in the source",
                file=output.label,
                tensor=entry.name,
                expected=before.shape,
                found=entry.shape,
            )
        found.append(_compare(source, before, output, entry, watch))
        told.advance(entry.nbytes)
    told.finish()
    return Comparison(tuple(found))


def _entries(source: Source) -> tuple[Entry, ...]:
    held = inventory(source)
    if not held.readable:
        raise UnsupportedError(f"quantized by {held.format}, which llmq does not read", file=source.label)
    return held.entries


def _check_names(source: str, theirs: dict[str, Entry], output: str, ours: tuple[Entry, ...]) -> None:
    names = {entry.name for entry in ours}
    for file, left in ((output, theirs.keys() - names), (source, names - theirs.keys())):
        if left:
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            raise InputError(f"has no such tensor{more}: not made from each other", file=file, tensor=min(left))


def _compare(source: Source, before: Entry, output: Source, after: Entry, watch: Watch | None) -> TensorError:
    same = (
        before.dtype == after.dtype and not (before.spec or after.spec) and _same_bytes(source, before, output, after)
    )
    known = all(entry.spec or entry.dtype in FLOATS for entry in (before, after))
    sums, use = ErrorSums(), GridUse(after.bits)
    if same or not known:
        # What holds no floats either is the same or is not.
        sums.error = 0.0 if same else math.nan
        sums.largest = sums.error
    else:
        for start, stop in _row_blocks(after):
            rows = read_rows(source, before, start, stop)
            if after.spec is None:
                sums.add(rows, read_rows(output, after, start, stop))
                continue
            quantized = read_quantized(output, after, start, stop)
            sums.add(rows, quantized.dequantize())
            use.add(rows, quantized)
            if watch is not None:
                watch(after.name, rows, quantized)
    packed = after.spec is not None
    return TensorError(
        after.name,
        after.bits,
        packed,
        same,
        sums.error,
        sums.before,
        sums.cosine,
        sums.largest,
        8.0 * after.nbytes / max(1, after.parameters),
        use.saturation if packed else None,
        use.end_codes if packed else None,
    )


def _same_bytes(source: Source, before: Entry, output: Source, after: Entry) -> bool:
    one, other = before.parts[""], after.parts[""]
    pairs = zip(raw_bytes(source, one), raw_bytes(output, other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def _row_blocks(entry: Entry) -> Iterator[tuple[int, int]]:
    """Ranges of rows of about a million elements; a vector is one row for each element."""
    rows = entry.shape[0] if entry.shape else 1
    width = max(1, entry.parameters // max(1, rows))
    step = max(1, _BLOCK_ELEMENTS // width // _ROWS) * _ROWS
    for start in range(0, rows, step):
        yield start, min(rows, start + step)
