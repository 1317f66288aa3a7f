"""`llmq estimate`: what a run would give and take at several widths, from headers and a second of measuring."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from llmq.architectures import decoder_config
from llmq.benchmarks import machine
from llmq.checkpoint.header import TensorInfo
from llmq.checkpoint.source import select_copies
from llmq.errors import LlmqError, ResourceError, UsageError
from llmq.formats.fp8 import dequantized
from llmq.methods import METHODS
from llmq.plan import build_plan
from llmq.plan.goals import RUN_BYTES
from llmq.plan.recipes import make_recipe
from llmq.runtime.cache import kv_bytes
from llmq.runtime.residency import Room, plan_residency
from llmq_kernels.jit import threads

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

_ENOUGH: Final = 1 << 62
"""Bytes of memory in which everything fits."""

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
    source, disk, stream, memory : float
        Bytes read of the source, written to the disk, read from the disk past its cache, and read from memory.
    weights : dict of int to float
        Weights quantized, by bits.
    processor : float
        Seconds of all processors together that reading a byte of the source takes from the kernels.
    far : bool
        Whether the source comes over a network, which waits for nothing else.
    """

    source: float
    disk: float
    stream: float
    memory: float
    weights: dict[int, float]
    processor: float
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
        At which memory, or the disk for what does not fit into it, is read as fast as it can be; None also where it
        does not run in the memory that was asked for.
    fits : bool or None
        Whether `run_bytes` are within the memory that was asked for; None where none was.
    blocks, resident_blocks : int or None
        Decoder blocks, and those of them that stay in that memory; 0 where it does not run there at all.
    streamed_bytes : int or None
        Bytes that are read from the disk for every token; of experts, on average.
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
    blocks: int | None = None
    resident_blocks: int | None = None
    streamed_bytes: int | None = None


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

    Bytes of the source and of copied files; the part of experts that a token meets; what the model is to run in, its
    configuration.
    """

    stored: int
    copies: int
    used: float
    room: Room | None
    config: DecoderConfig | None


def estimate(source: Source, wishes: Wishes, output: Path, rate: Callable[[], Rates] | None = None) -> Estimates:
    """Reckon sizes, memory, time and speed of every width; no weight is read but what the rates are measured on.

    Sizes are those of the plan that `llmq quantize` would carry out. Time is what the kernels need for all weights and
    the disk for all bytes, with what reading takes of the processors, or the network's time where that is longer.

    Speed is how often a second memory is read through all that a token needs: all tensors but an untied embedding
    table, and of experts as many as a token meets. Where not all of it stays in the memory that is asked for, it is how
    often the disk is read through the blocks that do not.

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
    room = None if context is None else Room(wishes.ram or _ENOUGH, context, wishes.kv_bits, RUN_BYTES)
    costs = _Costs(stored, copies, used, room, config)
    options = tuple(_option(bits, plan, rates, costs) for bits, plan in plans.items())
    return Estimates(source.label, first.parameters, stored, context, cache, rates, options)


def measure(source: Source, wishes: Wishes, output: Path) -> Rates:
    """Measure the rates."""
    folder = next(path for path in (output.resolve(), *output.resolve().parents) if path.is_dir())
    weights = {bits: machine.quantize_rate(wishes.method, _recipe(wishes, bits).spec) for bits in wishes.bits}
    rate, spent = machine.source_rates(source)
    return Rates(
        source=rate,
        disk=machine.disk_rate(folder),
        stream=machine.stream_rate(folder),
        memory=machine.memory_rate(),
        weights=weights,
        processor=spent / threads(),
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
    option = Option(
        bits=bits,
        output_bytes=plan.output_bytes,
        bits_per_weight=plan.bits_per_weight,
        peak_bytes=plan.predicted_peak_bytes,
        disk_bytes=plan.file_bytes + costs.copies,
        download_bytes=costs.stored if rates.far else 0,
        seconds=_START + (max(work + costs.stored * rates.processor, reading) if rates.far else work + reading),
        run_bytes=None,
        tokens_per_second=None,
        fits=None,
    )
    room, config = costs.room, costs.config
    if room is None or config is None:
        return option
    tensors = _outputs(plan)
    whole = plan_residency(tensors, config, replace(room, limit=_ENOUGH))
    option = replace(option, run_bytes=whole.peak_bytes, blocks=whole.layers, resident_blocks=0, fits=False)
    try:
        found = plan_residency(tensors, config, room)
    except ResourceError:
        return option
    needed = _bytes_per_token(plan, costs.used) / rates.memory
    streamed = found.streamed_bytes
    if found.expert_bytes is not None:
        # Of the experts that a token meets, as many are in memory as of all.
        experts = sum(t.output_bytes for t in plan.tensors if ".experts." in t.name)
        streamed = round(costs.used * max(0, experts - found.expert_bytes))
    return replace(
        option,
        tokens_per_second=1 / max(needed, streamed / rates.stream),
        fits=(not found.streamed and found.expert_bytes is None) if room.limit < _ENOUGH else None,
        resident_blocks=found.layers - len(found.streamed),
        streamed_bytes=streamed,
    )


def _outputs(plan: Plan) -> dict[str, TensorInfo]:
    """Tensors of the output, where they would stand."""
    return {
        tensor.name: TensorInfo(
            tensor.name, tensor.dtype, tensor.shape, shard.file, shard.offsets[tensor.name], tensor.nbytes
        )
        for shard in plan.shards
        for tensor in shard.tensors
    }


def _bytes_per_token(plan: Plan, used: float) -> float:
    untied = any(tensor.name.startswith("lm_head.") for tensor in plan.tensors)
    read = (t for t in plan.tensors if not (untied and t.name.startswith(_TABLE)))
    return max(1.0, sum(t.output_bytes * (used if ".experts." in t.name else 1.0) for t in read))
