"""`llmq bench generate`: a model end to end, reading prompts and making tokens."""

from __future__ import annotations

import logging
import statistics
import tempfile
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from llmq.benchmarks import stages
from llmq.benchmarks.child import python
from llmq.benchmarks.files import StreamedWeights
from llmq.benchmarks.rows import Row, Table
from llmq.benchmarks.timing import take_turns, use_threads
from llmq.checkpoint.source import open_local
from llmq.errors import UsageError
from llmq.formats import FORMATS
from llmq.formats.schemes import QUANT_METHOD
from llmq.runtime import load
from llmq.runtime.cache import kv_bytes
from llmq.system.progress import NullProgress
from llmq_kernels.jit import threads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llmq.benchmarks.timing import Timing
    from llmq.runtime import Model
    from llmq.runtime.cache import KVCache
    from llmq.system.progress import Progress

__all__ = ["GenerateSettings", "Session", "bench_generate", "width_of"]

_log = logging.getLogger("llmq")

_TOKENS: Final = 8
"""Tokens made in one run."""

_PIECE: Final = 256
"""Tokens read between two signs of progress."""


@dataclass(frozen=True)
class GenerateSettings:
    """What is measured.

    Parameters
    ----------
    prompts : tuple of int
        Tokens of the prompts.
    contexts : tuple of int
        Tokens in the cache, at most, when more are made.
    threads : tuple of int
    compute : {"int8", "float32"}
    kv_bits : {32, 16, 8, 4}, optional
        Of an element of the cache; see `llmq.load`.
    runs : int
        Each figure is the median of so many.
    start : bool
        Whether to start processes too, with an empty cache of kernels and with a full one.
    """

    prompts: tuple[int, ...] = (128, 512)
    contexts: tuple[int, ...] = (64, 4096)
    threads: tuple[int, ...] = (1,)
    compute: Literal["int8", "float32"] = "int8"
    kv_bits: int | None = None
    runs: int = 5
    start: bool = False


class Session:
    """A loaded model that reads prompts and makes tokens at any context.

    Parameters
    ----------
    model : str or Path
    compute : {"int8", "float32"}
    kv_bits : {32, 16, 8, 4}, optional
    """

    def __init__(
        self, model: str | Path, compute: Literal["int8", "float32"] = "int8", kv_bits: int | None = None
    ) -> None:
        self.model: Model = load(model, compute=compute, kv_bits=kv_bits)
        # One for each context: a shorter one would cost what a longer one has read.
        self._caches: dict[int, KVCache] = {}

    @property
    def cache_bytes(self) -> float:
        """Bytes of keys and values of one token."""
        return kv_bytes(self.model.config, 1, self.model.kv_bits)

    def prefill(self, tokens: int) -> float:
        """Read a prompt into an empty cache; seconds until the first token is there."""
        generation = self.model.generate(self._ids(tokens), max_tokens=1, stop_tokens=())
        list(generation)
        return generation.prompt_seconds

    def decode(self, context: int, tokens: int = _TOKENS) -> float:
        """Make tokens, the last of which fills the cache to `context`; seconds for all of them."""
        cache = self.fill(context, context - tokens - 1)
        cache.truncate(context - tokens - 1)
        generation = self.model.generate([1], max_tokens=tokens + 1, stop_tokens=(), cache=cache)
        list(generation)
        return generation.seconds

    def fill(self, context: int, length: int, done: Callable[[int], None] = lambda _: None) -> KVCache:
        """Read tokens until the cache of a context holds at least `length`; tell `done` how many were read."""
        cache = self._caches.setdefault(context, self.model.new_cache())
        while cache.length < length:
            piece = min(_PIECE, length - cache.length)
            self.model.last_logits(self._ids(piece), cache)
            done(piece)
        return cache

    def _ids(self, count: int) -> list[int]:
        size = self.model.config.vocab_size
        return [i * 7919 % size for i in range(1, count + 1)]


