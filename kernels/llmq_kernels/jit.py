"""How kernels are compiled, cached and launched.

Numba keeps stale machine code when a function in *another* file changes, and refuses to import where it can write
no cache. So the cache lies in a folder of our own, whose name is a hash of everything that decides the machine code,
and a cache that cannot be written, or read back, only costs compiling again.

Threads do not survive a fork: GNU's OpenMP, which Numba prefers on Linux, ends a child that runs a parallel loop, and
TBB hangs where it was at work. So in a forked child whose parent has run one, parallel kernels run on the calling
thread, compiled once more without threads; results are the same.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar, cast, overload

import llvmlite
import llvmlite.binding
import numba
import numba.core.caching
import numba.core.codegen
import numba.core.compiler_lock
import numba.core.event

from llmq_kernels.cache_files import CheckedFiles, is_private
from llmq_kernels.simd import host_cpu

__all__ = [
    "cache_folder",
    "cached",
    "call",
    "compiling",
    "fork_waits_for",
    "has_run",
    "jit",
    "jit_enabled",
    "note_run",
    "on_compile",
    "set_threads",
    "threads",
    "threads_chosen",
]

F = TypeVar("F", bound=Callable[..., Any])

_SOURCES = Path(__file__).parent

_CODE_OPTIONS = ("BOUNDSCHECK", "OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "DEBUGINFO_DEFAULT")
"""Settings of Numba that change the machine code."""

# Some Numba releases are half typed, others not at all.
_numba: Any = numba
_config: Any = numba.config
_codegen: Any = numba.core.codegen
_event: Any = numba.core.event
_FunctionCache: Any = numba.core.caching.FunctionCache


@overload
def jit(function: F) -> F: ...
@overload
def jit(*, parallel: bool = ..., fastmath: bool | set[str] = ...) -> Callable[[F], F]: ...


def jit(
    function: F | None = None, *, parallel: bool = False, fastmath: bool | set[str] = False
) -> F | Callable[[F], F]:
    """Compile a kernel when it is first called, with our cache.

    Parameters
    ----------
    function : callable
        The kernel; left out when options are given.
    parallel : bool
        Whether its `prange` loops run on all threads. Such a kernel is called from Python only: a launcher applies
        `set_threads` and keeps Python threads apart where the threading layer cannot.
    fastmath : bool or set of str
        LLVM's flags. Off wherever NaN or infinity can occur, or a sum decides a code.
    """

    def decorate(kernel: F) -> F:
        if _config.DISABLE_JIT:
            return kernel
        compiled = _compiled(kernel, parallel=parallel, fastmath=fastmath)
        return cast("F", _launcher(compiled, fastmath) if parallel else compiled)

    return decorate if function is None else decorate(function)


def _compiled(kernel: Any, *, parallel: bool, fastmath: bool | set[str], form: str = "") -> Any:
    """Make Numba's dispatcher of a kernel; `form` tells two of the same kernel apart."""
    compiled = _numba.njit(nogil=True, parallel=parallel, fastmath=fastmath, error_model="numpy")(kernel)
    cached(compiled, kernel, form)
    return compiled


def jit_enabled() -> bool:
    """Whether kernels are compiled at all: under `NUMBA_DISABLE_JIT` they are plain Python, and none can be emitted."""
    return not _config.DISABLE_JIT


# --- cache ------------------------------------------------------------------------------------------------------


