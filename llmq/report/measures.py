"""Errors, histograms and the use of codes of each weight, from blocks of its rows as they stream past."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from llmq.evaluate.compare import compare
from llmq.evaluate.grid import outside, positions
from llmq.evaluate.sums import ErrorSums, decibels
from llmq.observers import StreamingHistogram

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmq.checkpoint.source import Source
    from llmq.spec import QuantizedTensor
    from llmq.system.progress import Progress

__all__ = ["Measures", "TensorMeasure"]

_ELEMENTS: Final = 1 << 16
"""Elements looked at in one go: half a megabyte for each float64 array of them."""

_BINS: Final = 4096
_SHOWN_BINS: Final = 160


class TensorMeasure:
    """What is known of one weight so far.

    Parameters
    ----------
    bits : int
        Of a code.

    Attributes
    ----------
    sums : ErrorSums
    usage : int64 (2**bits,)
        How many weights have each code.
    histogram : StreamingHistogram
        Of `positions`.
    outside : int
        Weights more than half a step beyond the last level on either side.
    elements : int
        Weights seen.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.sums = ErrorSums()
        self.usage = np.zeros(1 << bits, np.int64)
        self.histogram = StreamingHistogram(1, _BINS)
        self.outside = 0
        self.elements = 0

    def add(self, rows: np.ndarray, quantized: QuantizedTensor) -> None:
        """Count a block of rows, float (n, in_features), and what they became; a few megabytes are taken meanwhile."""
        step = max(1, _ELEMENTS // max(1, rows.shape[1]))
        for start in range(0, len(rows), step):
            self._add(rows[start : start + step], _rows(quantized, start, start + step))

    def _add(self, rows: np.ndarray, quantized: QuantizedTensor) -> None:
        self.sums.add(rows, quantized.dequantize())
        self.usage += np.bincount(quantized.codes().ravel(), minlength=self.usage.size)
        placed = positions(rows, quantized)
        self.histogram.add(placed.reshape(1, -1))
        self.outside += outside(placed, self.bits)
        self.elements += rows.size

    def row(self) -> dict[str, Any]:
        """Return the figures of its row in the table."""
        return {
            "nmse": self.sums.nmse,
            "sqnr_db": decibels(self.sums.nmse),
            "cosine": self.sums.cosine,
            "max_error": self.sums.largest,
            "saturation": self.outside / max(1, self.elements),
        }

    def picture(self) -> dict[str, Any]:
        """Return the histogram around the grid in at most 192 bins, and the use of codes.

        Returns
        -------
        dict
            `first`, the lower edge of the first bin, and `width`, both in steps; `counts`, a number for each bin;
            `below` and `above`, how many weights lie out of the picture; `usage`, a number for each code.
        """
        levels = float(self.usage.size)
        low, high = -0.5 - max(1.0, levels / 4), levels - 0.5 + max(1.0, levels / 4)
        # Powers of two nest in each other, so that no bin is ever divided.
        width = max(float(self.histogram.width[0]), 2.0 ** np.ceil(np.log2((high - low) / _SHOWN_BINS)))
        first, bins = np.floor(low / width), int(np.ceil(high / width) - np.floor(low / width))
        counts = self.histogram.counts[0]
        edges = self.histogram.edges(np.arange(counts.size)[None, :])[0]
        place = np.floor(edges / width) - first
        inside = (place >= 0) & (place < bins)
        shown = np.bincount(place[inside].astype(np.int64), weights=counts[inside], minlength=bins)
        return {
            "first": float(first * width),
            "width": width,
            "counts": shown.astype(np.int64).tolist(),
            "below": int(counts[place < 0].sum()),
            "above": int(counts[place >= bins].sum()),
            "usage": self.usage.tolist(),
        }


class Measures:
    """All weights that were seen; to be given as `watch` to `llmq.quantize` or `compare`."""

    def __init__(self) -> None:
        self.tensors: dict[str, TensorMeasure] = {}

    def __call__(self, name: str, rows: np.ndarray, quantized: QuantizedTensor) -> None:
        """Count a block of rows of the weight `name`."""
        self.tensors.setdefault(name, TensorMeasure(quantized.spec.bits)).add(rows, quantized)

    def complete(
        self, source: Source, output: Source, elements: Mapping[str, int], progress: Progress | None = None
    ) -> None:
        """Read what was not seen in full, as where a run was continued, from two open checkpoints.

        `elements` holds the number of weights by name of all that should have been seen.
        """
        seen = {name: measure.elements for name, measure in self.tensors.items()}
        rest = {name for name, count in elements.items() if seen.get(name) != count}
        self.tensors = {name: measure for name, measure in self.tensors.items() if name in elements.keys() - rest}
        if rest:
            compare(source, output, names=rest, watch=self, progress=progress)
        self.tensors = {name: self.tensors[name] for name in elements}


def _rows(quantized: QuantizedTensor, start: int, stop: int) -> QuantizedTensor:
    """Some rows of a weight, without a copy."""
    zero = quantized.zero_point
    packed = quantized.packed[start:stop]
    return replace(
        quantized,
        shape=(len(packed), quantized.shape[1]),
        packed=packed,
        scale=quantized.scale[start:stop],
        zero_point=None if zero is None else zero[start:stop],
    )
