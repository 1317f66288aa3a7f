"""The models that llmq and llama.cpp are compared on: made once, kept in a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from peer_child import Child
from peer_llama import write_gguf

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COUNTERPARTS", "Models", "quantized"]

COUNTERPARTS: Final = {
    "Q4_0": ("--bits", "4", "--group-size", "64"),
    "Q4_K": ("--bits", "4", "--group-size", "64"),
    "IQ4_XS": ("--bits", "4", "--group-size", "64", "--lm-head", "4"),
    "Q8_0": ("--bits", "8", "--group-size", "64"),
    "Q2_K": ("--bits", "2", "--group-size", "64"),
}
"""What of ours a type of llama.cpp is held against: no more bytes for each token."""


@dataclass(frozen=True)
class Models:
    """Where models are, and how they are made.

    Parameters
    ----------
    folder : Path
        Holds all that is made.
    given : Path or None
        A Llama checkpoint to use instead of a random one of 1.9 billion parameters.
    """

    folder: Path
    given: Path | None = None

    def checkpoint(self) -> Path:
        """Find the checkpoint; written first where there is none: 3.8 GB."""
        return self.given or self.random(8)

    def random(self, layers: int) -> Path:
        """Find a random checkpoint of the shape of a 7B Llama, with fewer layers; written first where there is none."""
        path = self.folder / f"llama-{layers}-layers"
        if not (path / "config.json").exists():
            _tell_of(path)
            _run(Path(__file__).with_name("make_checkpoint.py"), "llama-7b", path, "--layers", layers)
        return path

    def float_gguf(self) -> Path:
        """Find the checkpoint as a float16 GGUF file, written first where there is none."""
        path = self.folder / "f16.gguf"
        if not path.exists():
            checkpoint = self.checkpoint()
            _tell_of(path)
            write_gguf(checkpoint, path)
        return path

    def gguf(self, kind: str) -> Path:
        """Find the checkpoint as a GGUF file of a type of `peer_llama.TYPES`."""
        path = self.folder / f"{kind}.gguf"
        if not path.exists():
            source, part = self.float_gguf(), path.with_suffix(".part")
            _tell_of(path)
            arguments = {"source": str(source), "output": str(part), "kind": kind, "threads": os.cpu_count() or 1}
            with Child("peer_llama", "LlamaQuantizer", **arguments) as child:
                child.call("run")
            part.replace(path)
        return path

    def counterpart(self, kind: str) -> Path:
        """Find our checkpoint that a type is held against."""
        return quantized(self.checkpoint(), self.folder, COUNTERPARTS[kind])


def quantized(checkpoint: Path, folder: Path, flags: Sequence[str]) -> Path:
    """Find what `llmq quantize --method rtn` makes of a checkpoint with some flags, made first where there is none."""
    path = folder / f"{checkpoint.name}{''.join(flags).replace('--', '-')}"
    if not (path / "config.json").exists():
        _tell_of(path)
        _run("-m", "llmq", "-q", "quantize", checkpoint, "-o", path, "--method", "rtn", *flags)
    return path


def _tell_of(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    click.echo(f"writing {path}", err=True)


def _run(*arguments: object) -> None:
    """Run Python; exit with its code if it fails."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, *map(str, arguments)], check=False, stdout=sys.stderr, env=environment)
    if done.returncode:
        sys.exit(done.returncode)
