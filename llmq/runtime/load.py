"""`load`: a checkpoint to a `Model`, its weights memory-mapped."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, get_args

from llmq.architectures import decoder_config
from llmq.checkpoint.manifest import MANIFEST, read_manifest
from llmq.checkpoint.mapped import MappedCheckpoint
from llmq.checkpoint.source import open_local
from llmq.checkpoint.streamed import StreamedCheckpoint
from llmq.errors import InputError, ResourceError, UnsupportedError, UsageError
from llmq.formats import FORMATS
from llmq.formats.schemes import QUANT_METHOD, quantization_section
from llmq.runtime.assemble import assemble_decoder
from llmq.runtime.held import Held, Presence, open_reader
from llmq.runtime.linear import Compute
from llmq.runtime.model import Model
from llmq.runtime.residency import Room, plan_residency
from llmq.runtime.stops import stop_tokens
from llmq.runtime.weights import Weights
from llmq.system.cpus import keep_to_quota
from llmq.system.sizes import format_size
from llmq_kernels.jit import has_run
from llmq_kernels.keyvalues import KV_BITS

if TYPE_CHECKING:
    from pathlib import Path

    from llmq.architectures import DecoderConfig
    from llmq.checkpoint.source import FolderSource, Source
    from llmq.formats.compressed_tensors import Schemes
    from llmq.runtime.residency import Residency

__all__ = ["load", "load_mapped"]

_log = logging.getLogger("llmq")

_CONTEXT: Final = 4096


def load(
    path: str | Path,
    *,
    compute: Compute = "int8",
    kv_bits: int | None = None,
    revision: str | None = None,
    max_memory: int | None = None,
    context: int | None = None,
    mlock: bool = False,
) -> Model:
    """Load a checkpoint to run it: one that llmq wrote, another compressed-tensors one, or an unquantized one.

    Weights are memory-mapped and used from there: loading reads little but headers, and takes next to no memory. Only
    the zero points of asymmetric checkpoints are unpacked, to a byte for each group: about 100 MB for 7 billion weights
    in groups of 64. Where all of it is more than memory holds, as many decoder blocks as fit are read now and stay, and
    the others are read anew for every pass, ahead of their use.

    Files must stay as they are while the model is in use: the system ends a process (SIGBUS) that touches what was cut
    off a mapped file, and no program can prevent that. Replace a file by renaming another to its name, as llmq does.

    Parameters
    ----------
    path : str or Path
        A folder, or `org/name[@revision]` on the Hub.
    compute : {"int8", "float32"}
        Whether packed layers quantize activations to int8 on the fly (faster) or keep them exact. Layers that are not
        quantized always compute in float32.
    kv_bits : {32, 16, 8, 4}, optional
        Bits of an element of the key-value caches: float32, bfloat16, or integers of 8 or 4 bits with a scale for each
        token and head. Left out it is 16, and 32 where `compute` is "float32".
    revision : str, optional
        Branch, tag or commit of a Hub repository.
    max_memory : int, optional
        Bytes that anonymous memory and resident mapped weights may take together; by default what the machine has free.
    context : int, optional
        Tokens that the cache has room for within that; with `max_memory`, texts become no longer. By default 4096, or
        the model's own where that is less.
    mlock : bool
        Read all weights that stay now, and have the system keep them in memory.

    Returns
    -------
    Model

    Raises
    ------
    UsageError
        An unknown `compute` or `kv_bits`, or a `max_memory` or `context` that is not positive.
    ResourceError
        It does not run within `max_memory`, or memory cannot be locked.
    InputError
        Files missing, corrupt or unfinished; an output of llmq without its manifest; tensors missing, left over or of
        the wrong shape.
    UnsupportedError
        An architecture or a quantization that llmq cannot run.
    NetworkError
        The Hub could not be reached, or refused.
    """
    for name, value in {"max_memory": max_memory, "context": context}.items():
        if value is not None and value < 1:
            raise UsageError(f"{name} must be positive", found=value)

    return _load(path, compute, kv_bits, revision, _Wishes(max_memory, context, mlock))


def load_mapped(path: str | Path, *, compute: Compute = "int8", kv_bits: int | None = None) -> Model:
    """Load a checkpoint for work that itself takes a block at a time: all is mapped, and nothing is read ahead.

    Parameters and errors are those of `load`.
    """
    return _load(path, compute, kv_bits, None, None)


@dataclass(frozen=True)
class _Wishes:
    """What memory is asked for; see `load`."""

    max_memory: int | None
    context: int | None
    mlock: bool


@dataclass(frozen=True)
class _Opened:
    """What the files say, and how they are to run; `work` tells the kernels apart that they need, by and large."""

    config: DecoderConfig
    schemes: Schemes | None
    kv_bits: int
    work: str


def _load(
    path: str | Path, compute: Compute, kv_bits: int | None, revision: str | None, wishes: _Wishes | None
) -> Model:
    """Load a model whose weights are where memory allows, or all mapped where there are no wishes."""
    if compute not in get_args(Compute):
        raise UsageError("unknown compute", expected=" or ".join(get_args(Compute)), found=compute)
    if kv_bits not in (None, *KV_BITS):
        raise UsageError("unknown kv_bits", expected="32, 16, 8 or 4", found=kv_bits)
    keep_to_quota()
    with open_local(path, revision=revision) as source:
        found = _open(source, compute, kv_bits or (32 if compute == "float32" else 16))
        residency = None if wishes is None else _residency(source, found, wishes)
        mapped = MappedCheckpoint(source)
        reader = None if residency is None or not residency.streamed else open_reader(source, residency)
        try:
            weights = Weights(mapped if reader is None else StreamedCheckpoint(mapped, reader), found.schemes, compute)
            decoder = assemble_decoder(found.config, weights, Presence.of(residency, mapped, reader))
            weights.check_all_taken()
            _settle(mapped, residency, mlock=wishes is not None and wishes.mlock)
        except BaseException:
            if reader is not None:
                reader.close()
            raise
        total = sum(info.nbytes for info in source.tensors.values())
        limited = wishes is not None and wishes.max_memory is not None
        return Model(
            decoder,
            folder=source.folder,
            compute=compute,
            bits_per_weight=8.0 * total / weights.elements,
            stop_tokens=stop_tokens(source.folder, source.config),
            kv_bits=found.kv_bits,
            held=Held(mapped, residency, reader, residency.room.tokens if residency and limited else None),
            work=found.work,
        )


def _open(source: FolderSource, compute: Compute, kv_bits: int) -> _Opened:
    """Read what the configuration says of a checkpoint."""
    if source.config:
        _check_finished(source)
    config = decoder_config(source.config)
    native = FORMATS[QUANT_METHOD]
    schemes = native.read_schemes(source.config)
    method = None if schemes else native.already_quantized(source.config, source.tensors)
    # Tensors packed by compressed-tensors without a section for them are missed where they are taken.
    if method and method != QUANT_METHOD:
        raise UnsupportedError(f"quantized by {method}, which llmq does not read", file=source.label)
    dtypes = sorted({info.dtype for info in source.tensors.values()})
    features = (config.model_type, config.head_dim, config.qk_norm, config.experts is None, compute, kv_bits, dtypes)
    work = f"run {features} {quantization_section(source.config)}"
    return _Opened(config, schemes, kv_bits, work)


def _residency(source: FolderSource, opened: _Opened, wishes: _Wishes) -> Residency | None:
    """Decide what stays in memory; None where nothing can be decided and nothing was asked for."""
    tokens = min(wishes.context or _CONTEXT, opened.config.max_position_embeddings)
    room = Room.here(wishes.max_memory, tokens, opened.kv_bits, compiled=has_run(opened.work))
    try:
        found = plan_residency(source.tensors, opened.config, room)
    except ResourceError:
        if wishes.max_memory is not None:
            raise
        _log.warning("this machine seems to have too little free memory for the model: it may be very slow")
        return None
    if wishes.max_memory is not None:
        return found
    if found.expert_bytes is not None:
        _log.warning("not all experts fit into free memory: %s of them stay", format_size(found.expert_bytes))
    if found.streamed:
        _log.warning(
            "%d of %d blocks do not fit into free memory: %s are read for every pass through the model",
            len(found.streamed),
            found.layers,
            format_size(found.streamed_bytes),
        )
    return found


def _settle(mapped: MappedCheckpoint, residency: Residency | None, *, mlock: bool) -> None:
    """Bring what stays into memory, where it is known to fit and not all there is."""
    limited = residency is not None and (residency.streamed or residency.expert_bytes is not None)
    if not (limited or mlock):
        return
    names = mapped.source.tensors if residency is None else residency.staying(mapped.source.tensors)
    if mlock:
        mapped.lock(names)
    else:
        mapped.release()
        mapped.populate(names)


def _check_finished(source: Source) -> None:
    """Raise InputError unless a manifest says that all files of an output of ours are there and whole."""
    ours = "llmq" in (quantization_section(source.config) or {})
    if read_manifest(source.folder) is None and ours:
        raise InputError(
            f"written by llmq, but {MANIFEST} is missing",
            file=source.label,
            hint="copy the finished folder whole, or run `llmq quantize` again",
        )
