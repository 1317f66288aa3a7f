"""Products of a few tokens with rows of 16-bit or float32 weights: each row is read once, at the speed of memory."""

from __future__ import annotations

import threading
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba.core import types

from llmq_kernels import places
from llmq_kernels.jit import jit, threads
from llmq_kernels.layout import SCALE_KINDS
from llmq_kernels.memory import address_of, clear_bytes, copy_bytes, floats, next_number
from llmq_kernels.places import (
    CHUNK,
    COLUMNS,
    COUNTER,
    JOBS,
    OUT,
    PACKED,
    ROW_BYTES,
    ROWS,
    SCRATCH,
    SCRATCH_BYTES,
    TOKENS,
    X,
)
from llmq_kernels.scales import load_floats
from llmq_kernels.simd import F32, Emitter, intrinsic, target
from llmq_kernels.workers import constants, launch, length, worker_address

__all__ = ["MOST_TOKENS", "multiply_few"]

MOST_TOKENS: Final = 4

_SIDE_BY_SIDE: Final = 4
"""Rows that are walked side by side, far apart from each other."""

_TURN: Final = 256 << 10
"""Bytes that a thread takes at a time, about."""

_PARALLEL: Final = 1 << 19
"""Bytes of a weight from which waking the threads pays."""

_KINDS: Final = tuple(SCALE_KINDS)
_kept = threading.local()


@intrinsic
def _dot(typingctx: Any, rows: Any, x: Any, count: Any, out: Any, kind: Any, tokens: Any) -> Any:
    """Add the products of a few rows and tokens to float32 (rows, tokens) at address `out`.

    Parameters
    ----------
    rows, x : (int64, int64)
        Addresses of the first row and token, and bytes from one to the next.
    count : int64
        Columns; a multiple of 8.
    out : int64
    kind, tokens : pointers
        Their lengths are a value of `SCALE_KINDS` plus 1, and the tokens.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        emitter = Emitter(builder, target())
        name, n_tokens = _KINDS[length(signature.args[4]) - 1], length(signature.args[5])
        (row, row_step), (start, x_step) = ([builder.extract_value(args[i], j) for j in (0, 1)] for i in (0, 1))
        row_at = [emitter.add(row, emitter.mul(row_step, r)) for r in range(_SIDE_BY_SIDE)]
        x_at = [emitter.add(start, emitter.mul(x_step, t)) for t in range(n_tokens)]
        size, eight = 4 if name == "float32" else 2, ir.VectorType(F32, 8)

        def body(i: Any, sums: list[Any]) -> list[Any]:
            x = [emitter.load(emitter.add(at, emitter.mul(i, 4)), eight) for at in x_at]
            rows = [load_floats(emitter, name, emitter.add(at, emitter.mul(i, size)), 8) for at in row_at]
            return [emitter.fma(rows[k // n_tokens], x[k % n_tokens], total) for k, total in enumerate(sums)]

        zero = ir.Constant(eight, None)
        for k, total in enumerate(emitter.loop(args[2], 8, [zero] * (_SIDE_BY_SIDE * n_tokens), body)):
            before = emitter.load(args[3], F32, 4 * k)
            emitter.store(builder.fadd(before, emitter.sum_lanes(total)), args[3], 4 * k)
        return context.get_dummy_value()

    return types.void(rows, x, count, out, kind, tokens), emit


@intrinsic
def _sizes(typingctx: Any, kind: Any, tokens: Any) -> Any:
    """Return, as int64: bytes of an element, and the tokens."""
    return constants((4 if _KINDS[length(kind) - 1] == "float32" else 2, length(tokens)), kind, tokens)


@jit
def _step(p: Any, span: tuple[int, int, int], scratch: int, kind: Any, tokens: Any) -> None:
    """Multiply the rows of `span`, (first, distance, how many count); of others the last one is taken again."""
    first, distance, count = span
    size, n_tokens = _sizes(kind, tokens)
    whole = p[COLUMNS] // 8 * 8
    start, step, x_step = p[JOBS + PACKED] + first * p[ROW_BYTES], distance * p[ROW_BYTES], 4 * p[COLUMNS]
    clear_bytes(scratch, 4 * _SIDE_BY_SIDE * n_tokens)
    if count == _SIDE_BY_SIDE:
        _dot((start, step), (p[X], x_step), whole, scratch, kind, tokens)
    else:
        _dot((start, 0), (p[X], x_step), whole, scratch, kind, tokens)
    if whole < p[COLUMNS]:
        # A whole vector is read: the rest of the rows and tokens, and zeros, are put where that is safe.
        rest = p[COLUMNS] - whole
        rows, x = scratch + 64, scratch + 64 + 32 * _SIDE_BY_SIDE
        clear_bytes(rows, 64 * _SIDE_BY_SIDE)
        for r in range(count):
            copy_bytes(rows + 32 * r, start + r * step + size * whole, size * rest)
        for t in range(n_tokens):
            copy_bytes(x + 32 * t, p[X] + t * x_step + 4 * whole, 4 * rest)
        _dot((rows, 32), (x, 32), 8, scratch, kind, tokens)
    totals = floats(scratch)
    for r in range(count):
        for t in range(n_tokens):
            floats(p[JOBS + OUT] + 4 * (t * p[JOBS + ROWS] + first + r * distance))[0] = totals[r * n_tokens + t]


def dense_rows(p: Any, number: int, kind: Any, tokens: Any) -> None:
    """Multiply tokens by chunks of rows, as long as there are any: a worker (see `llmq_kernels.workers`).

    Parameters
    ----------
    p : pointer to int64
        See `llmq_kernels.places`; of one weight.
    number : int
        Of this worker.
    kind, tokens : pointers
        See `_dot`.
    """
    scratch = p[SCRATCH] + number * p[SCRATCH_BYTES]
    first = next_number(p[COUNTER]) * p[CHUNK]
    while first < p[JOBS + ROWS]:
        count = min(p[CHUNK], p[JOBS + ROWS] - first)
        distance = count // _SIDE_BY_SIDE
        for step in range(distance + count % _SIDE_BY_SIDE):
            if step < distance:
                span = first + step, distance, _SIDE_BY_SIDE
            else:
                span = first + distance * _SIDE_BY_SIDE + step - distance, 0, 1
            _step(p, span, scratch, kind, tokens)
        first = next_number(p[COUNTER]) * p[CHUNK]


class _Plan:
    """Scratch and parameters for some threads; of one Python thread."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.counter = np.zeros(1, np.int64)
        self._scratch = np.zeros((workers, 64 + 64 * _SIDE_BY_SIDE), np.uint8)
        self.parameters = np.zeros(JOBS + places.JOB_SIZE, np.int64)
        self.parameters[COUNTER] = self.counter.ctypes.data
        self.parameters[SCRATCH], self.parameters[SCRATCH_BYTES] = self._scratch.ctypes.data, self._scratch.shape[1]
        self.place = self.parameters.ctypes.data