class _ForgivingCache(_FunctionCache):  # type: ignore[misc]
    """Numba's cache of one function in our files, whose trouble means a miss instead of an error."""

    def __init__(self, function: Callable[..., Any], form: str) -> None:
        super().__init__(function)
        self._form = form
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = CheckedFiles(Path(self._cache_path), self._impl.filename_base, stamp)

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return (*super()._index_key(sig, codegen), self._form)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Machine code from the cache, or None: a file of another release can raise anything when unpickled."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # noqa: BLE001, RUF100
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write machine code unless the disk is full or the folder has become unwritable."""
        try:
            super().save_overload(sig, data)
        except OSError:
            self.disable()


def cached(compiled: Any, function: Callable[..., Any], form: str = "") -> None:
    """Give a dispatcher or C function of Numba a cache in our folder; `numba.config.CACHE_DIR` is changed meanwhile."""
    folder = cache_folder()
    if folder is None:
        return
    before = _config.CACHE_DIR
    _config.CACHE_DIR = str(folder)
    try:
        compiled._cache = _ForgivingCache(function, form)  # noqa: SLF001
    except (RuntimeError, OSError):  # sources in a zip file, or the folder went away
        return
    finally:
        _config.CACHE_DIR = before


@functools.cache
def cache_folder() -> Path | None:
    """Folder of compiled kernels, made if missing; None where none of the candidates can be written.

    Candidates, in this order: `$LLMQ_CACHE_DIR`, `$NUMBA_CACHE_DIR`, the user's cache folder. A folder that others can
    write to is none: what lies in it is run.
    """
    key = _cache_key()
    if key is None:
        return None
    for base in _cache_bases():
        folder = base / f"kernels-{key}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            if is_private(folder):
                return folder
        except OSError:
            continue
    return None


def _cache_bases() -> list[Path]:
    """Folders that may hold the cache, best first."""
    named = [os.environ.get("LLMQ_CACHE_DIR"), os.environ.get("NUMBA_CACHE_DIR")]
    bases = [Path(name).absolute() / "llmq" for name in named if name]
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return [*bases, Path(local) / "llmq" / "cache"] if local else bases
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if Path(xdg).is_absolute():
        return [*bases, Path(xdg) / "llmq"]
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and no entry in the password database
        return bases
    return [*bases, home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "llmq"]


def _cache_key() -> str | None:
    """Hash of all that decides the machine code; None if the sources cannot be read."""
    cpu = host_cpu()
    features = _config.CPU_FEATURES
    if features is None:
        features = _codegen.get_host_cpu_features()
    options = tuple(getattr(_config, name) for name in _CODE_OPTIONS)
    parts = (numba.__version__, llvmlite.__version__, sys.version, cpu, features, str(options))
    digest = hashlib.sha256("\0".join(parts).encode())
    try:
        sources = sorted(_SOURCES.glob("*.py"))
        for source in sources:
            digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    except OSError:
        return None
    return digest.hexdigest()[:20] if sources else None


# --- threads ----------------------------------------------------------------------------------------------------

_threads: int | None = None
_applied = threading.local()
_workqueue_turn = threading.RLock()


def threads() -> int:
    """Threads that parallel kernels run on."""
    return _threads or int(_config.NUMBA_NUM_THREADS)


def set_threads(n: int) -> None:
    """Run parallel kernels on `n` threads from now on, whichever Python thread calls them.

    Raises
    ------
    ValueError
        Fewer than one, or more than Numba has been started with.
    """
    most = int(_config.NUMBA_NUM_THREADS)
    if not 1 <= n <= most:
        raise ValueError(f"threads must be 1 to {most}, not {n} (set NUMBA_NUM_THREADS={n} before Python starts)")
    global _threads  # noqa: PLW0603
    _threads = int(n)


def threads_chosen() -> bool:
    """Whether somebody said how many: by `set_threads`, or by `NUMBA_NUM_THREADS` before Python started."""
    return _threads is not None or bool(os.environ.get("NUMBA_NUM_THREADS"))


def _launcher(kernel: Any, fastmath: bool | set[str]) -> Callable[..., Any]:
    """Call `kernel` with our number of threads, one Python thread at a time where that is needed."""

    @functools.cache
    def alone() -> Any:
        return _compiled(kernel.py_func, parallel=False, fastmath=fastmath, form="alone")

    def launch(*args: Any) -> Any:
        if _orphaned:
            return alone()(*args)
        turn = _turn()
        _apply_threads()
        with turn:
            return kernel(*args)

    functools.update_wrapper(launch, kernel.py_func)
    return launch


def _apply_threads() -> None:
    """Tell Numba our number of threads, which it keeps for each Python thread."""
    if _threads is not None and getattr(_applied, "threads", None) != _threads:
        _numba.set_num_threads(_threads)
        _applied.threads = _threads


def call(kernel: Callable[..., Any], *args: Any, parallel: bool) -> None:
    """Call a parallel kernel, on one thread unless `parallel`: for work that is done sooner than the others wake.

    Machine code and results are the same either way.
    """
    if parallel or _config.DISABLE_JIT:
        kernel(*args)
        return
    _apply_threads()
    before = _numba.get_num_threads()
    _numba.set_num_threads(1)
    try:
        kernel(*args)
    finally:
        _numba.set_num_threads(before)


@functools.cache
def _turn() -> AbstractContextManager[Any]:
    """Return what a launch holds: Numba's workqueue aborts the process when two Python threads launch at once."""
    _numba.get_num_threads()  # starts the threads, after which the layer is known
    return _workqueue_turn if _numba.threading_layer() == "workqueue" else nullcontext()


