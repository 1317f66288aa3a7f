"""Repositories of the Hugging Face Hub, downloaded into its cache. Never pickles, never code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from llmq.checkpoint.certificate import CERTIFICATE
from llmq.checkpoint.companions import COPIED_FILES, RECIPE_FILE
from llmq.checkpoint.index import INDEX_FILE, no_weights
from llmq.checkpoint.manifest import MANIFEST
from llmq.errors import InputError, LlmqError, NetworkError, UsageError

__all__ = [
    "ALLOWED_FILES",
    "IGNORED_FILES",
    "Download",
    "download",
    "explain",
    "is_transport_error",
    "named_revision",
    "parse_repo",
]

_REPO: Final = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.\-]{0,95}/[A-Za-z0-9][\w.\-]{0,95})(?:@(?P<revision>[\w.\-/]{1,200}))?", re.ASCII
)
ALLOWED_FILES: Final = ("*.safetensors", INDEX_FILE, "config.json", MANIFEST, CERTIFICATE, RECIPE_FILE, *COPIED_FILES)
"""Patterns of what is of use in a repository."""

IGNORED_FILES: Final = ("*/*", "consolidated*.safetensors")
"""Files in subfolders are other formats; consolidated ones repeat the same weights under other names."""


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


def named_revision(model: str, revision: str | None) -> tuple[str, str | None]:
    """Name of a repository, and the revision that is meant.

    Raises
    ------
    InputError
        Not a repository's name.
    UsageError
        Two revisions.
    """
    parsed = parse_repo(model)
    if parsed is None:
        raise InputError(
            "no such folder", file=model, hint="give a folder, a .safetensors file, or org/name[@revision]"
        )
    repo, named = parsed
    if named and revision and named != revision:
        raise UsageError("two different revisions", file=model, found=revision)
    return repo, named or revision


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
    repo, wanted = named_revision(model, revision)
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repo, revision=wanted, allow_patterns=list(ALLOWED_FILES), ignore_patterns=list(IGNORED_FILES)
        )
    except Exception as error:
        known = explain(error, model)
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
        if explain(error, found.repo) is None:
            raise
        return [path.name for path in found.folder.glob("*")]
    return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in IGNORED_FILES)]


def explain(error: Exception, model: str) -> LlmqError | None:
    """Tell what an error of the Hub's client means to a user; None where it is none of those."""
    if isinstance(error, LlmqError):
        return error
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


def is_transport_error(error: Exception) -> bool:
    """Whether a connection failed, rather than that the Hub answered something."""
    from huggingface_hub import get_session

    # The HTTP library behind the client is its own affair: its errors are told by where they come from.
    library = type(get_session()).__module__.partition(".")[0]
    return isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.partition(".")[0] == library


def _explain_system(error: Exception, model: str) -> LlmqError | None:
    import errno

    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        from llmq.errors import ResourceError

        return ResourceError("not enough disk for the download", file=model, hint="free some space, or set HF_HOME")
    if is_transport_error(error):
        hint = "check the connection and run the same command again"
        return NetworkError(f"the download failed: {str(error)[:200]}", file=model, hint=hint)
    return None
