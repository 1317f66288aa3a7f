"""`llmq.verify`: whether an output is whole, makes sense, and is what its recipe makes of its source."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llmq.checkpoint.faults import reading
from llmq.checkpoint.folder_files import CONFIG_FILE
from llmq.checkpoint.hub import download
from llmq.checkpoint.source import FolderSource, open_source
from llmq.errors import InputError, UnsupportedError, UsageError
from llmq.formats.fp8 import dequantized
from llmq.pipeline.threads import use_threads
from llmq.system.progress import NullProgress, Progress
from llmq.verification.against import compare_with_source
from llmq.verification.files import FileCheck, check_files, check_still_there, read_manifest_of
from llmq.verification.meaning import check_meaning
from llmq.verification.result import Agreement, Problem, Verification

if TYPE_CHECKING:
    from collections.abc import Collection

    from llmq.checkpoint.source import Source

__all__ = ["verify"]

_NOT_COMPARED: Final = "not compared with the source: the output itself is not sound"


def verify(
    output: str | Path,
    *,
    against: str | Path | None = None,
    full: bool = False,
    ignore: Collection[str] = (),
    threads: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Check an output of `llmq quantize`: every byte of it, what it means and, on request, where it comes from.

    Every file is read once. Its size and SHA-256, and the SHA-256 of every tensor, must be those of the manifest, which
    carries a checksum of itself; headers and index must be sound and agree; scales must be finite, and every packed
    weight must be laid out as its scheme in ``config.json`` says, with the widths that ``recipe.json`` tells. A
    checkpoint without a manifest is checked as far as that goes, and the missing manifest is a problem.

    Parameters
    ----------
    output : str or Path
        A folder, or ``org/name[@revision]`` of the Hub, which is downloaded.
    against : str or Path, optional
        The source, as `llmq quantize` takes it: a sample of every weight is quantized again, and must come out the same
        bit for bit; weights of calibrated methods must be near the source. Configuration and tokenizer must be its own.
    full : bool
        Compare all of it with the source, not a sample.
    ignore : collection of str
        Names of files that may have been changed, such as an edited ``README.md``.
    threads : int, optional
        Threads of the kernels.
    progress : Progress, optional

    Returns
    -------
    Verification
        Nothing that is wrong with the output raises.

    Raises
    ------
    InputError
        There is no such folder; or the source cannot be read.
    UsageError
        `full` without `against`.
    UnsupportedError
        The source cannot make these weights again: they were trained.
    ResourceError
        Memory or descriptors ran out.
    NetworkError
        The Hub could not be reached, or refused.
    """
    if full and against is None:
        raise UsageError("--full compares with a source", hint="give --against SOURCE too")
    ignored = {ignore} if isinstance(ignore, str) else {*ignore}
    began, told = time.perf_counter(), progress or NullProgress()
    use_threads(threads)
    folder = _folder(output)
    found = read_manifest_of(folder)
    agreement: Agreement | None = None
    if not found.unfinished:
        # A source that cannot be read is told before the work.
        with nullcontext() if against is None else open_source(against) as source:
            check_files(found, ignored, told)
            agreement = _look_inside(found, source, ignored, told, full=full)
        check_still_there(found)
    return Verification(
        folder,
        found.files,
        found.tensors,
        found.nbytes,
        tuple(found.problems),
        tuple(found.notes),
        time.perf_counter() - began,
        found.sha256,
        agreement,
    )


def _folder(output: str | Path) -> Path:
    if not (isinstance(output, Path) or os.path.lexists(output)):
        if "://" in output:
            raise UsageError("outputs are read from this machine", file=output, hint="copy the folder first")
        return download(output).folder
    with reading(output):
        is_folder, is_there = Path(output).is_dir(), Path(output).exists()
    if not is_folder:
        what = "not a folder" if is_there else "no such folder"
        raise InputError(what, file=output, hint="give the folder that `llmq quantize` wrote")
    return Path(output)


def _look_inside(
    found: FileCheck, source: Source | None, ignored: Collection[str], progress: Progress, *, full: bool
) -> Agreement | None:
    """Check what the files say; against the source only where that is sound."""
    try:
        opened = FolderSource(found.folder, label=str(found.folder))
    except (InputError, UnsupportedError) as error:
        _add(found, [Problem.of(error, str(found.folder))])
        if source is not None:
            found.notes.append(_NOT_COMPARED)
        return None
    with opened as output:
        if CONFIG_FILE not in {problem.file for problem in found.problems}:  # else all that hangs on it is no news
            _add(found, check_meaning(output, ours=found.manifest is not None))
        if source is None:
            return None
        if found.manifest is None or found.problems:
            found.notes.append(_NOT_COMPARED)
            return None
        agreement, problems = compare_with_source(
            output, dequantized(source), found.manifest, progress, ignored=ignored, full=full
        )
    found.problems += problems
    return agreement


def _add(found: FileCheck, problems: list[Problem]) -> None:
    """Add problems, but those of files that were found wrong already: what they say then is no news."""
    wrong = {problem.file for problem in found.problems}
    found.problems += [problem for problem in problems if problem.file not in wrong]
