"""Files of a checkpoint that a decoder's graph stands among, or gets copies of."""

from __future__ import annotations

import errno
import filecmp
import os
from typing import TYPE_CHECKING, Any, Final

from llmq.checkpoint.index import INDEX_FILE
from llmq.checkpoint.manifest import MANIFEST, read_manifest
from llmq.checkpoint.safe_open import allowed_roots, open_inside
from llmq.checkpoint.source import select_copies
from llmq.errors import UsageError
from llmq.system.files import sync_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from llmq.checkpoint.source import FolderSource
    from llmq.system.progress import Progress

__all__ = ["checkpoint_files", "copy", "refuse_links", "same_content"]

_BLOCK: Final = 8 << 20
_NOT_SHARED: Final = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)


def checkpoint_files(source: FolderSource) -> dict[str, Path]:
    """Files that a copy of a checkpoint has, by name: weights, configuration, tokenizer, cards, and its manifest."""
    folder = source.folder
    names = {info.file for info in source.tensors.values()} | {"config.json", INDEX_FILE, MANIFEST}
    manifest: dict[str, Any] = read_manifest(folder) or {}
    copies, _ = select_copies(source)
    named = sorted(names | set(copies) | set(manifest.get("files", ())))
    return {name: folder / name for name in named if (folder / name).is_file()}


def refuse_links(folder: Path, names: Iterable[str]) -> None:
    """Raise UsageError if a file is a link: ONNX Runtime reads none that are symbolic, ONNX itself none of any kind."""
    for name in names:
        file = folder / name
        if file.is_symlink() or file.stat().st_nlink > 1:
            kind = "a symbolic link" if file.is_symlink() else "a file of several names (hard links)"
            raise UsageError(
                f"{kind}, which ONNX does not trust",
                file=file,
                hint="name an output in another folder: weights are copied there",
            )


def same_content(paths: Iterable[tuple[Path, Path]], *, overwrite: bool) -> set[str]:
    """Names of targets that hold their source's bytes already.

    Raises
    ------
    UsageError
        A target with other bytes, and nothing may be overwritten.
    """
    same = set()
    for source, target in paths:
        if not os.path.lexists(target):
            continue
        regular = target.is_file() and not target.is_symlink()
        if regular and filecmp.cmp(source, target, shallow=False):
            same.add(target.name)
        elif not overwrite or not regular:
            hint = "choose another folder" + (", or replace it with --overwrite" if regular else "")
            raise UsageError("another file is in the place of the checkpoint's", file=target, hint=hint)
    return same


def copy(source: Path, target: Path, progress: Progress) -> None:
    """Copy a file and return once it is on the disk; file systems that can share the bytes do.

    Raises
    ------
    OSError
        It cannot be read or written.
    InputError
        It is no file of its folder any more.
    """
    fd, _ = open_inside(source, allowed_roots(source.parent))
    with os.fdopen(fd, "rb") as read, target.open("wb") as written:
        while count := _copy_block(read.fileno(), written.fileno()):
            progress.advance(count)
        sync_file(written.fileno())


def _copy_block(read: int, written: int) -> int:
    """Copy the next block, and return how long it was."""
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(read, written, _BLOCK)
        except OSError as error:
            if error.errno not in _NOT_SHARED:
                raise
    block = memoryview(os.read(read, _BLOCK))
    done = 0
    while done < len(block):
        done += os.write(written, block[done:])
    return done
