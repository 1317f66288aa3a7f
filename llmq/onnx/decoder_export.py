"""`export_decoder`: a checkpoint as an ONNX graph that computes from the checkpoint's own files."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import llmq
from llmq.architectures import decoder_config
from llmq.checkpoint.source import open_local
from llmq.errors import UnsupportedError, UsageError, VerificationError
from llmq.onnx.decoder import OPSET, Logits, decoder_model
from llmq.onnx.decoder_check import CHECKED_TOKENS, LIMITS, Agreement, agreement, check_file, has_onnxruntime
from llmq.onnx.decoder_files import checkpoint_files, copy, refuse_links, same_content
from llmq.onnx.decoder_graph import Graph
from llmq.onnx.decoder_linear import Modules
from llmq.onnx.external import OwnData
from llmq.onnx.matmul_nbits import Compute, has_fast_kernel
from llmq.onnx.output_files import Staged, check_room, data_path, refuse_output
from llmq.onnx.values import described
from llmq.runtime.load import load_mapped
from llmq.system.progress import NullProgress

if TYPE_CHECKING:
    from onnx import ModelProto

    from llmq.checkpoint.source import FolderSource
    from llmq.runtime.model import Model
    from llmq.system.progress import Progress

__all__ = ["ExportedDecoder", "export_decoder"]

_log = logging.getLogger("llmq")

_NO_COPY: Final = "export into the checkpoint's own folder: its weights are used from there, without a copy"

_CHECKED: Final = 1 << 30
"""Bytes of weights up to which a graph is run once without being asked for."""


@dataclass(frozen=True)
class ExportedDecoder:
    """What was written.

    Parameters
    ----------
    output : Path
        The graph.
    files : dict of str to int
        Bytes of the graph and of all files that it needs beside it, by name.
    copied : tuple of str
        Names of the checkpoint's files that were put beside the graph; none where it stands among them.
    compute : {"int8", "float32"}
        How it multiplies activations by packed weights.
    inputs, outputs : tuple of dict
        `name`, `dtype` and `shape` of each; a length that varies is a word.
    agreement : Agreement or None
        With llmq; None where it was not checked.
    opset : int
        Version of the standard operators.
    """

    output: Path
    files: dict[str, int]
    copied: tuple[str, ...]
    compute: Compute
    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[dict[str, Any], ...]
    agreement: Agreement | None
    opset: int = OPSET

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` shows."""
        return {
            "output": str(self.output),
            "files": [{"name": name, "bytes": size} for name, size in self.files.items()],
            "copied": list(self.copied),
            "compute": self.compute,
            "opset": self.opset,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "check": None if self.agreement is None else self.agreement.to_json(),
        }


@dataclass(frozen=True)
class _Wishes:
    """See `export_decoder`."""

    compute: Compute
    logits: Logits
    overwrite: bool
    check: bool | None


def export_decoder(
    model: str | Path,
    output: str | Path,
    *,
    compute: Compute = "int8",
    logits: Logits = "all",
    overwrite: bool = False,
    check: bool | None = None,
    revision: str | None = None,
    progress: Progress | None = None,
) -> ExportedDecoder:
    """Write a checkpoint as an ONNX graph, with names of inputs and outputs as Optimum has them.

    The graph computes from the bytes of the checkpoint's safetensors files. In another folder than theirs it gets
    copies, and those of the configuration and the tokenizer: ONNX Runtime reads no weights from elsewhere. Nothing is
    in its place before all is, and the graph comes last.

    Parameters
    ----------
    model : str or Path
        A folder, or `org/name[@revision]` on the Hub; packed by llmq or another compressed-tensors writer, or dense.
    output : str or Path
        The graph, `*.onnx`, or a folder for `model.onnx`.
    compute : {"int8", "float32"}
        Whether products with packed weights quantize activations to int8 (faster) or keep them exact.
    logits : {"all", "last"}
        Of every token of a call, or of the last only, which spares a long prompt a large matrix.
    overwrite : bool
        Whether files that are there may be replaced.
    check : bool, optional
        Whether ONNX Runtime runs the graph beside llmq before it is put in place; by default where it is installed and
        the weights are smaller than 1 GiB.
    revision : str, optional
        Branch, tag or commit of a Hub repository.
    progress : Progress, optional

    Returns
    -------
    ExportedDecoder

    Raises
    ------
    UsageError
        Unknown choices, files in the way, or weights that are links.
    InputError
        A checkpoint that is unsound.
    UnsupportedError
        An architecture or a quantization that has no such graph.
    ResourceError
        The disk has no room for it.
    VerificationError
        The graph is not sound, or does not compute what llmq computes; nothing is in its place then.
    NetworkError
        The Hub could not be reached, or refused.
    """
    for name, value, known in (("compute", compute, get_args(Compute)), ("logits", logits, get_args(Logits))):
        if value not in known:
            raise UsageError(f"unknown {name}", expected=" or ".join(known), found=value)
    if check and not has_onnxruntime():
        raise UsageError("a check needs the package onnxruntime", hint='pip install "numba-llmq[onnx]"')
    path = Path(output) / "model.onnx" if Path(output).is_dir() else Path(output)
    refuse_output(path, overwrite=overwrite)
    wishes = _Wishes(compute, logits, overwrite, check)
    with open_local(model, revision=revision) as source:
        if decoder_config(source.config).experts is not None:
            raise UnsupportedError(
                "mixtures of experts cannot be exported to ONNX", file=source.label, hint="`llmq generate` runs them"
            )
        return _export(source, path, wishes, progress or NullProgress())


