"""What an observer is: data in, piece by piece, a range out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from llmq.observers.parameters import scale_and_zero_point

if TYPE_CHECKING:
    from llmq.spec import QuantSpec

__all__ = ["Observer"]


class Observer(ABC):
    """Sees data piece by piece, in bounded memory, and chooses the range `[a, b]` that codes shall cover.

    Parameters
    ----------
    spec : QuantSpec
        The grid to choose for: its `bits`, `symmetric` and `range` count.
    channel_axis : int or None
        Axis along which every index has a range of its own; None has one range for everything.
    """

    def __init__(self, spec: QuantSpec, *, channel_axis: int | None = None) -> None:
        self.spec = spec
        self.channel_axis = channel_axis
        self._channels: int | None = None

    def observe(self, x: np.ndarray) -> None:
        """Take in more data.

        Parameters
        ----------
        x : float, any shape
            Of the same number of channels each time; may be empty.

        Raises
        ------
        ValueError
            NaN or infinity (in float32), or another number of channels than before.
        """
        with np.errstate(over="ignore"):  # what is too large for float32 becomes infinity, which is refused
            rows = self._rows(np.asarray(x).astype(np.float32, copy=False))
        if rows.size == 0:
            return
        if not np.isfinite(rows).all():
            raise ValueError("cannot observe NaN or infinity")
        if self._channels not in (None, len(rows)):
            raise ValueError(f"{len(rows)} channels, but {self._channels} before")
        self._channels = len(rows)
        self._observe(rows)

    def _rows(self, x: np.ndarray) -> np.ndarray:
        """View data as (channels, values)."""
        if self.channel_axis is None:
            return np.ascontiguousarray(x).reshape(1, -1)
        moved = np.ascontiguousarray(np.moveaxis(x, self.channel_axis, 0))
        return moved.reshape(moved.shape[0], -1) if moved.size else moved

    @abstractmethod
    def _observe(self, rows: np.ndarray) -> None:
        """Take in float32 (channels, values), finite and not empty."""

    @abstractmethod
    def _range(self) -> tuple[np.ndarray, np.ndarray]:
        """Choose `[a, b]`, float32 (channels,) each, from data of which there is some."""

    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """Choose the range.

        Returns
        -------
        a, b : float32, of shape () or (channels,)
            Symmetric specs get ``[-m, m]``.

        Raises
        ------
        ValueError
            Nothing was observed.
        """
        if self._channels is None:
            raise ValueError("nothing was observed")
        low, high = self._range()
        if self.spec.symmetric:
            high = np.maximum(np.abs(low), np.abs(high))
            low = -high
        if self.channel_axis is None:
            return low[0], high[0]
        return low, high

    def parameters(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Scale and zero point of the range, as `scale_and_zero_point` gives them."""
        return scale_and_zero_point(*self.range(), self.spec)
