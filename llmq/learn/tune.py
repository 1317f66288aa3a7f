"""Block-AP: the linears of a decoder block learn their rounding together, from what the block puts out.

Chen et al. 2024, "EfficientQAT: Efficient Quantization-Aware Training for Large Language Models".
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from llmq.learn.learned_rounding import LearnedRounding, Rates
from llmq.plan.calibrated import WINDOWS_AT_ONCE
from llmq.system.allocator import keeping_freed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from llmq.learn.block import TorchBlock
    from llmq.spec import QuantizedTensor

__all__ = ["Settings", "Windows", "readings", "tune_block"]

Window = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""Gives the hidden states of a window by its number: what goes into the block, and what should come out, both float32
(context, hidden_size)."""


_READINGS: Final = (4, 10)
_TOKENS: Final = 131_072
"""A text is read as often as makes so many tokens, within these bounds: more readings of few tokens learn them by
heart, and of many they change little."""

_RATES: Final = Rates(weight=0.007, scale=0.0005, zero_point=0.005)


@dataclass(frozen=True)
class Settings:
    """How a block is tuned.

    Parameters
    ----------
    epochs : int
        How often the text is read.
    batch : int
        Windows of a step.
    rates : Rates
        At the beginning; they fall to zero linearly.
    seed : int
        Of the order of windows.
    """

    epochs: int = 10
    batch: int = WINDOWS_AT_ONCE
    rates: Rates = _RATES
    seed: int = 0


def readings(tokens: int) -> int:
    """How often a text of so many tokens is read."""
    fewest, most = _READINGS
    return min(most, max(fewest, _TOKENS // tokens))


@dataclass(frozen=True)
class Windows:
    """A text as a block sees it.

    Parameters
    ----------
    read : callable
    train, held : sequence of int
        Numbers of the windows to learn from, and to judge by.
    """

    read: Window
    train: Sequence[int]
    held: Sequence[int]


def tune_block(
    block: TorchBlock,
    starts: Mapping[str, QuantizedTensor],
    windows: Windows,
    *,
    settings: Settings = Settings(),
    threads: int = 1,
    progress: Callable[[float], None] | None = None,
) -> dict[str, QuantizedTensor]:
    """Tune the rounding of a block's linears so that the block puts out what it should.

    The loss is the squared error of the hidden states after the block. Each window is one thread's work, and gradients
    are added in the order of windows: the result does not depend on the number of threads. The best of all epochs by
    the windows kept apart is returned, the start among them.

    Parameters
    ----------
    block : TorchBlock
        With its original weights; those of `starts` are overwritten.
    starts : mapping of QuantizedTensor
        Where to begin, by the names of the block's parameters.
    windows : Windows
    settings : Settings
    threads : int
        At most so many windows at a time.
    progress : callable, optional
        Told now and then which part of the work is done.

    Returns
    -------
    dict of QuantizedTensor
    """
    with keeping_freed(), _single_threads(), ThreadPoolExecutor(min(threads, settings.batch)) as pool:
        return _Tuning(block, starts, windows, settings, pool).run(progress)


class _Tuning:
    """One block on its way."""

    def __init__(
        self,
        block: TorchBlock,
        starts: Mapping[str, QuantizedTensor],
        windows: Windows,
        settings: Settings,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._block, self._windows, self._settings, self._pool = block, windows, settings, pool
        for name, parameter in block.parameters.items():
            parameter.requires_grad_(name in starts)
        self._weights = {name: block.parameters[name] for name in starts}
        self._learned = {
            name: LearnedRounding(weight.detach().clone(), starts[name]) for name, weight in self._weights.items()
        }
        self._change = self._mean_change()

    def run(self, progress: Callable[[float], None] | None) -> dict[str, QuantizedTensor]:
        """Learn, and return the best."""
        settings, train = self._settings, np.array(self._windows.train)
        order = np.random.default_rng(settings.seed)
        steps = settings.epochs * -(-len(train) // settings.batch)
        self._round()
        least, best = self._error(), self._quantized()
        step = 0
        for _ in range(settings.epochs):
            shuffled = order.permutation(train).tolist()
            for start in range(0, len(shuffled), settings.batch):
                numbers = shuffled[start : start + settings.batch]
                self._step(self._gradients(numbers), 1 - step / steps)
                step += 1
                if progress is not None:
                    progress(step / steps)
            error = self._error()
            if error < least:
                least, best = error, self._quantized()
        return best

    def _gradients(self, numbers: Sequence[int]) -> list[torch.Tensor]:
        """Gradients of the rounded weights, summed over windows in their order."""
        found = self._pool.map(self._gradient, map(self._tensors, numbers))
        total = list(next(found))
        for gradients in found:
            for one, more in zip(total, gradients, strict=True):
                one.add_(more)
        return total

    def _gradient(self, pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Gradients of one window."""
        x, wanted = pair
        loss = (self._block(x) - wanted).square().sum() / self._change
        return torch.autograd.grad(loss, list(self._weights.values()))

    def _step(self, gradients: Sequence[torch.Tensor], left: float) -> None:
        """Move all weights against their gradients, and round them anew."""
        rates = self._settings.rates
        now = Rates(rates.weight * left, rates.scale * left, rates.zero_point * left)

        def move(name: str, gradient: torch.Tensor) -> None:
            self._learned[name].step(gradient, now)
            self._learned[name].round_into(self._weights[name].data)

        list(self._pool.map(move, self._weights, gradients))

    def _round(self) -> None:
        for name, weight in self._weights.items():
            self._learned[name].round_into(weight.data)

    def _quantized(self) -> dict[str, QuantizedTensor]:
        return {name: learned.quantized() for name, learned in self._learned.items()}

    def _error(self) -> float:
        """Squared error on the windows kept apart."""
        return sum(self._pool.map(self._squared_error, map(self._tensors, self._windows.held)))

    @torch.no_grad()
    def _squared_error(self, pair: tuple[torch.Tensor, torch.Tensor]) -> float:
        x, wanted = pair
        return float((self._block(x) - wanted).square().sum())

    def _mean_change(self) -> float:
        """Mean square of what the block changes of an element: a loss in its units keeps away from tiny gradients."""
        sums = [float((y - x).square().mean()) for x, y in map(self._tensors, self._windows.train)]
        return sum(sums) / len(sums) or 1.0

    def _tensors(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A window as a batch of one."""
        x, wanted = self._windows.read(number)
        return torch.from_numpy(x)[None], torch.from_numpy(wanted)[None]


@contextmanager
def _single_threads() -> Iterator[None]:
    """Let torch use one thread for each call: how many there are would show in the last bits of a sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
