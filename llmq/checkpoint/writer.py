"""Writing a checkpoint piece by piece, so that a killed run loses little and never leaves half a model.

Shards grow in a scratch folder inside the output (see `llmq.checkpoint.journal`). Nothing else appears there until
`CheckpointWriter.commit`, which moves the shards out and writes the manifest last.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

import llmq
from llmq.checkpoint import json_strict
from llmq.checkpoint.background import Flusher
from llmq.checkpoint.faults import writing
from llmq.checkpoint.folder_files import CONFIG_FILE
from llmq.checkpoint.journal import Journal, Scratch
from llmq.checkpoint.layout import OutputTensor, ShardLayout, lay_out
from llmq.checkpoint.manifest import MANIFEST, SCHEMA
from llmq.checkpoint.output_folder import claim, plan_of, take_lock
from llmq.checkpoint.publish import FileEntry, publish_file, publish_shards, remove_stale, write_manifest
from llmq.checkpoint.shard_file import ShardFile
from llmq.system.files import replace, sync_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from llmq.system.lock import FileLock

__all__ = ["CheckpointWriter", "OutputTensor", "ShardLayout", "lay_out"]

_SYNC_BYTES: Final = 256 << 20
"""What a crash of the machine may cost at the most, beside the tensors it cuts off."""


class CheckpointWriter:
    """Writes the planned shards into a folder; a context manager, for one thread.

    Leaving the block without `commit`, by an exception or a kill, leaves scratch from which a writer with the same
    identity and shards goes on, tensor by tensor.

    Parameters
    ----------
    folder : Path
        The output; made if need be.
    shards : sequence of ShardLayout
        From `lay_out`.
    identity : dict
        JSON-able, such as ``{"settings": ..., "source": ...}``: what makes two runs the same. It also goes into the
        manifest.
    overwrite : bool
        Whether a finished output, or the model in a folder with other files, may be replaced; that happens in
        `commit`.
    resume : bool
        Whether to go on with an interrupted run; if not, what it wrote is discarded.

    Attributes
    ----------
    completed : frozenset of str
        Tensors that need not be written any more: an earlier run did, or they are empty.

    Raises
    ------
    UsageError
        On entering: the folder is in use or occupied, or an interrupted run there differs (the field is named).
    ResourceError
        No room, or a failing disk, at any time; the same run can go on later.
    """

    def __init__(
        self,
        folder: Path,
        shards: Sequence[ShardLayout],
        *,
        identity: dict[str, Any],
        overwrite: bool = False,
        resume: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self.shards = tuple(shards)
        self.identity = identity
        self.completed: frozenset[str] = frozenset()
        self._overwrite = overwrite
        self._resume = resume
        self._scratch = Scratch(self.folder)
        self._homes = {tensor.name: shard for shard in shards for tensor in shard.tensors}
        self._open: dict[str, ShardFile] = {}
        self._replaces: dict[str, int] = {}
        self._lock: FileLock | None = None
        self._journal: Journal | None = None
        self._flusher: Flusher | None = None
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="llmq-checksum")

    def __enter__(self) -> CheckpointWriter:
        plan = plan_of(self.identity, self.shards)
        try:
            with writing(self.folder):
                self._lock = take_lock(self.folder, overwrite=self._overwrite)
                self._replaces = claim(self.folder, plan, overwrite=self._overwrite, resume=self._resume)
                self._journal = Journal(self._scratch.journal)
                self._scratch.shards.mkdir(exist_ok=True)
                sync_folder(self._scratch.folder)
                done = [name for shard in self.shards for name in self._recover(shard, self._journal)]
        except BaseException:
            self._close()
            raise
        self.completed = frozenset(done)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def discard(self) -> None:
        """Remove what this and earlier runs left, for a run that could never be finished."""
        self._running()
        with writing(self.folder):
            self._close(keep_lock=True)
            self._scratch.remove()
            self._close()
            if not any(self.folder.iterdir()):
                self.folder.rmdir()

    def write(self, name: str, data: bytes | bytearray | memoryview | np.ndarray) -> None:
        """Append the next bytes of a tensor; several tensors may grow by turns.

        Parameters
        ----------
        name : str
            A planned tensor that is not in `completed`.
        data : bytes-like or array
            Arrays must be C-contiguous and little-endian.

        Raises
        ------
        KeyError
            No such tensor.
        ValueError
            More bytes than planned, or an array of another layout.
        ResourceError
            No room, or a failing disk.
        """
        journal = self._running()
        shard = self._homes[name]
        view = _as_bytes(data)
        if len(view) == 0:
            return
        with writing(self.folder):
            if shard.file not in self._open:
                if shard.file in journal.record.sealed and self._scratch.sealed(shard.file).exists():
                    raise ValueError(f"tensor {name!r} is complete")
                self._open[shard.file] = self._open_part(shard, journal)
            growing = self._open[shard.file]
            digest = growing.append(name, view)
            if digest is not None:
                journal.append(tensor=name, file=shard.file, sha256=digest)
            self._flushing().wrote(len(view))
            if growing.is_complete:
                self._seal(shard, journal)

    def note_source(self, name: str, digest: str) -> None:
        """Keep the XXH3-128 of a source tensor for the manifest, in hexadecimal.

        Must come before the last bytes of what the tensor becomes, or a run that goes on would not know it.

        Raises
        ------
        ResourceError
            No room, or a failing disk.
        """
        journal = self._running()
        with writing(self.folder):
            if journal.record.sources.get(name) != digest:
                journal.append(source=name, xxh3_128=digest)

    def commit(self, config: dict[str, Any] | None, copies: Mapping[str, Path | bytes]) -> None:
        """Publish: shards, index, ``config.json``, copied files, and the manifest last; then remove the scratch.

        Parameters
        ----------
        config : dict or None
            Content of ``config.json``.
        copies : mapping
            File to copy, or content, by the name it gets.

        Raises
        ------
        ValueError
            Tensors are not complete, or a copy would replace a file of the checkpoint itself.
        ResourceError
            No room, or a failing disk.
        """
        journal = self._running()
        reserved = {CONFIG_FILE, MANIFEST, *(shard.file for shard in self.shards)}
        if reserved & copies.keys() or any(name != Path(name).name for name in copies):
            raise ValueError("copies must have plain names of their own")
        with writing(self.folder):
            for shard in self.shards:
                if not self._is_sealed(shard, journal):
                    self._seal_last(shard, journal)
            files = publish_shards(self.folder, self.shards, journal)
            if config is not None:
                files[CONFIG_FILE] = publish_file(self.folder, CONFIG_FILE, json_strict.dumps(config))
            for name, path in copies.items():
                files[name] = publish_file(self.folder, name, path)
            remove_stale(self.folder, self._replaces, files)
            write_manifest(self.folder, self._manifest(files, journal))
            self._close(keep_lock=True)
            self._scratch.remove()
            self._close()

    def _manifest(self, files: dict[str, FileEntry], journal: Journal) -> dict[str, Any]:
        tensors = {
            tensor.name: {"file": shard.file, "sha256": journal.record.tensors.get(tensor.name, _EMPTY)}
            for shard in self.shards
            for tensor in shard.tensors
        }
        start = {"schema": SCHEMA, "llmq_version": llmq.__version__}
        sources = {name: {"xxh3_128": digest} for name, digest in sorted(journal.record.sources.items())}
        return start | self.identity | {"files": files, "tensors": tensors, "source_tensors": sources}

    def _recover(self, shard: ShardLayout, journal: Journal) -> list[str]:
        """Names of the tensors of a shard that are complete, by what an earlier run left of it."""
        if self._is_sealed(shard, journal):
            return [tensor.name for tensor in shard.tensors]
        part, sealed = self._scratch.part(shard.file), self._scratch.sealed(shard.file)
        if sealed.exists():  # renamed, but the journal does not say so
            sealed.replace(part)
        if not part.exists():
            return [tensor.name for tensor in shard.tensors if tensor.nbytes == 0]
        growing = self._open_part(shard, journal)
        done = list(growing.complete)
        self._open[shard.file] = growing
        if growing.is_complete:
            self._seal(shard, journal)
        return done

    def _is_sealed(self, shard: ShardLayout, journal: Journal) -> bool:
        """Whether a shard is whole: still in the scratch or, by an interrupted commit, in the output already."""
        size, _ = journal.record.sealed.get(shard.file, (-1, ""))
        if size != shard.size:
            return False
        if _has_size(self._scratch.sealed(shard.file), size):
            return True
        published = journal.record.publishing and _has_size(self.folder / shard.file, size)
        return published and not self._scratch.part(shard.file).exists()

    def _open_part(self, shard: ShardLayout, journal: Journal) -> ShardFile:
        path = self._scratch.part(shard.file)
        return ShardFile(shard, path, journal.record.tensors if path.exists() else {}, self._beside)

    def _seal(self, shard: ShardLayout, journal: Journal) -> None:
        self._flushing().settle()  # it may be about to sync this very file
        digest = self._open[shard.file].seal()
        del self._open[shard.file]
        replace(self._scratch.part(shard.file), self._scratch.sealed(shard.file))
        journal.append(sealed=shard.file, size=shard.size, sha256=digest)
        journal.sync()

    def _seal_last(self, shard: ShardLayout, journal: Journal) -> None:
        if shard.file not in self._open:
            self._open[shard.file] = self._open_part(shard, journal)
        growing = self._open[shard.file]
        if not growing.is_complete:
            missing = sorted({tensor.name for tensor in shard.tensors} - growing.complete)
            raise ValueError(f"{len(missing)} tensors are not complete, such as {missing[0]!r}")
        self._seal(shard, journal)

    def _flushing(self) -> Flusher:
        if self._flusher is None:
            self._flusher = Flusher(self._sync, _SYNC_BYTES)
        return self._flusher

    def _sync(self) -> None:
        """Bring all that was written so far to the disk; runs beside `write`, never beside a shard being closed."""
        for growing in tuple(self._open.values()):
            growing.sync()
        sync_folder(self._scratch.shards)
        self._running().sync()

    def _running(self) -> Journal:
        if self._journal is None:
            raise ValueError("the writer is not open")
        return self._journal

    def _close(self, *, keep_lock: bool = False) -> None:
        if self._flusher is not None:
            self._flusher.close()
            self._flusher = None
        self._beside.shutdown()
        while self._open:
            self._open.popitem()[1].close()
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if self._lock is not None and not keep_lock:
            self._lock.release()
            self._lock = None


_EMPTY: Final = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
"""SHA-256 of nothing, the checksum of an empty tensor."""


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _as_bytes(data: bytes | bytearray | memoryview | np.ndarray) -> memoryview:
    if not isinstance(data, np.ndarray):
        return memoryview(data).cast("B")
    if not data.flags.c_contiguous or data.dtype.byteorder == ">":
        raise ValueError(f"arrays must be C-contiguous and little-endian, not {data.dtype} with strides {data.strides}")
    flat: memoryview = data.reshape(-1).view(np.uint8).data
    return flat
