"""Taking possession of an output folder: what may be there already, what is resumed, what will be replaced."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import llmq
from llmq.checkpoint import json_strict
from llmq.checkpoint.certificate import CERTIFICATE, read_certificate
from llmq.checkpoint.faults import writing
from llmq.checkpoint.index import INDEX_FILE, SCRATCH
from llmq.checkpoint.journal import Scratch, read_record
from llmq.checkpoint.manifest import MANIFEST, difference
from llmq.checkpoint.safe_open import allowed_roots, read_small
from llmq.errors import InputError, UsageError
from llmq.system.files import make_folder
from llmq.system.lock import FileLock, Held

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmq.checkpoint.layout import ShardLayout

__all__ = ["claim", "clear_leftovers", "plan_of", "refuse_same_folder", "take_lock"]

_OUR_WEIGHTS: Final = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")


def plan_of(identity: dict[str, Any], shards: Sequence[ShardLayout]) -> dict[str, Any]:
    """Return what must be the same for a run to go on where another stopped."""
    layout = {shard.file: hashlib.sha256(shard.header).hexdigest() for shard in shards}
    plan = {"llmq_version": llmq.__version__, "identity": identity, "layout": layout}
    return dict(json.loads(json.dumps(plan)))


def refuse_same_folder(source: Path, output: Path) -> None:
    """Raise UsageError if `output` is the folder `source`, or lies inside it, or the other way round."""
    one, other = source.resolve(), output.resolve()
    same = output.exists() and source.exists() and output.samefile(source)
    if same or one.is_relative_to(other) or other.is_relative_to(one):
        raise UsageError("output and source must be separate folders", file=output, hint="choose another output folder")


def take_lock(folder: Path, *, overwrite: bool) -> FileLock:
    """Make the output folder and its scratch, and lock it.

    Raises
    ------
    UsageError
        Something stands in the way, or another run writes there.
    OSError
        The folder cannot be made.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError("the output must be a folder", file=folder)
    if not overwrite and not (folder / SCRATCH).is_dir():
        _refuse_occupied(folder)
    scratch = Scratch(folder)
    for path in (scratch.folder, scratch.shards):
        if path.is_symlink() or (path.exists() and not path.is_dir()):  # what a link leads to is not ours to write
            raise UsageError("must be a folder of its own", file=path, hint="remove it")
    make_folder(scratch.folder)
    lock = FileLock(scratch.lock)
    try:
        lock.acquire()
    except Held as owner:
        raise UsageError(
            f"another run is writing here: {owner}", file=folder, hint="wait for it, or choose another output folder"
        ) from None
    return lock


def claim(folder: Path, plan: dict[str, Any], *, overwrite: bool, resume: bool) -> dict[str, int]:
    """Prepare the scratch of a locked folder, either as an earlier run left it or anew.

    Parameters
    ----------
    folder : Path
        The output folder.
    plan : dict
        From `plan_of`.
    overwrite : bool
        Whether what is there may be replaced.
    resume : bool
        Whether an interrupted run is continued; if not, what it wrote is discarded.

    Returns
    -------
    dict
        Size by name of the files that publishing will have to remove unless it replaces them.

    Raises
    ------
    UsageError
        A finished output, other files, or an interrupted run that differs.
    OSError
        The scratch cannot be written.
    """
    scratch = Scratch(folder)
    earlier = scratch.read_plan()
    finished = (folder / MANIFEST).exists()
    published = read_record(scratch.journal).publishing
    if finished and published:  # only the last step, removing the scratch, was interrupted
        earlier = None
    if not overwrite and (finished or earlier is None):
        _refuse_occupied(folder)
    replaces = _replaceable(folder) if overwrite else {}
    if earlier is not None:
        changed = difference(_comparable(earlier), plan)
        if resume and changed is None:
            return _sizes(earlier.get("replaces"))
        if resume and not overwrite:
            assert changed is not None
            name, expected, found = changed
            raise UsageError(
                f"an interrupted run with another {name} is there",
                file=folder,
                expected=_short(expected),
                found=_short(found),
                hint="repeat its command to go on with it, or discard it with --no-resume",
            )
        replaces |= _sizes(earlier.get("replaces")) | (_shards_in(folder, earlier) if published else {})
    scratch.begin(plan | {"replaces": replaces})
    return replaces


def clear_leftovers(folder: Path) -> None:
    """Remove the scratch of a finished output, where a run was killed in its very last step; nothing otherwise."""
    scratch = Scratch(folder)
    with writing(folder):
        if not _is_leftover(folder, scratch):
            return
        lock = take_lock(folder, overwrite=True)
        try:
            # Another run may have begun, or cleared it, before the lock was ours.
            if _is_leftover(folder, scratch):
                scratch.remove()
        finally:
            lock.release()


def _is_leftover(folder: Path, scratch: Scratch) -> bool:
    if not scratch.folder.is_dir() or not (folder / MANIFEST).exists():
        return False
    return not scratch.plan.exists() or read_record(scratch.journal).publishing


def _refuse_occupied(folder: Path) -> None:
    if (folder / MANIFEST).exists():
        raise UsageError("holds a finished output", file=folder, hint="replace it with --overwrite")
    if folder.is_dir() and any(path.name != SCRATCH for path in folder.iterdir()):
        hint = "choose an empty folder, or replace its model with --overwrite"
        raise UsageError("the output folder is not empty", file=folder, hint=hint)


def _comparable(plan: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plan.items() if key != "replaces"}


def _replaceable(folder: Path) -> dict[str, int]:
    """Weights and an index as every checkpoint names them, what an earlier manifest lists, and a certificate."""
    found = {
        path.name: path.stat().st_size
        for path in folder.iterdir()
        if (_OUR_WEIGHTS.fullmatch(path.name) or path.name == INDEX_FILE) and path.is_file()
    }
    if read_certificate(folder) is not None:
        found[CERTIFICATE] = (folder / CERTIFICATE).stat().st_size
    try:
        manifest = json_strict.loads(read_small(folder / MANIFEST, allowed_roots(folder)), MANIFEST)
        files = manifest["files"].items()
        listed = {name: entry["size"] for name, entry in files if name == Path(name).name}
    except (InputError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error.__cause__, OSError):  # the disk failed: what the manifest lists would be left behind
            raise
        return found
    return _sizes(listed) | found


def _shards_in(folder: Path, plan: dict[str, Any]) -> dict[str, int]:
    names = [name for name in plan.get("layout", {}) if _OUR_WEIGHTS.fullmatch(name) and (folder / name).is_file()]
    return {name: (folder / name).stat().st_size for name in names}


def _sizes(value: Any) -> dict[str, int]:
    pairs = value.items() if isinstance(value, dict) else ()
    return {str(name): size for name, size in pairs if type(size) is int}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
