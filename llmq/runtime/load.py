"""`load`: a checkpoint to a `Model`, its weights memory-mapped."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from llmq.architectures import decoder_config
from llmq.checkpoint.manifest import MANIFEST, read_manifest
from llmq.checkpoint.mapped import MappedCheckpoint
from llmq.checkpoint.source import open_local
from llmq.errors import InputError, UnsupportedError, UsageError
from llmq.formats import FORMATS
from llmq.formats.schemes import QUANT_METHOD, quantization_section
from llmq.runtime.assemble import assemble_decoder
from llmq.runtime.linear import Compute
from llmq.runtime.model import Model
from llmq.runtime.stops import stop_tokens
from llmq.runtime.weights import Weights

if TYPE_CHECKING:
    from pathlib import Path

    from llmq.checkpoint.source import Source

__all__ = ["load"]


def load(
    path: str | Path, *, compute: Compute = "int8", kv_bits: int | None = None, revision: str | None = None
) -> Model:
    """Load a checkpoint to run it: one that llmq wrote, another compressed-tensors one, or an unquantized one.

    Weights are memory-mapped and used from there: loading reads little but headers, and takes next to no memory. Only
    the zero points of asymmetric checkpoints are unpacked, to a byte for each group: about 100 MB for 7 billion weights
    in groups of 64.

    Parameters
    ----------
    path : str or Path
        A folder, or `org/name[@revision]` on the Hub.
    compute : {"int8", "float32"}
        Whether packed layers quantize activations to int8 on the fly (faster) or keep them exact. Layers that are not
        quantized always compute in float32.
    kv_bits : {32, 16, 8}, optional
        Bits of an element of the key-value caches: float32, bfloat16, or 8-bit integers with a scale for each token
        and head. Left out it is 16, and 32 where `compute` is "float32".
    revision : str, optional
        Branch, tag or commit of a Hub repository.

    Returns
    -------
    Model

    Raises
    ------
    UsageError
        An unknown `compute` or `kv_bits`.
    InputError
        Files missing, corrupt or unfinished; an output of llmq without its manifest; tensors missing, left over or of
        the wrong shape.
    UnsupportedError
        An architecture or a quantization that llmq cannot run.
    NetworkError
        The Hub could not be reached, or refused.
    """
    if compute not in get_args(Compute):
        raise UsageError("unknown compute", expected=" or ".join(get_args(Compute)), found=compute)
    with open_local(path, revision=revision) as source:
        if source.config:
            _check_finished(source)
        config = decoder_config(source.config)
        native = FORMATS[QUANT_METHOD]
        schemes = native.read_schemes(source.config)
        method = None if schemes else native.already_quantized(source.config, source.tensors)
        # Tensors packed by compressed-tensors without a section for them are missed where they are taken.
        if method and method != QUANT_METHOD:
            raise UnsupportedError(f"quantized by {method}, which llmq does not read", file=source.label)
        mapped = MappedCheckpoint(source)
        weights = Weights(mapped, schemes, compute)
        decoder = assemble_decoder(config, weights)
        weights.check_all_taken()
        total = sum(info.nbytes for info in source.tensors.values())
        return Model(
            decoder,
            folder=source.folder,
            compute=compute,
            bits_per_weight=8.0 * total / weights.elements,
            stop_tokens=stop_tokens(source.folder, source.config),
            kv_bits=kv_bits,
            mapped=mapped,
        )


def _check_finished(source: Source) -> None:
    """Raise InputError unless a manifest says that all files of an output of ours are there and whole."""
    ours = "llmq" in (quantization_section(source.config) or {})
    if read_manifest(source.folder) is None and ours:
        raise InputError(
            f"written by llmq, but {MANIFEST} is missing",
            file=source.label,
            hint="copy the finished folder whole, or run `llmq quantize` again",
        )
