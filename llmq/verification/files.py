"""Whether every file of an output is, byte by byte, what its manifest says."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llmq.checkpoint.certificate import CERTIFICATE, check_certificate
from llmq.checkpoint.companions import RECIPE_FILE, is_card, is_weight_file, split_companions
from llmq.checkpoint.faults import reading
from llmq.checkpoint.folder_files import CONFIG_FILE
from llmq.checkpoint.header import read_header
from llmq.checkpoint.index import SCRATCH
from llmq.checkpoint.manifest import MANIFEST, parse_manifest
from llmq.checkpoint.safe_open import allowed_roots, open_inside, read_small
from llmq.errors import InputError, UnsupportedError
from llmq.system.files import is_present
from llmq.verification.digests import digest_file, digest_shard
from llmq.verification.result import Problem

if TYPE_CHECKING:
    from collections.abc import Collection

    from llmq.checkpoint.header import Header
    from llmq.system.progress import Progress
    from llmq.verification.digests import TensorDigest

__all__ = ["FileCheck", "check_files", "check_still_there", "read_manifest_of"]

_FINITE: Final = "weight_scale"


@dataclass
class FileCheck:
    """What looking at the files has found so far.

    Parameters
    ----------
    folder : Path
    manifest : dict or None
        None where there is none, or none to be trusted.
    sha256 : str or None
        Of its file.
    unfinished : bool
        Whether a run was stopped before there was anything to look at.
    problems, notes : list
        See `Verification`.
    files, tensors, nbytes : int
        Read so far.
    """

    folder: Path
    manifest: dict[str, Any] | None
    sha256: str | None = None
    unfinished: bool = False
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: int = 0
    tensors: int = 0
    nbytes: int = 0

    @property
    def keeps_nonfinite(self) -> bool:
        """Whether the output was made with ``--nonfinite keep``."""
        settings = (self.manifest or {}).get("settings")
        return isinstance(settings, dict) and settings.get("nonfinite") == "keep"


def read_manifest_of(folder: Path) -> FileCheck:
    """Read the manifest of a folder; whatever is wrong with it is the first problem."""
    found = FileCheck(folder, None)
    if not is_present(folder / MANIFEST):
        found.unfinished = (folder / SCRATCH).is_dir()
        if found.unfinished:
            found.problems.append(Problem("unfinished: run the same `llmq quantize` again", str(folder)))
        else:
            found.problems.append(Problem("missing: nothing tells what the files should be", MANIFEST))
        return found
    try:
        data = read_small(folder / MANIFEST, allowed_roots(folder))
        found.sha256 = hashlib.sha256(data).hexdigest()
        found.manifest = parse_manifest(data, Path(MANIFEST))
    except (InputError, UnsupportedError) as error:
        found.problems.append(Problem.of(error, MANIFEST))
    found.files += 1
    if (folder / SCRATCH).is_dir():
        found.notes.append(f"{SCRATCH} is there: a run was stopped, or is under way; it is no part of the output")
    return found


def check_still_there(found: FileCheck) -> None:
    """Add a problem, the first, if the manifest is not the one that was read: what differs then is no damage."""
    if found.sha256 is None:
        return
    try:
        data = read_small(found.folder / MANIFEST, allowed_roots(found.folder))
    except (InputError, UnsupportedError):
        data = b""
    if hashlib.sha256(data).hexdigest() != found.sha256:
        found.problems.insert(0, Problem("changed while the output was verified: a run replaces it", MANIFEST))


def check_files(found: FileCheck, ignored: Collection[str], progress: Progress) -> None:
    """Read every file of an output once; without a manifest, every safetensors file.

    Parameters
    ----------
    found : FileCheck
        From `read_manifest_of`; grows.
    ignored : collection of str
        Names of files that are not looked at.
    progress : Progress
    """
    with reading(found.folder):
        names = sorted(path.name for path in found.folder.iterdir() if path.name not in (MANIFEST, SCRATCH))
    listed = found.manifest["files"] if found.manifest else {n: None for n in names if n.endswith(".safetensors")}
    wanted = {name: entry for name, entry in listed.items() if name not in ignored}
    progress.start("verifying", sum(_size(found.folder / name) for name in wanted))
    for name, entry in wanted.items():
        try:
            _check_file(found, name, entry, progress)
        except (InputError, UnsupportedError) as error:
            found.problems.append(Problem.of(error, name))
    progress.finish()
    if found.manifest:
        _check_others(found, [name for name in names if name not in listed and name not in ignored])
        _check_holders(found)
    absent = sorted({*ignored} - {*names, *listed})
    found.notes += [f"{name} is ignored, and not there" for name in absent]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _check_file(found: FileCheck, name: str, entry: dict[str, Any] | None, progress: Progress) -> None:
    fd, signature = open_inside(found.folder / name, allowed_roots(found.folder))
    try:
        found.files += 1
        if entry is not None and signature.size != entry["size"]:
            raise InputError("wrong size", file=name, expected=entry["size"], found=signature.size, hint=_hint(name))
        found.nbytes += signature.size
        if not name.endswith(".safetensors"):
            digest = digest_file(fd, name, signature.size, progress)
            wrong = None
        else:
            header = read_header(fd, name)
            digest, tensors = digest_shard(fd, name, header, progress)
            wrong = _check_tensors(found, name, header, tensors)
    finally:
        os.close(fd)
    if entry is not None and digest != entry["sha256"] and not wrong:
        what = "not as it was written" if wrong is None else "its header is not as it was written"
        raise InputError(what, file=name, expected=entry["sha256"], found=digest, hint=_hint(name))


def _hint(name: str) -> str | None:
    return f"if you edited it, --ignore {name}" if is_card(name) else None


def _check_tensors(found: FileCheck, name: str, header: Header, tensors: dict[str, TensorDigest]) -> int:
    """Compare a shard's tensors with the manifest; the number of those whose bytes are other ones."""
    found.tensors += len(header.tensors)
    wrong = 0
    for tensor, digest in tensors.items():
        _check_finite(found, name, tensor, digest)
        entry = found.manifest["tensors"].get(tensor) if found.manifest else None
        if found.manifest and (entry is None or entry["file"] != name):
            where = "it is in no file" if entry is None else f"it is in {entry['file']}"
            found.problems.append(Problem(f"{MANIFEST} says that {where}", name, tensor))
        elif entry is not None and entry["sha256"] != digest.sha256:
            what = f"not as it was written (expected {entry['sha256']}, found {digest.sha256})"
            found.problems.append(Problem(what, name, tensor))
            wrong += 1
    expected = (t for t, e in found.manifest["tensors"].items() if e["file"] == name) if found.manifest else ()
    found.problems += [Problem("missing", name, tensor) for tensor in expected if tensor not in tensors]
    return wrong