def bench_generate(model: str | Path, settings: GenerateSettings, progress: Progress | None = None) -> Table:
    """Time a model and, in turn with it, how fast its weights are read by a kernel that only loads.

    Parameters
    ----------
    model : str or Path
    settings : GenerateSettings
        Prompts and contexts longer than the model's are left out, with a warning.
    progress : Progress, optional

    Raises
    ------
    UsageError
        Nothing that fits the model, or more threads than there are.
    LlmqError
        The model cannot be loaded.
    """
    progress = progress or NullProgress()
    session = Session(model, settings.compute, settings.kv_bits)
    prompts = _fitting("prompt", settings.prompts, session.model.context, least=1)
    contexts = _fitting("context", settings.contexts, session.model.context, least=_TOKENS + 2)
    if not prompts and not contexts:
        raise UsageError("nothing to measure: the model's context is too short", file=model)
    use_threads(max(settings.threads))
    progress.start("filling the caches", sum(n - _TOKENS - 1 for n in contexts), "tokens")
    for n in contexts:
        session.fill(n, n - _TOKENS - 1, progress.advance)
    tasks = len(settings.threads) * (1 + len(prompts) + len(contexts))
    progress.start("timing", (settings.runs + 1) * tasks, "runs")
    weights, rows = StreamedWeights(model), []
    for count in settings.threads:
        use_threads(count)
        rows += _rows(session, weights, (prompts, contexts), settings.runs, progress)
    progress.finish()
    if settings.start:
        rows += _start_rows(str(model), settings.runs, progress)
    bits, group_size = width_of(model)
    rows = [replace(row, bits=bits, group_size=group_size) for row in rows]
    return Table("generate", asdict(settings) | {"model": str(model)}, rows)


def _fitting(what: str, asked: tuple[int, ...], context: int | None, least: int) -> tuple[int, ...]:
    fitting = tuple(n for n in asked if n >= least and (context is None or n <= context))
    for n in sorted(set(asked) - set(fitting)):
        _log.warning("left out: a %s of %d tokens does not fit (%d to %s)", what, n, least, context)
    return fitting


def _rows(
    session: Session,
    weights: StreamedWeights,
    lengths: tuple[tuple[int, ...], tuple[int, ...]],
    runs: int,
    progress: Progress,
) -> list[Row]:
    """Measure everything with the present number of threads."""
    prompts, contexts = lengths
    tasks: dict[str, Any] = {"limit": weights.read}
    for n in prompts:
        tasks[f"prefill {n}"] = lambda n=n: session.prefill(n)
    for n in contexts:
        tasks[f"decode at {n}"] = lambda n=n: session.decode(n)
    timings = take_turns(tasks, runs, lambda: progress.advance(1))
    limit = weights.nbytes / timings["limit"].seconds
    rows = [_row(f"prefill {n}", n, timings[f"prefill {n}"], None, limit) for n in prompts]
    for n in contexts:
        nbytes = _TOKENS * (weights.nbytes + n * session.cache_bytes)
        rows.append(_row(f"decode at {n}", 1, timings[f"decode at {n}"], nbytes, limit))
    return rows


def _row(name: str, tokens: int, timing: Timing, nbytes: float | None, limit: float) -> Row:
    """Row of a task: one prompt, or `_TOKENS` times one token, which read `nbytes` in all."""
    count = tokens if nbytes is None else _TOKENS
    return Row(
        name=name,
        threads=threads(),
        tokens=tokens,
        seconds=timing.seconds * tokens / count,
        bytes_per_second=None if nbytes is None else nbytes / timing.seconds,
        limit_bytes_per_second=limit,
        tokens_per_second=count / timing.seconds,
        # The token that begins a run of decoding takes no time that counts, but as much energy as any.
        joules_per_token=None if timing.joules is None else timing.joules / (count + (nbytes is not None)),
    )


def _start_rows(model: str, runs: int, progress: Progress) -> list[Row]:
    """Start processes with an empty cache of kernels, once, and with a full one, `runs` times."""
    progress.start("starting processes", runs + 1, "runs")
    rows = []
    with tempfile.TemporaryDirectory(prefix="llmq-") as cache:
        environment = {"LLMQ_CACHE_DIR": cache, "NUMBA_NUM_THREADS": str(threads())}
        for kind, count in (("cold", 1), ("warm", runs)):
            taken = []
            for _ in range(count):
                taken.append(python("-m", stages.__name__, model, "8", "8", environment=environment))
                progress.advance(1)
            for name, last in (("first matmul", 1), ("first token", 3)):
                seconds = statistics.median(
                    sum(run[stage]["seconds"] for stage in stages.STAGES[:last]) for run in taken
                )
                rows.append(Row(name=f"{kind} start to {name}", threads=threads(), seconds=seconds))
    progress.finish()
    return rows


def width_of(model: str | Path) -> tuple[int | None, int | None]:
    """Bits and group size of a model's linears, those of its first block speaking for all; None if not quantized."""
    with open_local(model) as source:
        schemes = FORMATS[QUANT_METHOD].read_schemes(source.config)
        module = "model.layers.0.mlp.down_proj"
        if schemes is None or f"{module}.weight_packed" not in source.tensors:
            return None, None
        spec = schemes.scheme(module)
        return spec.bits, spec.group_size