def _export(source: FolderSource, path: Path, wishes: _Wishes, progress: Progress) -> ExportedDecoder:
    loaded = load_mapped(source.folder, compute="float32")
    own = OwnData(data_path(path).name)
    graph = _graph(source, loaded, own, wishes)
    with Staged(path, overwrite=wishes.overwrite, alone=True) as staged:
        copied = _stage_checkpoint(source, staged, own.nbytes + 2 * graph.ByteSize(), wishes, progress)
        own.write(staged.path(own.file), progress)
        source.check_unchanged()
        _rename_files(graph, staged.names())
        now = staged.write_graph(graph.SerializeToString())
        check_file(now)
        found = _agreement(now, loaded, wishes.compute, progress) if _is_checked(source, wishes) else None
        _rename_files(graph, {present: later for later, present in staged.names().items()})
        staged.write_graph(graph.SerializeToString())
        staged.publish()
    names = (path.name, own.file, *_weights(source))
    return ExportedDecoder(
        path,
        {name: (path.parent / name).stat().st_size for name in names},
        copied,
        wishes.compute,
        tuple(described(value) for value in graph.graph.input),
        tuple(described(value) for value in graph.graph.output),
        found,
    )


def _stage_checkpoint(
    source: FolderSource, staged: Staged, others: int, wishes: _Wishes, progress: Progress
) -> tuple[str, ...]:
    """Copy the files of a checkpoint, unless the graph will stand among them; `others` bytes are to follow."""
    folder = staged.folder
    if folder.samefile(source.folder):
        refuse_links(folder, _weights(source))
        check_room(folder, others)
        return ()
    files = checkpoint_files(source)
    same = same_content(((file, folder / name) for name, file in files.items()), overwrite=wishes.overwrite)
    missing = {name: file for name, file in files.items() if name not in same}
    total = sum(file.stat().st_size for file in missing.values())
    check_room(folder, others + total, hint=_NO_COPY)
    if missing:
        progress.start("copying the checkpoint", total)
        for name, file in missing.items():
            copy(file, staged.path(name), progress)
        progress.finish()
    return tuple(sorted(files))


def _weights(source: FolderSource) -> tuple[str, ...]:
    return tuple(sorted({info.file for info in source.tensors.values()}))


def _graph(source: FolderSource, loaded: Model, own: OwnData, wishes: _Wishes) -> ModelProto:
    modules = Modules(Graph(), source.tensors, own, wishes.compute)
    table = "model.embed_tokens"
    if not any(f"{table}.{suffix}" in source.tensors for suffix in ("weight", "weight_packed")):
        table = "lm_head"
    files = {
        name: {key: entry[key] for key in ("size", "header")} for name, entry in source.identity()["files"].items()
    }
    about = {
        "llmq.version": llmq.__version__,
        "llmq.model_type": loaded.config.model_type,
        "llmq.compute": wishes.compute,
        "llmq.weights": json.dumps(files),
    }
    model = decoder_model(loaded.decoder, modules, table, logits=wishes.logits, about=about)
    _warn(modules)
    return model


def _warn(modules: Modules) -> None:
    """Tell of what takes more room or time than one would think."""
    widened = [blocks for blocks in modules.blocks.values() if blocks.widened is not None]
    slow = [
        blocks
        for blocks in modules.blocks.values()
        if blocks.bits == 2 and not has_fast_kernel(blocks, modules.compute)
    ]
    if widened:
        _log.warning(
            "%d weights are written anew with 2, 4 or 8 bits, without loss: ONNX Runtime knows no other widths; "
            "`llmq quantize --for onnx` avoids the copy",
            len(widened),
        )
    if slow:
        _log.warning(
            "%d weights of 2 bits are slow: ONNX Runtime is quick with --compute int8 and groups from 32 on only",
            len(slow),
        )


def _is_checked(source: FolderSource, wishes: _Wishes) -> bool:
    if wishes.check is not None:
        return wishes.check
    return has_onnxruntime() and sum(info.nbytes for info in source.tensors.values()) <= _CHECKED


def _agreement(path: Path, loaded: Model, compute: Compute, progress: Progress) -> Agreement:
    progress.start("running it beside llmq", CHECKED_TOKENS, "tokens")
    found = agreement(path, loaded)
    progress.advance(CHECKED_TOKENS)
    progress.finish()
    if not found.relative <= LIMITS[compute]:
        raise VerificationError(
            "the graph does not compute what llmq computes",
            file=path,
            expected=f"logits within {LIMITS[compute]:g} of their range",
            found=f"{found.relative:.3g}",
        )
    return found


def _rename_files(graph: ModelProto, names: dict[str, str]) -> None:
    """Give some of the files that a graph points to other names."""
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = names.get(entry.value, entry.value)