def _check_finite(found: FileCheck, name: str, tensor: str, digest: TensorDigest) -> None:
    if not digest.nan + digest.infinite:
        return
    what = f"holds {digest.nan} NaN and {digest.infinite} infinite values"
    if tensor.rpartition(".")[2] != _FINITE and (found.keeps_nonfinite or found.manifest is None):
        found.notes.append(str(Problem(what, name, tensor)))
    else:
        found.problems.append(Problem(what, name, tensor))


def _check_others(found: FileCheck, names: list[str]) -> None:
    """Files that the manifest does not list: other weights would be loaded by those who look for names."""
    for name in names:
        if name == CERTIFICATE:
            try:
                check_certificate(found.folder)
            except (InputError, UnsupportedError) as error:
                found.problems.append(Problem(error.what, name))
        elif _is_read_by_others(name):
            found.problems.append(Problem("no part of the output, though those who load it may read it", name))
        elif is_weight_file(name) and not name.endswith(".onnx"):
            found.problems.append(Problem("weights that are no part of the output, which others may load", name))
        elif (found.folder / name).is_file():
            found.notes.append(f"{name} is no part of the output")


def _is_read_by_others(name: str) -> bool:
    """Whether a file without weights changes what a checkpoint is: its configuration, its tokenizer, its template."""
    return name in (CONFIG_FILE, RECIPE_FILE) or (not is_card(name) and bool(split_companions([name])[0]))


def _check_holders(found: FileCheck) -> None:
    """Tensors that the manifest puts in files that hold none."""
    for tensor, entry in found.manifest["tensors"].items() if found.manifest else ():
        if not entry["file"].endswith(".safetensors"):
            what = f"{MANIFEST} says that it is in a file without tensors"
            found.problems.append(Problem(what, entry["file"], tensor))
