"""What is tortured: quantizing a tiny checkpoint in three files into three, and the judgement of what came of it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import make_checkpoint
from llmq.architectures import decoder_config
from llmq.checkpoint.source import open_source
from llmq.errors import InputError
from llmq.sample import write_sample

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tortures.hosting import Outcome

__all__ = ["Subject", "complaint", "digests", "make_subject", "remove", "state_of", "write_source"]

ABSENT: Final = "absent"
UNFINISHED: Final = "unfinished"

_SIZES: Final = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 96}
_MISHAPS: Final = ("Traceback", "Exception ignored", "Fatal Python error", "terminate called", "Segmentation")


@dataclass(frozen=True)
class Subject:
    """A checkpoint, and how it is quantized.

    Parameters
    ----------
    source : Path
    flags : tuple of str
    expected : mapping
        SHA-256 by name of the files of an undisturbed output.
    """

    source: Path
    flags: tuple[str, ...]
    expected: Mapping[str, str]

    def arguments(self, out: Path, *more: str) -> list[str]:
        """The command that writes `out`."""
        return ["quantize", str(self.source), "-o", str(out), *self.flags, *more]


def write_source(folder: Path, *, shards: int = 3, **sizes: Any) -> Path:
    """Write a random Llama with the sample's tokenizer in some files; two blocks of width 64, unless sizes differ."""
    sample = write_sample(folder.with_name(f"{folder.name}-sample"))
    config = make_checkpoint.read_config("tiny") | _SIZES | sizes
    tensors = make_checkpoint.tensors_of(decoder_config(config), "bfloat16")
    size = sum(tensor.nbytes for tensor in tensors) // shards
    options = make_checkpoint.Options(layers=None, seed=0, dtype="bfloat16", max_shard_size=size + size // 8)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        make_checkpoint.make(config, make_checkpoint.companions(sample), folder, options)
    shutil.rmtree(sample)
    return folder


def make_subject(scratch: Path) -> Subject:
    """Make the checkpoint and, undisturbed and in this process, its output."""
    from llmq.cli.main import status

    flags = ("--method", "rtn", "--max-shard-size", "30KB", "--threads", "1")
    subject = Subject(write_source(scratch / "source"), flags, {})
    out = scratch / "expected"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = status(subject.arguments(out))
    assert code == 0
    assert len(list(out.glob("*.safetensors"))) == 3
    return Subject(subject.source, flags, digests(out))


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of all files of a folder by their relative paths; folders in it count as files without content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes() if path.is_file() else b"").hexdigest()
        for path in sorted(folder.rglob("*"))
    }


def state_of(out: Path, finished: Mapping[str, Mapping[str, str]]) -> str:
    """Tell what an output folder holds: nothing, something unfinished, one of the `finished` by its name, or worse.

    Returns
    -------
    str
        "absent", "unfinished", a key of `finished`, or what is wrong, beginning with "!".
    """
    if not os.path.lexists(out) or not any(out.iterdir()):
        return ABSENT
    found = {name: digest for name, digest in digests(out).items() if name.split("/")[0] != ".llmq"}
    if "llmq.json" in found:
        label = next((label for label, expected in finished.items() if found == expected), None)
        return label or f"!a manifest over files that are not its own: {sorted(found)}"
    if not (out / ".llmq").is_dir():
        return f"!neither manifest nor scratch, but {sorted(found)}"
    try:
        open_source(out).close()
    except InputError as error:
        return UNFINISHED if "unfinished" in str(error) else f"!{error}"
    return "!loads without a manifest"


def complaint(outcome: Outcome, codes: tuple[int, ...]) -> str:
    """What is wrong with how a run ended, or nothing: its exit code, or what it said."""
    if outcome.code not in codes:
        return f"exit code {outcome.code}: {outcome.stderr.strip()[-300:]}"
    mishap = next((word for word in _MISHAPS if word in outcome.stderr), None)
    if mishap:
        return f"{mishap}: {outcome.stderr.strip()[-600:]}"
    errors = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    if len(errors) != (outcome.code > 0):
        return f"{len(errors)} errors with exit code {outcome.code}: {outcome.stderr.strip()[-300:]}"
    return ""


def remove(folder: Path) -> None:
    """Remove an output, if there is one."""
    shutil.rmtree(folder, ignore_errors=True)
