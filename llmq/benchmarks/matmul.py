"""`llmq bench matmul`: the packed matmul alone, on weights that come from memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from llmq.benchmarks.rows import Row, Table
from llmq.benchmarks.timing import take_turns, use_threads
from llmq.benchmarks.weights import Packing, RandomWeights
from llmq.errors import UsageError
from llmq.system.progress import NullProgress
from llmq_kernels.bandwidth import checksum
from llmq_kernels.matmul import matmul

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmq.system.progress import Progress
    from llmq_kernels.layout import PackedMatrix

__all__ = ["MatmulSettings", "Rotation", "bench_matmul"]

_PRODUCTS: Final = 40_000_000_000
"""Multiplications of one run: a good part of a second."""


@dataclass(frozen=True)
class MatmulSettings:
    """What is measured: every combination of bits, group size, tokens and threads.

    Parameters
    ----------
    bits, group_sizes, tokens, threads : tuple of int
    shape : (int, int)
        Rows and columns of a matrix (`out_features`, `in_features`).
    symmetric : bool
    scale_dtype : {"float16", "bfloat16", "float32"}
    compute : {"int8", "float32"}
        Of the activations.
    runs : int
        Each figure is the median of so many.
    working_set : int
        Bytes of weights that are gone through in turn.
    """

    bits: tuple[int, ...] = (8, 4, 2)
    group_sizes: tuple[int, ...] = (32, 64, 128)
    tokens: tuple[int, ...] = (1, 128, 512)
    threads: tuple[int, ...] = (1,)
    shape: tuple[int, int] = (4096, 11008)
    symmetric: bool = True
    scale_dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    compute: Literal["int8", "float32"] = "int8"
    runs: int = 5
    working_set: int = 1_200_000_000


class Rotation:
    """A task that multiplies by the next matrices of many: each run finds the weights in memory, not in a cache.

    Parameters
    ----------
    matrices : list of PackedMatrix
        All of one shape.
    tokens : int
    compute : {"int8", "float32"}

    Attributes
    ----------
    count : int
        Matrices of one run.
    """

    def __init__(self, matrices: list[PackedMatrix], tokens: int, compute: Literal["int8", "float32"]) -> None:
        first = matrices[0]
        self._matrices, self._compute, self._next = matrices, compute, 0
        self.count = max(1, min(len(matrices), _PRODUCTS // (tokens * first.rows * first.columns)))
        self._x = np.random.default_rng(0).standard_normal((tokens, first.columns), np.float32)
        self._out = np.zeros((tokens, first.rows), np.float32)

    def __call__(self) -> None:
        """Run once."""
        for _ in range(self.count):
            matmul(self._x, self._matrices[self._next], compute=self._compute, out=self._out)
            self._next = (self._next + 1) % len(self._matrices)


def bench_matmul(settings: MatmulSettings, progress: Progress | None = None) -> Table:
    """Time the packed matmul and, in turn with it, how fast the same bytes are read by a kernel that only loads.

    Parameters
    ----------
    settings : MatmulSettings
    progress : Progress, optional

    Raises
    ------
    UsageError
        A group size that does not divide the columns, a width out of range, or more threads than there are.
    ResourceError
        Not enough memory for the working set.
    """
    _check(settings)
    progress = progress or NullProgress()
    weights = RandomWeights(settings.working_set)
    packings = [
        Packing(bits, group_size, settings.symmetric, settings.scale_dtype)
        for bits in settings.bits
        for group_size in settings.group_sizes
    ]
    cases = len(packings) * len(settings.tokens) * len(settings.threads)
    progress.start("timing matmul", cases * 2 * (settings.runs + 1), "runs")
    rows: list[Row] = []
    for packing in packings:
        data, matrices = weights.cut(settings.shape, packing)
        rows += _rows(settings, packing, data, matrices, lambda: progress.advance(1))
    progress.finish()
    return Table("matmul", asdict(settings), rows)


def _check(settings: MatmulSettings) -> None:
    for group_size in settings.group_sizes:
        if settings.shape[1] % group_size:
            raise UsageError(f"group size {group_size} does not divide {settings.shape[1]} columns")
    for threads in settings.threads:
        use_threads(threads)


def _rows(
    settings: MatmulSettings,
    packing: Packing,
    data: np.ndarray,
    matrices: list[PackedMatrix],
    done: Callable[[], None],
) -> Iterator[Row]:
    """Measure one packing with all numbers of threads and tokens."""
    matrix_bytes = sum(packing.sizes(settings.shape))
    products = settings.shape[0] * settings.shape[1]
    for threads in settings.threads:
        use_threads(threads)
        for tokens in settings.tokens:
            work = Rotation(matrices, tokens, settings.compute)
            tasks: dict[str, Any] = {"limit": _reading(data), "matmul": work}
            timings = take_turns(tasks, settings.runs, done)
            seconds = timings["matmul"].seconds / work.count
            joules = timings["matmul"].joules
            yield Row(
                name=packing.name,
                threads=threads,
                seconds=seconds,
                bits=packing.bits,
                group_size=packing.group_size,
                tokens=tokens,
                bytes_per_second=matrix_bytes / seconds,
                limit_bytes_per_second=data.size / timings["limit"].seconds,
                tokens_per_second=tokens / seconds,
                operations_per_second=2 * products * tokens / seconds,
                joules_per_token=None if joules is None else joules / (work.count * tokens),
            )


def _reading(data: np.ndarray) -> Callable[[], None]:
    def read() -> None:
        checksum(data)

    return read
