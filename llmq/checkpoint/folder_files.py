"""What stands beside the weights in a checkpoint's folder: configuration, index, other files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from llmq.checkpoint import json_strict
from llmq.checkpoint.companions import is_weight_file
from llmq.checkpoint.index import SCRATCH, weight_map
from llmq.checkpoint.manifest import MANIFEST
from llmq.checkpoint.safe_open import read_small
from llmq.errors import InputError
from llmq.system.files import is_present

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CONFIG_FILE", "FolderFiles", "read_folder"]

CONFIG_FILE: Final = "config.json"


@dataclass(frozen=True)
class FolderFiles:
    """What a folder holds but weights.

    Parameters
    ----------
    config : dict
        The parsed ``config.json``; empty where there is none.
    config_digest : str or None
        SHA-256 of its bytes.
    others : tuple of str
        Names of the other regular files, sorted.
    index : dict or None
        From `weight_map`.
    """

    config: dict[str, Any]
    config_digest: str | None
    others: tuple[str, ...]
    index: dict[str, str] | None


def read_folder(folder: Path, roots: tuple[Path, ...]) -> FolderFiles:
    """Read what stands beside the weights; files that resolve to outside of `roots` are not there.

    Raises
    ------
    InputError
        An unfinished output of ours, or a configuration or index that is not sound.
    """
    if (folder / SCRATCH).exists() and not (folder / MANIFEST).exists():
        hint = "run the same `llmq quantize` again to finish it"
        raise InputError("unfinished output of an interrupted run", file=folder, hint=hint)
    config, digest = {}, None
    if is_present(folder / CONFIG_FILE):
        data = read_small(folder / CONFIG_FILE, roots)
        config = json_strict.loads(data, CONFIG_FILE)
        if not isinstance(config, dict):
            raise InputError("not a JSON object", file=CONFIG_FILE)
        digest = hashlib.sha256(data).hexdigest()
    others = (path for path in folder.iterdir() if not is_weight_file(path.name))
    names = tuple(sorted(path.name for path in others if _is_plain(path, roots)))
    return FolderFiles(config, digest, names, weight_map(folder, roots))


def _is_plain(path: Path, roots: tuple[Path, ...]) -> bool:
    try:
        real = path.resolve(strict=True)
    except (FileNotFoundError, NotADirectoryError, RuntimeError):  # a link that leads nowhere, or to itself
        return False
    return real.is_file() and any(real.is_relative_to(root) for root in roots)