# --- forks ------------------------------------------------------------------------------------------------------

_orphaned = False
"""Whether Numba's threads are those of a parent process, and not here."""


def fork_waits_for(lock: Any) -> None:
    """Have every fork of this process wait for a lock, lest the child inherit one that nobody will release.

    Parameters
    ----------
    lock : RLock, or what has its `acquire` and `release`
        One that is held while another is waited for is named after that other.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)


def _after_fork() -> None:
    """Keep from Numba's threads in a child, if the parent has started them; its workqueue alone starts them anew."""
    global _orphaned  # noqa: PLW0603
    with suppress(ValueError):  # none were started
        _orphaned = _orphaned or _numba.threading_layer() != "workqueue"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
# Forks wait for the last one named first: who waits for the compiler may hold the turn.
fork_waits_for(numba.core.compiler_lock.global_compiler_lock)
fork_waits_for(_workqueue_turn)


# --- notices ----------------------------------------------------------------------------------------------------


_callbacks: list[Callable[[str], None]] = []


def compiling(function: Callable[..., Any]) -> None:
    """Tell whoever asked by `on_compile` that one of our kernels is about to be compiled."""
    for callback in _callbacks:
        callback(f"{function.__module__.removeprefix('llmq_kernels.')}.{function.__name__}")


class _CompileListener(_event.Listener):  # type: ignore[misc]
    """Tells a callback which of our kernels are being compiled, the functions they call left out."""

    def __init__(self, callback: Callable[[str], None]) -> None:
        self._callback = callback
        self._depth = 0  # Numba compiles under a lock

    def on_start(self, event: Any) -> None:
        """Compilation begins, after the cache has been asked in vain."""
        self._depth += 1
        function = event.data["dispatcher"].py_func
        if self._depth == 1 and function.__module__.startswith("llmq_kernels."):
            self._callback(f"{function.__module__.removeprefix('llmq_kernels.')}.{function.__name__}")

    def on_end(self, event: Any) -> None:  # noqa: ARG002
        """Compilation ends, well or not."""
        self._depth -= 1


def on_compile(callback: Callable[[str], None]) -> Callable[[], None]:
    """Call `callback("module.kernel")` whenever one of our kernels is about to be compiled; cache hits are silent.

    Returns
    -------
    callable
        Ends the notices.
    """
    listener = _CompileListener(callback)
    _event.register("numba:compile", listener)
    _callbacks.append(callback)

    def end() -> None:
        _event.unregister("numba:compile", listener)
        _callbacks.remove(callback)

    return end


def has_run(work: str) -> bool:
    """Whether `note_run` was told of some work, so that all its kernels are in the cache."""
    folder = cache_folder()
    return folder is not None and _mark(folder, work).exists()


def note_run(work: str) -> None:
    """Note beside the compiled kernels that those of some work, by any words that tell it apart, are among them."""
    folder = cache_folder()
    if folder is not None:
        with suppress(OSError):
            _mark(folder, work).touch()


def _mark(folder: Path, work: str) -> Path:
    return folder / f"ran-{hashlib.sha256(work.encode()).hexdigest()[:16]}"
