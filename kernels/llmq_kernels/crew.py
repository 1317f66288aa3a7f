"""Threads that run workers: they watch for work for a fraction of a millisecond, then sleep.

A parallel loop of OpenMP wakes its threads through the system, some 50 microseconds each time, or lets them spin, and
then waits for a thread whose core is taken by another program. Here the calling thread begins at once, others join when
they see the work, and nobody waits for one that has not joined: workers take what is left of the work by themselves.
Between the products of a token threads are awake and join within a microsecond; a crew without work costs nothing.

The mailbox, int64, one cache line each::

    STATE     round << 16 | open << 15 | members at work
    ADDRESS   of the worker;  PARAMETERS  their address;  MOST  members that may join;  NEXT  number of the next one
    ASLEEP    members that must be woken
    OWNER     thread whose round is open, or 0
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba.core import types

from llmq_kernels.jit import fork_waits_for, jit
from llmq_kernels.memory import call_worker, pointer_address
from llmq_kernels.simd import I64, Emitter, intrinsic, target

__all__ = ["in_turn", "launch", "muster"]

STATE: Final = 0
ADDRESS: Final = 64
PARAMETERS: Final = 128
MOST: Final = 192
NEXT: Final = 256
ASLEEP: Final = 320
OWNER: Final = 384
_SIZE: Final = 448

_OPEN: Final = 1 << 15
_ROUND: Final = 1 << 16

_AWAKE: Final = 200e-6
"""Seconds that a member without work watches before it sleeps."""

_TRIAL: Final = 2000
"""Looks for work that are timed, to know how many make `_AWAKE`; so many times."""
_TRIALS: Final = 10


@intrinsic
def _load(typingctx: Any, address: Any) -> Any:
    """Read an int64 that other threads write; what they wrote before it is seen too."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], ir.PointerType()), "acquire", 8, typ=I64)

    return types.int64(address), emit


@intrinsic
def _store(typingctx: Any, address: Any, value: Any) -> Any:
    """Write an int64, after everything that was written before it."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        # llvmlite's atomic store wants typed pointers, which LLVM no longer has.
        builder.atomic_rmw("xchg", builder.inttoptr(args[0], ir.PointerType()), args[1], "release")
        return context.get_dummy_value()

    return types.void(address, value), emit


@intrinsic
def _add(typingctx: Any, address: Any, value: Any) -> Any:
    """Add to an int64 in one step and return what it was."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(args[0], ir.PointerType()), args[1], "acq_rel")

    return types.int64(address, value), emit


@intrinsic
def _swap(typingctx: Any, address: Any, expected: Any, value: Any) -> Any:
    """Replace an int64 if it is what is expected; return whether."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], ir.PointerType())
        pair = builder.cmpxchg(place, args[1], args[2], "acq_rel", "acquire")
        return builder.extract_value(pair, 1)

    return types.boolean(address, expected, value), emit


@intrinsic
def _pause(typingctx: Any) -> Any:
    """Tell the CPU that this thread only waits."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if builder.module.triple.startswith("x86"):
            Emitter(builder, target()).call("llvm.x86.sse2.pause", ir.VoidType())
        elif builder.module.triple.startswith(("aarch64", "arm64")):
            builder.asm(ir.FunctionType(ir.VoidType(), []), "yield", "", [], side_effect=True)
        return context.get_dummy_value()

    return types.void(), emit


