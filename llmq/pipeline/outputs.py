"""What an output folder holds already, and whether there is room for it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import llmq
from llmq.checkpoint.faults import writing
from llmq.checkpoint.journal import Scratch
from llmq.checkpoint.manifest import MANIFEST, read_manifest
from llmq.checkpoint.output_folder import refuse_same_folder
from llmq.errors import ResourceError, UsageError
from llmq.spec import Assigned
from llmq.system.files import free_bytes

if TYPE_CHECKING:
    from llmq.checkpoint.source import Source
    from llmq.pipeline.calibration import Calibration
    from llmq.plan import Plan
    from llmq.spec import Recipe

__all__ = ["already_complete", "check_disk", "check_folders", "earlier_choice", "identity_of"]


def identity_of(
    recipe: Recipe,
    source: Source,
    choices: dict[str, Any],
    calibration: Calibration | None,
    importance: Calibration | None,
) -> dict[str, Any]:
    """What must be the same for an earlier run to be continued: source, settings, version.

    Parameters
    ----------
    recipe : Recipe
    source : Source
    choices : dict
        Further settings by name.
    calibration, importance : Calibration or None
        What the method is calibrated on, and what told how much weights matter.
    """
    settings = asdict(recipe) | choices
    if calibration is not None:
        settings["calibration"] = calibration.identity()
    if importance is not None:
        settings["importance"] = importance.identity()
    identity = {"llmq_version": llmq.__version__, "settings": settings, "source": source.identity()}
    return cast("dict[str, Any]", json.loads(json.dumps(identity)))


def earlier_choice(output: Path, identity: dict[str, Any], *, overwrite: bool, resume: bool) -> tuple[Assigned, ...]:
    """What a run with the same identity but for that assigned, finished or interrupted; empty without one."""
    found = []
    with writing(output):
        if output.is_dir() and not overwrite:
            found.append(read_manifest(output) or {})
        if output.is_dir() and resume:
            found.append((Scratch(output).read_plan() or {}).get("identity") or {})
    for earlier in found:
        settings = earlier.get("settings")
        if not isinstance(settings, dict) or earlier.get("source") != identity["source"]:
            continue
        if settings | {"assigned": []} == identity["settings"] | {"assigned": []}:
            with contextlib.suppress(KeyError, TypeError):
                return tuple(Assigned(**assigned) for assigned in settings["assigned"])
    return ()


def check_folders(source: Source, output: Path) -> None:
    """Refuse an output that is the source, lies inside it or around it, or is a file."""
    with writing(output):
        single_file = Path(source.label).is_file()
        if not single_file or (output.exists() and output.samefile(source.folder)):
            refuse_same_folder(source.folder, output)
        if output.exists() and not output.is_dir():
            raise UsageError("output is not a folder", file=output)


def already_complete(output: Path, identity: dict[str, Any]) -> bool:
    """Whether the output is finished and was made of this source by these settings, by whatever version."""
    with writing(output):
        manifest = read_manifest(output) if output.is_dir() else None
    return manifest is not None and all(manifest.get(key) == identity[key] for key in ("settings", "source"))


def check_disk(output: Path, plan: Plan) -> None:
    """Refuse a plan for whose files there is no room."""
    with writing(output):
        nearest = next(p for p in (output.resolve(), *output.resolve().parents) if p.exists())
        free = free_bytes(nearest) + _taken_bytes(output)
    if plan.output_bytes > free:
        raise ResourceError(
            "not enough disk", file=output, expected=f"{plan.output_bytes} bytes", found=f"{free} bytes free"
        )


def _taken_bytes(output: Path) -> int:
    """Bytes on the disk that an interrupted run has written already, or that are removed before this one writes."""
    scratch = Scratch(output)
    if not scratch.folder.is_dir():
        return 0
    # Without a manifest, shards in the output itself are those of a commit that was cut short.
    published = () if (output / MANIFEST).exists() else output.glob("*.safetensors")
    return sum(path.stat().st_size for path in (*scratch.shards.glob("*"), *published) if path.is_file())
