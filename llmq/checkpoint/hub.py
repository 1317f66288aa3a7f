"""Repositories of the Hugging Face Hub, downloaded into its cache. Never pickles, never code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from llmq.checkpoint.certificate import CERTIFICATE
from llmq.checkpoint.companions import COPIED_FILES
from llmq.checkpoint.index import INDEX_FILE, no_weights
from llmq.checkpoint.manifest import MANIFEST
from llmq.errors import InputError, LlmqError, NetworkError, UsageError

__all__ = ["Download", "download", "parse_repo"]

_REPO: Final = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.\-]{0,95}/[A-Za-z0-9][\w.\-]{0,95})(?:@(?P<revision>[\w.\-/]{1,200}))?", re.ASCII
)
_ALLOWED: Final = ("*.safetensors", INDEX_FILE, "config.json", MANIFEST, CERTIFICATE, *COPIED_FILES)
# Files in subfolders are other formats; consolidated ones repeat the same weights under other names.
_IGNORED: Final = ("*/*", "consolidated*.safetensors")


@dataclass(frozen=True)
class Download:
    """A repository on this disk.

    Parameters
    ----------
    folder : Path
        Snapshot in the Hugging Face cache.
    repo, commit : str
        What it is a snapshot of.
    """

    folder: Path
    repo: str
    commit: str

    @property
    def identity(self) -> dict[str, str]:
        """JSON-able."""
        return {"repo": self.repo, "commit": self.commit}


def parse_repo(model: str) -> tuple[str, str | None] | None:
    """Part ``org/name[@revision]``; None for anything else."""
    found = _REPO.fullmatch(model)
    if not found or ".." in model or "--" in found["repo"]:
        return None
    return found["repo"], found["revision"]


def download(model: str, *, revision: str | None = None) -> Download:
    """Download a repository's weights, configuration, tokenizer and cards, or find them in the cache.

    Parameters
    ----------
    model : str
        ``org/name[@revision]``.
    revision : str or None
        Branch, tag or commit.

    Raises
    ------
    UsageError
        Two revisions.
    InputError
        Not a repository's name, or no such repository or revision, or no access, or no weights in it.
    UnsupportedError
        Weights in other formats only.
    NetworkError
        Offline, or the Hub failed.
    """
    parsed = parse_repo(model)
    if parsed is None:
        raise InputError(
            "no such folder", file=model, hint="give a folder, a .safetensors file, or org/name[@revision]"
        )
    repo, named = parsed
    if named and revision and named != revision:
        raise UsageError("two different revisions", file=model, found=revision)
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repo, revision=named or revision, allow_patterns=list(_ALLOWED), ignore_patterns=list(_IGNORED)
        )
    except Exception as error:
        known = _explain(error, model)
        if known is None:
            raise
        raise known from error
    found = Download(Path(folder), repo, Path(folder).name)
    if not any(found.folder.glob("*.safetensors")):
        raise no_weights(model, _names(found))
    return found


def _names(found: Download) -> list[str]:
    """Names of a repository's files that a download considers; of what is here where the Hub does not answer."""
    from huggingface_hub import list_repo_files

    try:
        names = list_repo_files(found.repo, revision=found.commit)
    except Exception as error:
        if _explain(error, found.repo) is None:
            raise
        return [path.name for path in found.folder.glob("*")]
    return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in _IGNORED)]


def _explain(error: Exception, model: str) -> LlmqError | None:
    from huggingface_hub import errors

    offline = "no such folder here, and the Hub cannot be reached"
    cases: tuple[tuple[type[Exception], type[LlmqError], str, str], ...] = (
        (
            errors.GatedRepoError,
            InputError,
            "this repository asks for consent",
            "accept its terms on its page, then run `hf auth login`",
        ),
        (errors.RevisionNotFoundError, InputError, "no such revision", "look it up on the repository's page"),
        (
            errors.RepositoryNotFoundError,
            InputError,
            "no such folder here, and no such repository on the Hub, or no access to it",
            "check the name; for a private repository run `hf auth login`",
        ),
        (errors.HFValidationError, InputError, "not a name of a repository", "give org/name[@revision]"),
        (errors.OfflineModeIsEnabled, NetworkError, offline, "unset HF_HUB_OFFLINE, or give a local folder"),
        (errors.LocalEntryNotFoundError, NetworkError, offline, "check the connection, or give a local folder"),
        (errors.HfHubHTTPError, NetworkError, "the Hub answered with an error", "try again later"),
        (errors.FileMetadataError, NetworkError, "the Hub answered without what a download needs", "try again later"),
    )
    for kind, ours, what, hint in cases:
        if isinstance(error, kind):
            return ours(what, file=model, hint=hint)
    return _explain_system(error, model)


def _explain_system(error: Exception, model: str) -> LlmqError | None:
    import errno

    from huggingface_hub import get_session

    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        from llmq.errors import ResourceError

        return ResourceError("not enough disk for the download", file=model, hint="free some space, or set HF_HOME")
    # The HTTP library behind the client is its own affair: its errors are told by where they come from.
    library = type(get_session()).__module__.partition(".")[0]
    if isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.partition(".")[0] == library:
        hint = "check the connection and run the same command again"
        return NetworkError(f"the download failed: {str(error)[:200]}", file=model, hint=hint)
    return None
