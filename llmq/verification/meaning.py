"""Whether what the files of an output say fits together: index, configuration, recipe, and the tensors themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llmq.checkpoint import json_strict
from llmq.checkpoint.companions import RECIPE_FILE
from llmq.checkpoint.index import INDEX_FILE
from llmq.checkpoint.safe_open import allowed_roots, read_small
from llmq.errors import InputError, UnsupportedError
from llmq.evaluate.inventory import inventory
from llmq.formats.compressed_tensors import SCALE_CODES, entries
from llmq.formats.schemes import read_schemes, stored_bits
from llmq.plan.recipe_files import read_recipe
from llmq.verification.result import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmq.checkpoint.source import FolderSource
    from llmq.evaluate.inventory import Entry

__all__ = ["check_meaning"]

_SCALES: Final = {code: name for name, code in SCALE_CODES.items()}


def check_meaning(source: FolderSource, *, ours: bool) -> list[Problem]:
    """Look for contradictions in an open checkpoint, by headers and the few bytes that hold shapes.

    Parameters
    ----------
    source : FolderSource
        Its index and headers fit together already.
    ours : bool
        Whether llmq wrote it, so that there is a recipe, and every module that a group targets is packed.
    """
    try:
        held = inventory(source)
        schemes = read_schemes(source.config)
        found = [problem for entry in held.entries for problem in _check_entry(entry)]
    except (InputError, UnsupportedError) as error:
        return [Problem.of(error, "config.json")]
    packed = {entry.name: entry for entry in held.entries if entry.spec is not None}
    for entry in held.entries:
        module, _, suffix = entry.name.rpartition(".")
        file = entry.parts[""].file if "" in entry.parts else None
        if entry.spec is None and f"{module}.weight" in packed and suffix.startswith("weight"):
            found.append(Problem("stands there both packed and dense", file, entry.name))
        elif ours and entry.spec is None and suffix == "weight" and schemes is not None and schemes.find(module):
            found.append(Problem("not packed, though config.json says that it is", file, entry.name))
    found += _check_index(source)
    if ours and RECIPE_FILE in source.other_files:
        found += _check_recipe(source, packed)
    return found


def _check_entry(entry: Entry) -> Iterator[Problem]:
    """Compare the tensors of a packed weight with those that its scheme makes of its shape."""
    if entry.spec is None:
        return
    module, codes = entry.name.removesuffix(".weight"), entry.parts["weight_packed"]
    rows, columns = entry.shape
    group = columns if entry.spec.group_size == -1 else entry.spec.group_size
    scale = _SCALES.get(entry.dtype)
    if columns % group or scale is None:
        yield Problem(f"groups of {group} and scales of {entry.dtype} do not fit", codes.file, entry.name)
        return
    spec = replace(entry.spec, group_size=group, scale_dtype=scale)
    planned = {output.name.rpartition(".")[2]: output for output in entries(module, spec, (rows, columns))}
    for suffix in planned.keys() | entry.parts.keys():
        info, output = entry.parts.get(suffix), planned.get(suffix)
        if info is None or output is None:
            what = "missing" if info is None else "has no place in its scheme"
            yield Problem(what, codes.file, f"{module}.{suffix}")
        elif (info.dtype, info.shape) != (output.dtype, output.shape):
            expected = f"{output.dtype} {list(output.shape)}"
            yield Problem(
                f"does not fit its scheme (expected {expected}, found {info.dtype} {list(info.shape)})",
                info.file,
                info.name,
            )


def _check_index(source: FolderSource) -> Iterator[Problem]:
    path = source.folder / INDEX_FILE
    if not path.exists():
        return
    index: Any = json_strict.loads(read_small(path, allowed_roots(source.folder)), INDEX_FILE)
    metadata = index.get("metadata")
    stored = metadata.get("total_size") if isinstance(metadata, dict) else None
    total = sum(info.nbytes for info in source.tensors.values())
    if stored is not None and stored != total:
        yield Problem(f"wrong total_size (expected {total}, found {str(stored)[:40]})", INDEX_FILE)


def _check_recipe(source: FolderSource, packed: dict[str, Entry]) -> Iterator[Problem]:
    """Compare what the recipe says of each weight with what it is."""
    try:
        recipe = read_recipe(Path(source.folder))
    except (InputError, UnsupportedError) as error:
        yield Problem(error.what, RECIPE_FILE, error.tensor)
        return
    said = {assigned.name: assigned for assigned in recipe.assigned}
    for name, assigned in said.items():
        entry = packed.get(name)
        if (entry is None) != (assigned.bits is None):
            yield Problem(f"the weight is {'not ' if entry is None else ''}packed", RECIPE_FILE, name)
            continue
        if entry is None or entry.spec is None or assigned.bits is None:
            continue
        spec = replace(recipe.spec, bits=assigned.bits, group_size=assigned.group_size, symmetric=assigned.symmetric)
        expected = stored_bits(spec), entry.shape[1] if spec.group_size == -1 else spec.group_size, spec.symmetric
        own = entry.spec
        found = own.bits, entry.shape[1] if own.group_size == -1 else own.group_size, own.symmetric
        if expected != found:
            names = ("bits", "group_size", "symmetric")
            said_, is_ = (dict(zip(names, values, strict=True)) for values in (expected, found))
            yield Problem(f"the weight is another (expected {said_}, found {is_})", RECIPE_FILE, name)
    for name in packed.keys() - said.keys():
        yield Problem("packed, and not in the recipe", RECIPE_FILE, name)
