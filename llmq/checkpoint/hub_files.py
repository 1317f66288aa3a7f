"""The files of a repository of the Hub, read by HTTP ranges at a fixed commit."""

from __future__ import annotations

import threading
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from llmq.checkpoint.hub import (
    ALLOWED_FILES,
    IGNORED_FILES,
    Download,
    download,
    explain,
    is_transport_error,
    named_revision,
)
from llmq.checkpoint.index import no_weights
from llmq.errors import NetworkError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["HubFiles", "find_repository"]

_RETRIES: Final = 6
"""Failures in a row, without a byte between them, after which a read is given up."""

_WAIT = 1.0
"""Seconds before the second attempt; each further one waits twice as long."""

_LONGEST_WAIT: Final = 8.0
_STALE: Final = frozenset({400, 401, 403, 404, 410})
"""What the place that a file was found at answers once its signature has expired."""


def find_repository(model: str, *, revision: str | None = None) -> HubFiles | Download:
    """Look a repository up, and fetch everything of it but the weights into the Hugging Face cache.

    Returns
    -------
    HubFiles or Download
        The latter where the weights are in the cache already, as they must be offline.

    Raises
    ------
    LlmqError
        As for `hub.download`.
    """
    repo, wanted = named_revision(model, revision)
    import huggingface_hub as hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return download(model, revision=revision)
    try:
        info = hub.HfApi().model_info(repo, revision=wanted, files_metadata=True)
        commit = str(info.sha)
        folder = hub.snapshot_download(
            repo,
            revision=commit,
            allow_patterns=list(ALLOWED_FILES),
            ignore_patterns=[*IGNORED_FILES, "*.safetensors"],
            tqdm_class=_silent(),
        )
    except Exception as error:
        known = explain(error, model)
        if known is None:
            raise
        raise known from error
    names = [s.rfilename for s in info.siblings or () if not _is_ignored(s.rfilename)]
    weights = [s for s in info.siblings or () if s.rfilename in names and s.rfilename.endswith(".safetensors")]
    if not weights:
        raise no_weights(model, names)
    if all(isinstance(hub.try_to_load_from_cache(repo, s.rfilename, revision=commit), str) for s in weights):
        return Download(Path(folder), repo, commit)
    sizes = {s.rfilename: s.size for s in weights if s.size is not None}
    if len(sizes) < len(weights):
        raise NetworkError("the Hub does not tell how long the files are", file=model, hint="use --download")
    sums = {s.rfilename: s.lfs.sha256 for s in weights if s.lfs is not None}
    return HubFiles(Download(Path(folder), repo, commit), sizes=sizes, sha256=sums)


