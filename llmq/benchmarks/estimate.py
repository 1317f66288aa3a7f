"""`llmq estimate`: what a run would give and take at several widths, from headers and a second of measuring."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from llmq.architectures import decoder_config
from llmq.benchmarks import machine
from llmq.checkpoint.source import select_copies
from llmq.errors import LlmqError, UsageError
from llmq.formats.fp8 import dequantized
from llmq.methods import METHODS
from llmq.plan import build_plan
from llmq.plan.goals import RUN_BYTES
from llmq.plan.recipes import make_recipe
from llmq.runtime.cache import kv_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llmq.architectures import DecoderConfig
    from llmq.checkpoint.source import Source
    from llmq.plan import Plan
    from llmq.spec import Recipe

__all__ = ["Estimates", "Option", "Rates", "Wishes", "estimate"]

_CONTEXT: Final = 4096
_START: Final = 1.5
"""Seconds of a process before and after its work."""

_TABLE: Final = "model.embed_tokens."


@dataclass(frozen=True)
class Wishes:
    """What is asked.

    Parameters
    ----------
    bits : tuple of int
        Widths to compare.
    group_size : int or None
        As for `llmq.quantize`.
    method : str
        One that needs no data.
    lm_head, embeddings : int or "keep", or None
        As for `llmq.quantize`.
    ram, context : int or None
        Bytes that a model shall run in; tokens that its cache shall hold.
    kv_bits : int
        Of an element of the cache.
    max_memory : int or None
        Bound on the memory of quantizing.
    """

    bits: tuple[int, ...] = (8, 4, 2)
    group_size: int | None = None
    method: str = "mse"
    lm_head: int | str | None = None
    embeddings: int | str = "keep"
    ram: int | None = None
    context: int | None = None
    kv_bits: int = 16
    max_memory: int | None = None


@dataclass(frozen=True)
class Rates:
    """What this machine was measured to do, a second.

    Parameters
    ----------
    source, disk, memory : float
        Bytes read of the source, written to the disk, and read from memory.
    weights : dict of int to float
        Weights quantized, by bits.
    far : bool
        Whether the source comes over a network, which waits for nothing else.
    """

    source: float
    disk: float
    memory: float
    weights: dict[int, float]
    far: bool


@dataclass(frozen=True)
class Option:
    """A width.

    Parameters
    ----------
    bits : int
    output_bytes : int
        Of all tensors.
    bits_per_weight : float
        Every byte of every tensor over all parameters.
    peak_bytes : int
        Anonymous memory of quantizing.
    disk_bytes : int
        Free disk that quantizing needs.
    download_bytes : int
        Bytes of weights that come over the network.
    seconds : float
        Of quantizing.
    run_bytes : int or None
        Memory of running it: weights, the cache of the context, and the process. None where llmq cannot run it.
    tokens_per_second : float or None
        At which memory is read as fast as it can be.
    fits : bool or None
        Whether `run_bytes` are within the memory that was asked for; None where none was.
    """

    bits: int
    output_bytes: int
    bits_per_weight: float
    peak_bytes: int
    disk_bytes: int
    download_bytes: int
    seconds: float
    run_bytes: int | None
    tokens_per_second: float | None
    fits: bool | None


@dataclass(frozen=True)
class Estimates:
    """All of it.

    Parameters
    ----------
    model : str
    parameters, source_bytes : int
    context : int or None
        Tokens that the cache is reckoned for.
    kv_bytes : int or None
        What they take.
    rates : Rates
    options : tuple of Option
    """

    model: str
    parameters: int
    source_bytes: int
    context: int | None
    kv_bytes: int | None
    rates: Rates
    options: tuple[Option, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        found = asdict(self)
        found["rates"]["weights"] = {str(bits): rate for bits, rate in self.rates.weights.items()}
        return found


@dataclass(frozen=True)
class _Costs:
    """What all widths share.

    Bytes of the source, of copied files and of the cache; the memory to run in; the part of experts that a token meets.
    """

    stored: int
    copies: int
    cache: int | None
    ram: int | None
    used: float


def estimate(source: Source, wishes: Wishes, output: Path, rate: Callable[[], Rates] | None = None) -> Estimates:
    """Reckon sizes, memory, time and speed of every width; no weight is read but what the rates are measured on.

    Sizes are those of the plan that `llmq quantize` would carry out. Time is what the kernels need for all weights and
    the disk for all bytes, with what reading a near source takes, or the network's time where that is longer. Speed is
    how often a second memory is read through all that a token needs: all tensors but an untied embedding table, and of
    experts as many as a token meets.

    Parameters
    ----------
    source : Source
    wishes : Wishes
    output : Path
        A folder on the disk that would be written to.
    rate : callable, optional
        Gives the rates, instead of `measure`.

    Raises
    ------
    UsageError
        Flags that do not fit each other, or a context longer than the model's.
    LlmqError
        What planning would raise.
    """
    if METHODS.get(wishes.method) is None or METHODS[wishes.method].needs != "nothing":
        free = [name for name, method in METHODS.items() if method.needs == "nothing"]
        raise UsageError("only methods without data can be estimated", expected="/".join(free), found=wishes.method)
    recipes = {bits: _recipe(wishes, bits) for bits in wishes.bits}
    plain = dequantized(source)
    plans = {bits: build_plan(plain, recipe, max_memory=wishes.max_memory) for bits, recipe in recipes.items()}
    config, context = _config(source), None
    if config is not None:
        context = _context(wishes, config)
    rates = measure(source, wishes, output) if rate is None else rate()
    cache = None if config is None or context is None else kv_bytes(config, context, wishes.kv_bits)
    first = next(iter(plans.values()))
    copies = sum(path.stat().st_size for path in select_copies(source)[0].values())
    stored = sum(info.nbytes for info in source.tensors.values())
    experts = None if config is None else config.experts
    used = 1.0 if experts is None else experts.used / experts.count
    costs = _Costs(stored, copies, cache, wishes.ram, used)
    options = tuple(_option(bits, plan, rates, costs) for bits, plan in plans.items())
    return Estimates(source.label, first.parameters, stored, context, cache, rates, options)


def measure(source: Source, wishes: Wishes, output: Path) -> Rates:
    """Measure the rates."""
    folder = next(path for path in (output.resolve(), *output.resolve().parents) if path.is_dir())
    weights = {bits: machine.quantize_rate(wishes.method, _recipe(wishes, bits).spec) for bits in wishes.bits}
    return Rates(
        source=machine.source_rate(source),
        disk=machine.disk_rate(folder),
        memory=machine.memory_rate(),
        weights=weights,
        far=source.in_file_order,
    )


def _recipe(wishes: Wishes, bits: int) -> Recipe:
    return make_recipe(
        bits=bits,
        group_size=wishes.group_size,
        method=wishes.method,
        lm_head=wishes.lm_head,
        embeddings=wishes.embeddings,
    )


def _config(source: Source) -> DecoderConfig | None:
    """How the model runs; None where llmq cannot run it."""
    try:
        return decoder_config(source.config)
    except LlmqError:
        return None


def _context(wishes: Wishes, config: DecoderConfig) -> int:
    longest = config.max_position_embeddings
    if wishes.context is not None and wishes.context > longest:
        raise UsageError("--context is longer than the model's", expected=f"at most {longest}", found=wishes.context)
    return wishes.context or min(_CONTEXT, longest)


def _option(bits: int, plan: Plan, rates: Rates, costs: _Costs) -> Option:
    quantized = sum(tensor.parameters for tensor in plan.quantized)
    work = quantized / rates.weights[bits] + plan.output_bytes / rates.disk
    reading = costs.stored / rates.source
    run = None if costs.cache is None else plan.output_bytes + costs.cache + RUN_BYTES
    return Option(
        bits=bits,
        output_bytes=plan.output_bytes,
        bits_per_weight=plan.bits_per_weight,
        peak_bytes=plan.predicted_peak_bytes,
        disk_bytes=plan.file_bytes + costs.copies,
        download_bytes=costs.stored if rates.far else 0,
        seconds=_START + (max(work, reading) if rates.far else work + reading),
        run_bytes=run,
        tokens_per_second=None if run is None else rates.memory / _bytes_per_token(plan, costs.used),
        fits=None if run is None or costs.ram is None else run <= costs.ram,
    )


def _bytes_per_token(plan: Plan, used: float) -> float:
    untied = any(tensor.name.startswith("lm_head.") for tensor in plan.tensors)
    read = (t for t in plan.tensors if not (untied and t.name.startswith(_TABLE)))
    return max(1.0, sum(t.output_bytes * (used if ".experts." in t.name else 1.0) for t in read))
