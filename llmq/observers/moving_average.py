"""Extremes that forget: an exponential moving average of those of each piece of data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmq.observers.observer import Observer

if TYPE_CHECKING:
    from llmq.spec import QuantSpec

__all__ = ["MovingAverage"]


class MovingAverage(Observer):
    """Averages the extremes of the pieces, later ones counting more: Jacob et al., arXiv:1712.05877, section 3.1.

    The first piece gives the first range; each further one moves it by ``a += averaging * (min(x) - a)`` and ``b +=
    averaging * (max(x) - b)``, so that a single odd batch moves the range little. Unlike with other observers, it
    counts in which pieces and in which order the data comes.

    Parameters
    ----------
    spec, channel_axis
        As for `Observer`.
    averaging : float
        The weight of a new piece: above 0, at most 1 (the last piece alone).

    Raises
    ------
    ValueError
        `averaging` out of range.

    Examples
    --------
    >>> from llmq.spec import QuantSpec
    >>> observer = MovingAverage(QuantSpec(bits=8, symmetric=False), averaging=0.5)
    >>> for piece in ([-1.0, 1.0], [-3.0, 2.0]):
    ...     observer.observe(np.array(piece))
    >>> [end.item() for end in observer.range()]
    [-2.0, 1.5]
    """

    def __init__(self, spec: QuantSpec, *, channel_axis: int | None = None, averaging: float = 0.01) -> None:
        super().__init__(spec, channel_axis=channel_axis)
        if not 0.0 < averaging <= 1.0:
            raise ValueError(f"averaging must be above 0 and at most 1, not {averaging}")
        self.averaging = averaging
        self._average: np.ndarray | None = None  # float64 (2, channels)

    def _observe(self, rows: np.ndarray) -> None:
        ends = np.array([rows.min(axis=1), rows.max(axis=1)], np.float64)
        self._average = ends if self._average is None else self._average + self.averaging * (ends - self._average)

    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        assert self._average is not None
        low, high = self._average.astype(np.float32)
        return low, high