def multiply_few(x: np.ndarray, weight: np.ndarray, kind: int, out: np.ndarray) -> None:
    """Multiply float32 (1 to `MOST_TOKENS`, columns) by uint16 (rows, columns), twice as wide for float32.

    Parameters
    ----------
    kind : int
        A value of `SCALE_KINDS`.
    out : float32 (tokens, rows)
        All arrays C-contiguous.
    """
    workers = threads() if weight.nbytes >= _PARALLEL else 1
    # Taken out while it is used: a signal handler may multiply, too.
    plan = _kept.__dict__.pop("plan", None)
    if plan is None or plan.workers < workers:
        plan = _Plan(workers)
    row_bytes = weight.strides[0]
    chunk = max(1, min(_TURN // max(row_bytes, 1), weight.shape[0] // (4 * workers)) // _SIDE_BY_SIDE) * _SIDE_BY_SIDE
    plan.counter[0] = 0
    p = plan.parameters
    p[TOKENS], p[COLUMNS] = x.shape
    p[X] = address_of(x)
    p[ROW_BYTES], p[CHUNK] = row_bytes, chunk
    p[JOBS + PACKED], p[JOBS + ROWS], p[JOBS + OUT] = address_of(weight), weight.shape[0], address_of(out)
    launch(worker_address(dense_rows, kind + 1, x.shape[0]), plan.place, workers)
    _kept.plan = plan
