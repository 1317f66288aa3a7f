"""A small real Llama checkpoint, and texts it never saw, that come with the package."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

__all__ = ["CALIBRATION", "HELDOUT", "calibration_text", "heldout_text", "write_sample"]

HELDOUT: Final = "heldout.txt"
"""Name of the text beside the model to measure on."""

CALIBRATION: Final = "calibration.txt"
"""Name of the text beside the model to calibrate on: another part of the same novel."""

_LAST: Final = "config.json"


def write_sample(folder: str | Path) -> Path:
    """Write the sample checkpoint and its texts.

    A folder that holds a part of it already, and nothing else, is completed.

    Parameters
    ----------
    folder : str or Path
        Made if need be.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    FileExistsError
        The folder holds other files, or something that is no folder has its name.
    OSError
        It cannot be written.
    """
    folder = Path(folder)
    files = {entry.name: entry for entry in _data().iterdir() if entry.is_file()}
    if folder.exists() and not folder.is_dir():
        raise FileExistsError("there is a file of that name")
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir()):
        if path.name.removesuffix(".part") not in files or not path.is_file():
            raise FileExistsError(f"the folder is not empty: {path.name}")
    # Without its configuration a folder is no model yet.
    for name in sorted(files, key=lambda name: (name == _LAST, name)):
        _write(folder / name, files[name].read_bytes())
    return folder


def heldout_text() -> str:
    """Return about 60 kB of a novel that the sample model was not trained on."""
    return (_data() / HELDOUT).read_text(encoding="utf-8")


def calibration_text() -> str:
    """Return about 70 kB of the same novel, from its second half, to calibrate on."""
    return (_data() / CALIBRATION).read_text(encoding="utf-8")


def _data() -> Traversable:
    return resources.files(__name__) / "data"


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; one that is there must be the same."""
    if path.exists():
        if path.read_bytes() != data:
            raise FileExistsError(f"the folder holds another {path.name}")
        return
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
