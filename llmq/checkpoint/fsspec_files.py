"""The files of a folder at an address that fsspec reads: object stores and web servers."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from llmq.checkpoint.companions import COPIED_FILES
from llmq.checkpoint.folder_files import CONFIG_FILE
from llmq.checkpoint.hub import ALLOWED_FILES
from llmq.checkpoint.index import INDEX_FILE, SINGLE_FILE, no_weights, weight_map
from llmq.checkpoint.safe_open import MAX_SMALL
from llmq.errors import InputError, LlmqError, NetworkError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["FsspecFiles", "find_url"]

_RETRIES: Final = 5
_PLAIN_NAME: Final = re.compile(r"[\w.\-]+", re.ASCII)
_TAGS: Final = ("ETag", "etag", "LastModified", "last_modified", "mtime", "created")
"""What file systems call that which changes with a file."""


def find_url(url: str) -> FsspecFiles:
    """Look a folder up, and copy everything of it but the weights into a temporary folder.

    Parameters
    ----------
    url : str
        Such as ``s3://bucket/model`` or ``https://host/model``. A web server that lists no files is asked for those
        that checkpoints usually have.

    Raises
    ------
    UsageError
        No such scheme, or one that needs a package which is not installed.
    InputError
        No such folder, or no weights in it.
    NetworkError
        The server fails.
    """
    from fsspec.core import url_to_fs

    try:
        system, root = url_to_fs(url)
    except ImportError as error:
        hint = "pip install 'numba-llmq[remote]'"
        raise UsageError(f"this address needs a package: {error}", file=url, hint=hint) from None
    except ValueError as error:
        raise UsageError(str(error), file=url, hint="s3://, gs:// or https://") from None
    return FsspecFiles(system, root.rstrip("/"), url)


class FsspecFiles:
    """Reads the weights of a folder; see `RemoteFiles`.

    Parameters
    ----------
    system : fsspec.AbstractFileSystem
    root : str
        The folder, as the system calls it.
    url : str
        The same, as the user calls it.
    """

    def __init__(self, system: Any, root: str, url: str) -> None:
        self._system, self._root, self._url = system, root, url
        self.folder = Path(tempfile.mkdtemp(prefix="llmq-"))
        try:
            names = self._names()
            for name in names:
                if not name.endswith(".safetensors"):
                    self._copy(name)
            weights = {n for n in names if n.endswith(".safetensors")}
            weights |= set((weight_map(self.folder, (self.folder.resolve(),)) or {}).values())
            if not weights:
                raise no_weights(url, names)
            found = {name: self._info(name) for name in sorted(weights)}
            self.sizes: Mapping[str, int] = {name: size for name, (size, _) in found.items()}
            self._tags = {name: tag for name, (_, tag) in found.items()}
        except BaseException:
            self.close()
            raise
        self.sha256: Mapping[str, str] = {}
        self.identity: dict[str, Any] = {"url": url, "tags": self._tags}

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _names(self) -> list[str]:
        """Names of the files of use in the folder."""
        try:
            listed = [PurePosixPath(entry["name"]).name for entry in self._system.ls(self._root, detail=True)]
        except Exception:
            listed = []
        if not any(name.endswith(".safetensors") for name in listed):
            usual = (INDEX_FILE, SINGLE_FILE, CONFIG_FILE, *(name for name in COPIED_FILES if "*" not in name))
            usual += ("tokenizer.json", "tokenizer_config.json", "LICENSE")
            listed = [name for name in usual if self._try(name, self._system.exists, self._path(name))]
        plain = {name for name in listed if _PLAIN_NAME.fullmatch(name)}
        return sorted(name for name in plain if any(fnmatchcase(name, pattern) for pattern in ALLOWED_FILES))

    def _copy(self, name: str) -> None:
        size, _ = self._info(name)
        if size > MAX_SMALL:
            raise InputError("too long", file=name, expected=f"at most {MAX_SMALL} bytes", found=size)
        self._try(name, self._system.get_file, self._path(name), str(self.folder / name))

    def _info(self, name: str) -> tuple[int, str]:
        """Length of a file, and what changes with it."""
        found = self._try(name, self._system.info, self._path(name))
        if not isinstance(found.get("size"), int):
            raise NetworkError("the server does not tell how long the file is", file=name)
        return found["size"], str(next((found[tag] for tag in _TAGS if found.get(tag)), ""))

    def _try(self, name: str, ask: Callable[..., Any], *arguments: object) -> Any:
        """Ask a server that may fail now and then."""
        for attempt in range(_RETRIES):
            try:
                return ask(*arguments)
            except FileNotFoundError:
                raise InputError("no such file on the server", file=name) from None
            except PermissionError as error:
                raise InputError(f"no access: {str(error)[:200]}", file=name) from None
            except LlmqError:
                raise
            except Exception as error:
                if attempt == _RETRIES - 1:
                    what = f"cannot be read: {str(error)[:200] or type(error).__name__}"
                    raise NetworkError(what, file=name, hint="check the address and the connection") from error
            time.sleep(min(2.0**attempt / 4, 8.0))
        return None

    def read(self, name: str, start: int, buffer: memoryview) -> None:
        """See `RemoteFiles.read`.

        Raises
        ------
        NetworkError
            The server fails again and again, or sends something else than the range that it was asked for.
        InputError
            The file, or access to it, is gone.
        """
        data = self._try(name, self._system.cat_file, self._path(name), start, start + len(buffer))
        if len(data) != len(buffer):
            raise NetworkError(
                "the server sends another range", file=name, expected=f"{len(buffer)} bytes", found=len(data)
            )
        buffer[:] = data

    def check_unchanged(self) -> None:
        """See `RemoteFiles.check_unchanged`."""
        self._system.invalidate_cache()
        for name in self.sizes:
            if self._info(name) != (self.sizes[name], self._tags[name]):
                raise InputError("changed while it was read", file=name, hint="run again once it is complete")

    def close(self) -> None:
        """Remove the temporary folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
