"""Which safetensors files a folder's checkpoint consists of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llmq.checkpoint import json_strict
from llmq.checkpoint.safe_open import read_small
from llmq.checkpoint.stacked import per_expert
from llmq.errors import InputError, UnsupportedError
from llmq.system.files import is_present

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmq.checkpoint.header import Header, TensorInfo

__all__ = [
    "INDEX_FILE",
    "SCRATCH",
    "SINGLE_FILE",
    "check_index",
    "merge_headers",
    "no_weights",
    "parse_index",
    "shard_names",
    "tensors_of",
    "weight_map",
]

INDEX_FILE: Final = "model.safetensors.index.json"
SINGLE_FILE: Final = "model.safetensors"
SCRATCH: Final = ".llmq"
"""Folder, inside an output, of a run that has not finished."""

_PLAIN_NAME: Final = re.compile(r"[\w.\-]+\.safetensors", re.ASCII)
_PICKLES: Final = frozenset({".bin", ".pt", ".pth", ".ckpt"})
_CONVERT: Final = "convert it with https://huggingface.co/spaces/safetensors/convert, or save it with safetensors"


def weight_map(folder: Path, roots: tuple[Path, ...]) -> dict[str, str] | None:
    """Shard by tensor name, of the index in `folder`; None where there is none.

    Raises
    ------
    InputError
        A malformed index, or one that names anything but plain ``*.safetensors`` files beside it.
    """
    if not is_present(folder / INDEX_FILE):
        return None
    return parse_index(read_small(folder / INDEX_FILE, roots))


def parse_index(data: bytes) -> dict[str, str]:
    """Shard by tensor name, of the bytes of an index. Raises as `weight_map` does."""
    index = json_strict.loads(data, INDEX_FILE)
    found = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(found, dict) or not found:
        raise InputError("has no weight_map", file=INDEX_FILE)
    for tensor, shard in found.items():
        if not isinstance(shard, str) or not _PLAIN_NAME.fullmatch(shard):
            raise InputError(
                "weight_map must name plain *.safetensors files", file=INDEX_FILE, tensor=tensor, found=repr(shard)[:80]
            )
    return found


def shard_names(folder: Path, names: list[str], index: dict[str, str] | None) -> list[str]:
    """Names of the files with the weights, sorted.

    Parameters
    ----------
    folder : Path
        Named in errors.
    names : list of str
        Everything in the folder.
    index : dict or None
        From `weight_map`.

    Raises
    ------
    InputError
        Shards that are missing, an ambiguous folder, or no weights.
    UnsupportedError
        Weights in other formats only.
    """
    files = sorted(name for name in names if name.endswith(".safetensors"))
    if index is not None:
        shards = sorted(set(index.values()))
        missing = [name for name in shards if name not in names]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            found = f"{len(shards) - len(missing)} of {len(shards)} shards"
            what = f"missing shards: {', '.join(missing[:3])}{more}" if len(missing) > 1 else "missing shard"
            file = missing[0] if len(missing) == 1 else folder
            raise InputError(
                what, file=file, found=found, hint="download the checkpoint again; finished files are kept"
            )
        if SINGLE_FILE in files and SINGLE_FILE not in shards:
            raise InputError(
                f"both {SINGLE_FILE} and an index of other shards", file=folder, hint="remove the stale one"
            )
        return shards
    if SINGLE_FILE in files:
        return [SINGLE_FILE]
    if len(files) == 1 and not files[0].startswith("adapter_"):
        return files
    raise no_weights(folder, names)


def no_weights(folder: Path | str, names: list[str]) -> InputError | UnsupportedError:
    """Error for a folder or a repository, of such file names, that is no checkpoint of safetensors."""
    files = sorted(name for name in names if name.endswith(".safetensors"))
    if any(name.startswith("adapter_") for name in files) and len(files) == 1:
        return UnsupportedError("holds an adapter, not a model", file=folder, hint="merge it into its base model first")
    if files:
        hint = "name one of the files, or download the index"
        return InputError(f"{len(files)} safetensors files but no {INDEX_FILE}", file=folder, hint=hint)
    pickles = sorted(name for name in names if Path(name).suffix in _PICKLES)
    if pickles:
        return UnsupportedError(
            "only pickled weights, which llmq never opens", file=folder, found=pickles[0], hint=_CONVERT
        )
    if any(name.endswith(".gguf") for name in names):
        return UnsupportedError("only GGUF files", file=folder, hint="use the original checkpoint in safetensors")
    if SCRATCH in names:
        return InputError("unfinished output", file=folder, hint="run the same `llmq quantize` again to finish it")
    return InputError("no safetensors files", file=folder)


def merge_headers(headers: Mapping[str, Header]) -> dict[str, TensorInfo]:
    """Tensors by name, of the headers of all files. Raises InputError where two files hold the same."""
    merged: dict[str, TensorInfo] = {}
    for name, header in headers.items():
        for info in header.tensors:
            if info.name in merged:
                raise InputError(f"also stands in {merged[info.name].file}", file=name, tensor=info.name)
            merged[info.name] = info
    return merged


def check_index(index: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> None:
    """Raise InputError unless an index from `weight_map` names just the tensors that there are."""
    for tensor, shard in index.items():
        info = tensors.get(tensor)
        if info is None or info.file != shard:
            found = "in no shard" if info is None else f"in {info.file}"
            raise InputError("the index names it", file=INDEX_FILE, tensor=tensor, expected=f"in {shard}", found=found)
    unlisted = [info for name, info in tensors.items() if name not in index]
    if unlisted:
        more = f" (and {len(unlisted) - 1} more)" if len(unlisted) > 1 else ""
        raise InputError(f"missing in {INDEX_FILE}{more}", file=unlisted[0].file, tensor=unlisted[0].name)


def tensors_of(
    headers: Mapping[str, Header], index: Mapping[str, str] | None, config: Mapping[str, Any]
) -> Mapping[str, TensorInfo]:
    """All tensors of a checkpoint, by name: merged, as its index says if it has one, and stacked experts taken apart.

    Raises
    ------
    InputError
        What `merge_headers`, `check_index` and `per_expert` find.
    """
    tensors = merge_headers(headers)
    if index is not None:
        check_index(index, tensors)
    return per_expert(tensors, config)