@jit
def _open(box: int, address: int, parameters: int, most: int, owner: int) -> bool:
    """Open a round for others to join, unless another thread's is open; return whether."""
    if not _swap(box + OWNER, 0, owner):
        return False
    _store(box + ADDRESS, address)
    _store(box + PARAMETERS, parameters)
    _store(box + MOST, most)
    _store(box + NEXT, 1)
    _store(box + STATE, (_load(box + STATE) // _ROUND + 1) * _ROUND + _OPEN)
    return True


@jit
def _close(box: int, owner: int) -> None:
    """Let nobody join a thread's round any more, if it has one, and wait for those that did."""
    if _load(box + OWNER) == owner:
        if _load(box + STATE) % _ROUND >= _OPEN:
            _add(box + STATE, -_OPEN)
        while _load(box + STATE) % _OPEN:
            _pause()
        _store(box + OWNER, 0)


@jit
def _lead(box: int, address: int, parameters: int, owner: int) -> None:
    """Run the worker of the open round as number 0, and close the round."""
    call_worker(address, parameters, 0)
    _close(box, owner)


@jit
def _serve(box: int, seen: int, patience: int) -> int:
    """Join rounds later than `seen` until there has been none for `patience` looks; return the last one seen."""
    left = patience
    while left > 0:
        state = _load(box + STATE)
        if state // _ROUND != seen and state % _ROUND >= _OPEN:
            if _swap(box + STATE, state, state + 1):
                seen = state // _ROUND
                number = _add(box + NEXT, 1)
                if number < _load(box + MOST):
                    call_worker(_load(box + ADDRESS), _load(box + PARAMETERS), number)
                _add(box + STATE, -1)
                left = patience
        else:
            left -= 1
            _pause()
    return seen


def in_turn(p: Any, number: int) -> None:
    """Run one worker on all threads that have joined, and then another: a worker itself.

    Nobody begins with the second before the first is done; who joins later finds nothing left of the first.

    Parameters
    ----------
    p : pointer to int64
        Addresses of both workers and of their parameters; and 0, which counts those that are at the first.
    number : int
        Of this thread.
    """
    first, second, parameters = p[0], p[1], p[2]
    busy = pointer_address(p) + 24
    _add(busy, 1)
    call_worker(first, parameters, number)
    _add(busy, -1)
    while _load(busy) != 0:
        _pause()
    call_worker(second, parameters, number)


class _Crew:
    """The mailbox of a process and the threads that watch it."""

    def __init__(self) -> None:
        self._memory = np.zeros(_SIZE // 8 + 8, np.int64)
        self.box = -(-self._memory.ctypes.data // 64) * 64
        self._asleep = self._memory[(self.box - self._memory.ctypes.data + ASLEEP) // 8 :][:1]
        self._bells: list[SimpleQueue[None]] = []
        _serve(self.box, 0, 1)  # compiles, as the next does
        _open(self.box, 0, 0, 1, 1)
        _close(self.box, 1)
        lead: Any = _lead
        lead.compile((types.int64,) * 4)
        # The shortest: in others another program may have had the core, and members would fall asleep too early.
        shortest = min(self._trial() for _ in range(_TRIALS))
        self._patience = max(100, int(_TRIAL * _AWAKE / max(shortest, 1e-6)))

    def _trial(self) -> float:
        """Seconds that it takes to look for work a number of times."""
        started = time.perf_counter()
        _serve(self.box, 0, _TRIAL)
        return time.perf_counter() - started

    def run(self, address: int, parameters: int, workers: int) -> bool:
        """Run a worker on this thread and up to `workers - 1` others, unless they are busy; return whether."""
        owner = threading.get_ident()
        try:
            if not _open(self.box, address, parameters, workers, owner):
                return False
            with suppress(RuntimeError):  # the system starts no more: those that there are do the work
                while len(self._bells) < workers - 1:
                    self._hire()
            # A member that falls asleep looks for a round after it has said so: it sees this one, or is woken.
            if self._asleep[0]:
                self._asleep[0] = 0
                for bell in self._bells:
                    bell.put(None)
            _lead(self.box, address, parameters, owner)
        except BaseException:  # an interrupt: members must not go on with memory that is given up
            self._asleep[0] = 1
            _close(self.box, owner)
            raise
        return True

    def _hire(self) -> None:
        """Start one more member."""
        bell: SimpleQueue[None] = SimpleQueue()
        name = f"kernels-{len(self._bells) + 1}"
        threading.Thread(target=self._member, args=(bell,), name=name, daemon=True).start()
        self._bells.append(bell)

    def _member(self, bell: SimpleQueue[None]) -> None:
        """Serve and sleep; unlike those of an event, a queue's operations are not torn apart by an interrupt."""
        seen = 0
        while True:
            seen = _serve(self.box, seen, self._patience)
            while not bell.empty():
                bell.get()
            self._asleep[0] = 1
            before, seen = seen, _serve(self.box, seen, 1)
            if before == seen:
                bell.get()


_crew: _Crew | None = None
_making = threading.RLock()


def launch(address: int, parameters: int, workers: int) -> None:
    """Run a worker on this thread and on up to `workers - 1` others.

    A call while another Python thread's is under way runs on its own thread alone.

    Parameters
    ----------
    address : int
        Of ``void worker(int64 *parameters, int64 number)``, which takes its share of the work until there is none;
        `number` is 0 up to `workers - 1`, and not all of them may be called.
    parameters : int
        Address of int64 (n,), what the worker reads; whatever its addresses point to must stay alive.
    workers : int
        1 runs it on this thread alone.
    """
    crew = (_crew or muster()) if workers > 1 else None
    if crew is None or not crew.run(address, parameters, workers):
        _alone(address, parameters)


@jit
def _alone(address: int, parameters: int) -> None:
    call_worker(address, parameters, 0)


def muster() -> _Crew:
    """Make the crew of this process, and compile what it runs; the first `launch` does it otherwise."""
    global _crew  # noqa: PLW0603
    with _making:
        _crew = _crew or _Crew()
        return _crew


def _forget() -> None:
    """Make another crew when asked: threads of a parent process are not in a forked child."""
    global _crew  # noqa: PLW0603
    _crew = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
fork_waits_for(_making)
