"""`Series`: a course of samples that never becomes long, and never loses its peak."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Series"]

_Sample = TypeVar("_Sample")


class Series(Generic[_Sample]):
    """Samples in order; where there would be more than `most`, each two neighbours become one, the higher.

    Parameters
    ----------
    most : int
        An even number.
    height : callable
        Of a sample: what its peak is the largest of.

    Attributes
    ----------
    samples : list

    Examples
    --------
    >>> series = Series(4, height=abs)
    >>> for sample in (1, 2, 9, 4, 5, 6, 7):
    ...     series.add(sample)
    >>> series.finish()
    >>> series.samples
    [2, 9, 6, 7]
    """

    def __init__(self, most: int, height: Callable[[_Sample], float]) -> None:
        self._most = most
        self._height = height
        self._stride = 1
        self._waiting: list[_Sample] = []
        self.samples: list[_Sample] = []

    def add(self, sample: _Sample) -> None:
        """Take a sample; the highest of every few is kept, of the more of them the longer the series becomes."""
        self._waiting.append(sample)
        if len(self._waiting) < self._stride:
            return
        self.finish()
        if len(self.samples) == self._most:
            self.samples = [max(self.samples[i : i + 2], key=self._height) for i in range(0, self._most, 2)]
            self._stride *= 2

    def finish(self) -> None:
        """Keep the highest of those that wait."""
        if self._waiting:
            self.samples.append(max(self._waiting, key=self._height))
            self._waiting = []
