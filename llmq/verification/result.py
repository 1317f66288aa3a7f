"""What a verification finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from llmq.errors import printable

if TYPE_CHECKING:
    from pathlib import Path

    from llmq.errors import LlmqError

__all__ = ["Agreement", "Problem", "Verification"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Parameters
    ----------
    what : str
        In a few words, with what was expected and found.
    file, tensor : str or None
        Where.
    """

    what: str
    file: str | None = None
    tensor: str | None = None

    @classmethod
    def of(cls, error: LlmqError, file: str | None = None) -> Problem:
        """What an error says; `file` is where, if it does not say so itself."""
        return cls(error.what, error.file if error.file is not None else file, error.tensor)

    def __str__(self) -> str:
        return ": ".join(printable(part) for part in (self.file, self.tensor, self.what) if part is not None)


@dataclass(frozen=True)
class Agreement:
    """How an output compares with its source, quantized again.

    Parameters
    ----------
    source : str
    tensors : int
        Of the source, all of which are looked at.
    blocks : int
        Blocks of rows, or of bytes of tensors that are kept, that were read and compared.
    exact : int
        Those that came out the same, bit for bit.
    near : int
        Those of calibrated methods, which cannot be repeated block by block: no further from the source than they may
        be.
    share : float
        Part of the source's bytes that was read, 0 to 1.
    """

    source: str
    tensors: int
    blocks: int
    exact: int
    near: int
    share: float


@dataclass(frozen=True)
class Verification:
    """What was looked at, and what is wrong.

    Parameters
    ----------
    folder : Path
    files, tensors, nbytes : int
        Files and tensors that were read, and their bytes.
    problems : tuple of Problem
        Empty for an output that is whole.
    notes : tuple of str
        What is worth knowing and no fault, such as files that are not a part of the output.
    seconds : float
        Wall time.
    manifest_sha256 : str or None
        Of the manifest, which has those of all other files: it tells this output from any other.
    agreement : Agreement or None
        With the source, where it was asked for and could be told.
    """

    folder: Path
    files: int
    tensors: int
    nbytes: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    manifest_sha256: str | None = None
    agreement: Agreement | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return the object that `llmq verify --json` prints, without its schema number."""
        return {
            "output": str(self.folder),
            "ok": self.ok,
            "files": self.files,
            "tensors": self.tensors,
            "bytes": self.nbytes,
            "manifest_sha256": self.manifest_sha256,
            "seconds": self.seconds,
            "problems": [asdict(problem) | {"message": str(problem)} for problem in self.problems],
            "notes": list(self.notes),
            "against": None if self.agreement is None else asdict(self.agreement),
        }