def _silent() -> Any:
    """Bars of the client that show nothing: a few small files are no wait."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # public, by its documentation

    class Silent(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"disable": True})  # type: ignore[no-untyped-call]

    return Silent


def _is_ignored(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in IGNORED_FILES)


class HubFiles:
    """Reads the weights of a repository; see `RemoteFiles`.

    The Hub tells where a file lies, once; the bytes then come from there, without the user's token where that is
    another host. Requests fail over: what breaks off is continued, at the byte where it did.

    Parameters
    ----------
    snapshot : Download
        Everything but the weights, and the commit.
    sizes, sha256 : mapping
        Of the weights, by file.
    """

    def __init__(self, snapshot: Download, *, sizes: Mapping[str, int], sha256: Mapping[str, str]) -> None:
        self.folder: Path = snapshot.folder
        self.sizes = sizes
        self.sha256 = sha256
        self.identity: dict[str, Any] = {"hub": snapshot.identity}
        self._snapshot = snapshot
        self._places: dict[str, str] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def read(self, name: str, start: int, buffer: memoryview) -> None:
        """See `RemoteFiles.read`.

        Raises
        ------
        NetworkError
            The server fails again and again, or does not answer with the range that it was asked for.
        InputError
            The file, or access to it, is gone.
        """
        done = failures = 0
        while done < len(buffer):
            before = done
            try:
                for chunk in self._chunks(name, start + done, start + len(buffer)):
                    if done + len(chunk) > len(buffer):
                        raise NetworkError("the server sends more than it was asked for", file=name)
                    buffer[done : done + len(chunk)] = chunk
                    done += len(chunk)
            except _StalePlaceError:
                failures += 1
                self._forget(name)
                if failures > _RETRIES:
                    raise NetworkError("the Hub names places that do not have the file", file=name) from None
            except Exception as error:
                failures = 0 if done > before else failures + 1
                self._may_go_on(error, name, failures)
            else:
                if done < len(buffer) and done == before:
                    failures += 1
                    self._may_go_on(ConnectionError("the connection was closed"), name, failures)

    def _may_go_on(self, error: Exception, name: str, failures: int) -> None:
        """Wait before the next attempt; raise where none makes sense."""
        if not is_transport_error(error) or failures > _RETRIES or self._closed.is_set():
            known = explain(error, f"{self._snapshot.repo}: {name}")
            if known is None or known is error:
                raise error
            raise known from error
        self._closed.wait(min(_WAIT * 2.0 ** (failures - 1), _LONGEST_WAIT) if failures else 0.0)

    def _chunks(self, name: str, start: int, stop: int) -> Iterator[bytes]:
        """Bytes of a file, as they come; fewer where the connection is closed."""
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # public, by its documentation
            build_hf_headers,
            hf_raise_for_status,
            http_stream_backoff,
        )

        place, ours = self._place(name)
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        if ours:
            headers |= build_hf_headers()
        broken = None
        with http_stream_backoff(
            "GET",
            place,
            headers=headers,
            timeout=_timeout(),
            max_retries=_RETRIES,
            base_wait_time=_WAIT,
            max_wait_time=_LONGEST_WAIT,
        ) as response:
            if response.status_code in _STALE and not ours:
                raise _StalePlaceError
            hf_raise_for_status(response)
            self._check(response, name, start, stop)
            try:
                for chunk in response.iter_raw():
                    if self._closed.is_set():
                        raise ConnectionError("the source was closed")
                    yield chunk
            except Exception as error:  # raised below: the client would begin again where we are not
                broken = error
        if broken is not None:
            raise broken

    def _check(self, response: Any, name: str, start: int, stop: int) -> None:
        if response.status_code != 206:
            hint = "use --download"
            raise NetworkError(
                "the server sends no ranges of files", file=name, expected="206", found=response.status_code, hint=hint
            )
        expected, found = f"bytes {start}-{stop - 1}/{self.sizes[name]}", response.headers.get("Content-Range")
        if found != expected:
            raise NetworkError("the server sends another range", file=name, expected=expected, found=found)

    def _place(self, name: str) -> tuple[str, bool]:
        """Where a file lies, and whether that is the Hub itself."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(self._snapshot.repo, name, revision=self._snapshot.commit)
        with self._lock:
            place = self._places.get(name)
        if place is None:
            found = get_hf_file_metadata(url, timeout=_timeout(), retry_on_errors=True)
            if found.size is not None and found.size != self.sizes[name]:
                raise NetworkError(
                    "the server has another length", file=name, expected=self.sizes[name], found=found.size
                )
            place = found.location
            with self._lock:
                self._places[name] = place
        return place, urlsplit(place).netloc == urlsplit(url).netloc

    def _forget(self, name: str) -> None:
        with self._lock:
            self._places.pop(name, None)

    def check_unchanged(self) -> None:
        """Nothing to do: a commit does not change."""

    def close(self) -> None:
        """Let reads that go on fail at their next bytes."""
        self._closed.set()


class _StalePlaceError(Exception):
    """The Hub must be asked again where a file lies."""


def _timeout() -> float:
    from huggingface_hub import constants

    return float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
