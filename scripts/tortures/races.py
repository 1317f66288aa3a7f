"""Files that another process swaps for links, pipes and folders while they are opened and read."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llmq.checkpoint.publish import publish_file
from llmq.checkpoint.source import open_source
from llmq.errors import LlmqError
from llmq.runtime.tokenizer_files import taken
from tortures.attacks.case import MODEL
from tortures.attacks.folders import OUTSIDE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["RACES", "hide_secrets", "race"]

_SECRET: Final = b"\xaa" * 64


@dataclass(frozen=True)
class Race:
    """What is swapped for what, and what is done meanwhile.

    Parameters
    ----------
    target : str
        What is swapped, in a checkpoint.
    lure : callable
        Puts something else at a path; it is given the folder outside too.
    work : callable
        Reads the checkpoint, and returns bytes that it found.
    """

    target: str
    lure: Callable[[Path, Path], object]
    work: Callable[[Path], bytes]


def race(folder: Path, what: Race, *, times: int) -> tuple[int, int, str]:
    """Do something many times while it is swapped; how often it was done and refused, and what was wrong.

    Anything may come of it but secrets and errors that are not ours.
    """
    outside = folder.parent / OUTSIDE
    what.work(folder)
    swapper = os.fork()
    if swapper == 0:
        _swap_for_ever(folder / what.target, what.lure, outside)
    done = refused = 0
    wrong = ""
    try:
        for _ in range(times):
            try:
                found = what.work(folder)
            except LlmqError:
                refused += 1
            except Exception as error:
                wrong = wrong or f"{type(error).__name__}: {error}"
            else:
                done += 1
                if _SECRET in found:
                    wrong = wrong or "what stands outside was read"
    finally:
        os.kill(swapper, signal.SIGKILL)
        os.waitpid(swapper, 0)
    return done, refused, wrong


def hide_secrets(folder: Path, outside: Path) -> None:
    """Write outside what nobody may read."""
    content = (folder / MODEL).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    secret = content[:start] + _SECRET[:1] * (len(content) - start)
    for name in (MODEL, "config.json", "README.md", "tokenizer.json", "weights"):
        (outside / name).write_bytes(secret)


def _swap_for_ever(target: Path, lure: Callable[[Path, Path], object], outside: Path) -> None:
    """Let a lure and the real thing stand at a path by turns, until the process is killed."""
    kept, made = target.with_name("kept aside"), target.with_name("to be put there")
    end = time.monotonic() + 600
    while time.monotonic() < end:
        lure(made, outside)
        target.rename(kept)
        made.rename(target)
        target.rename(made)
        kept.rename(target)
        if made.is_dir() and not made.is_symlink():
            made.rmdir()
        else:
            made.unlink()
    os._exit(0)


def _link(name: str) -> Callable[[Path, Path], object]:
    return lambda path, outside: path.symlink_to(outside / name)


def _link_folder(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def _pipe(path: Path, _: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path, _: Path) -> None:
    path.mkdir()


def _read_weights(folder: Path) -> bytes:
    with open_source(folder) as source:
        info = source.tensors["lm_head.weight"]
        buffer = bytearray(info.nbytes)
        source.read_into(info, 0, memoryview(buffer))
        source.check_unchanged()
    return bytes(buffer)


def _publish(folder: Path) -> bytes:
    out = folder.parent / "published"
    (out / ".llmq" / "tmp").mkdir(parents=True, exist_ok=True)
    publish_file(out, "README.md", folder / "README.md")
    return (out / "README.md").read_bytes()


def _take_tokenizer(folder: Path) -> bytes:
    with taken(folder) as place:
        return b"".join(path.read_bytes() for path in sorted(place.iterdir()))


def _read_kept(folder: Path) -> bytes:
    """Through a link to a file of a folder below, which is swapped."""
    below = folder / "below"
    if not (folder / MODEL).is_symlink():
        below.mkdir()
        (folder / MODEL).rename(below / "weights")
        (folder / MODEL).symlink_to("below/weights")
    return _read_weights(folder)


RACES: Final[dict[str, Race]] = {
    "weights and a link": Race(MODEL, _link(MODEL), _read_weights),
    "weights and a pipe": Race(MODEL, _pipe, _read_weights),
    "weights and a folder": Race(MODEL, _folder, _read_weights),
    "a folder of weights and a link": Race("below", _link_folder, _read_kept),
    "config.json and a link": Race("config.json", _link("config.json"), _read_weights),
    "README.md and a link": Race("README.md", _link("README.md"), _publish),
    "README.md and a pipe": Race("README.md", _pipe, _publish),
    "tokenizer.json and a link": Race("tokenizer.json", _link("tokenizer.json"), _take_tokenizer),
}
"""By what stands there by turns."""
