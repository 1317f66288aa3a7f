"""Power lost after every step of a run: what was not synced is gone, or some of it, and the same command goes on."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import llmq
from llmq.checkpoint.manifest import MANIFEST
from llmq.errors import LlmqError
from tortures.disk import LOSSES, Disk, recorded
from tortures.flips import write_small_source
from tortures.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tortures.disk import Loss, Step

__all__ = ["Scene", "run", "scenes", "try_loss"]

_FLAGS: Final[dict[str, Any]] = {"method": "rtn", "max_shard_size": 16_000, "threads": 1}
_EVERY: Final = 7


@dataclass(frozen=True)
class Scene:
    """A run, and the folder that it changes.

    Parameters
    ----------
    name : str
    source : Path
    before : Path
        Folder that holds what was there before, perhaps an older output called ``out``.
    flags : dict
        Of `llmq.quantize`.
    steps : list of Step
        What the run does to such a folder.
    expected, older : dict of str to bytes
        Files of the output as the run leaves them, and as they were before.
    """

    name: str
    source: Path
    before: Path
    flags: dict[str, Any]
    steps: list[Step]
    expected: dict[str, bytes]
    older: dict[str, bytes]

    def quantize(self, root: Path) -> None:
        """Do the run, in a folder like `before`."""
        llmq.quantize(self.source, root / "out", **self.flags)


def scenes(scratch: Path) -> Iterator[Scene]:
    """A new output, and one that replaces an older one of another width."""
    source = write_small_source(scratch / "source")
    for name, replacing in {"a new output": False, "replacing one": True}.items():
        before = scratch / name.replace(" ", "-")
        before.mkdir()
        flags = _FLAGS | ({"overwrite": True} if replacing else {})
        if replacing:
            llmq.quantize(source, before / "out", bits=8, method="rtn", max_shard_size=9_000)
        scene = Scene(name, source, before, flags, [], {}, _files(before / "out"))
        root = scratch / f"{before.name}-run"
        shutil.copytree(before, root)
        with recorded(root) as steps:
            scene.quantize(root)
        yield replace(scene, steps=steps, expected=_files(root / "out"))


def _files(folder: Path) -> dict[str, bytes]:
    """Files of a folder, those of a scratch in it too."""
    if not folder.is_dir():
        return {}
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def try_loss(scene: Scene, disk: Disk, root: Path, loss: Loss, chance: random.Random) -> str:
    """Lose power on a disk, and go on: what is wrong afterwards, or nothing. `root` is made, and removed again."""
    disk.write(root, loss, chance)
    try:
        return _judge(scene, root)
    finally:
        shutil.rmtree(root)


def _judge(scene: Scene, root: Path) -> str:
    out = root / "out"
    if (out / MANIFEST).exists():
        left = {name: data for name, data in _files(out).items() if not name.startswith(".llmq/")}
        if left not in (scene.expected, scene.older):
            return "something else than an output has a manifest"
    try:
        scene.quantize(root)
    except LlmqError as error:
        return f"the same command does not go on: {error}"
    return "" if _files(out) == scene.expected else "the same command ends with other bytes"


def run(scratch: Path, *, quick: bool, tell: Callable[[str], None]) -> list[Tally]:
    """Lose power after every step, or one of some, in every way."""
    tallies = []
    for scene in scenes(scratch):
        disk, chance = Disk(scene.before), random.Random(8)  # noqa: S311
        wrong, runs, first = 0, 0, ""
        for number, step in enumerate(scene.steps, start=1):
            disk.apply(step)
            if quick and number % _EVERY:
                continue
            for name, loss in LOSSES.items():
                runs += 1
                said = try_loss(scene, disk, scratch / "image", loss, chance)
                wrong += bool(said)
                first = first or (said and f"after step {number} ({step.what}), {name} lost: {said}")
            if number % 50 == 0:
                tell(f"{scene.name}: {number} of {len(scene.steps)} steps")
        disk.write(scratch / "all")
        if _files(scratch / "all" / "out") != scene.expected:
            wrong, first = wrong + 1, first or "steps were missed: the disk is not what it should be"
        shutil.rmtree(scratch / "all")
        ways = f"{len(scene.steps)} steps, {len(LOSSES)} ways to lose what is not synced"
        tallies.append(Tally(f"power lost after a step of {scene.name}", runs, wrong, first or ways))
    return tallies
