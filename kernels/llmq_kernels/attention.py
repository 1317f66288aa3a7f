"""Causal attention of new tokens over a key-value cache, with grouped heads and a sliding window.

Nothing of size tokens x context exists: a task takes the heads that share keys and a block of tokens, walks the
cache in tiles, and keeps a running maximum and sum for each of its rows (one head of one token). After "Online
normalizer calculation for softmax" (Milakov, Gimelshein 2018) and "FlashAttention" (Dao et al. 2022), algorithm 1.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numba
import numpy as np

from llmq_kernels.doors import frozen, output_of
from llmq_kernels.exponential import exp
from llmq_kernels.floats import bits_of, float_of
from llmq_kernels.jit import jit, threads

__all__ = ["attention", "attention_reference"]

_numba: Any = numba  # some releases are half typed
_thread = _numba.get_thread_id

_TILE: Final = 64
"""Positions of the cache that a task looks at in one go; a multiple of 4."""

_ROWS: Final = 32
"""Rows of a task, about."""

_PARALLEL: Final = 1 << 19
"""Products of queries and keys from which waking the threads pays: about 40 microseconds of work."""


def attention_reference(
    queries: np.ndarray, keys: np.ndarray, values: np.ndarray, start: int, window: int | None = None
) -> np.ndarray:
    """Specify `attention` in plain NumPy.

    A NaN or infinity may reach every token of the call.

    Examples
    --------
    >>> keys, values = np.zeros((1, 4, 2), np.float32), np.array([[[1, 0], [2, 0], [6, 0], [99, 0]]], np.float32)
    >>> attention_reference(np.ones((2, 1, 2), np.float32), keys, values, 1).tolist()
    [[[1.5, 0.0]], [[3.0, 0.0]]]
    """
    tokens, heads, head_dim = queries.shape
    position, seen = np.arange(start, start + tokens)[:, None], np.arange(start + tokens)
    visible = (seen <= position) & (seen > position - (window or keys.shape[1] + 1))
    shared = np.arange(heads) // (heads // keys.shape[0])  # the cache that each head reads
    keys, values = keys[shared, : seen.size], values[shared, : seen.size]
    scores = np.einsum("thd,hsd->hts", queries, keys) / np.float32(math.sqrt(head_dim))
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    mixed: np.ndarray = np.einsum("hts,hsd->thd", weights / weights.sum(axis=2, keepdims=True), values)
    return mixed


# The columns of a task's scratch, a line for each row: query | sum of values | scores | maximum | sum of weights


@jit(fastmath={"reassoc", "contract", "nsz"})
def _score(work: np.ndarray, row: int, keys: np.ndarray, low: int, high: int) -> None:
    """Score rows `row` and `row + 1` for positions low..high, by fours: beyond high the last one is repeated."""
    head_dim = keys.shape[1]
    query0, query1 = work[row], work[row + 1]
    for j in range(low, high, 4):
        key0, key1 = keys[j], keys[min(j + 1, high - 1)]
        key2, key3 = keys[min(j + 2, high - 1)], keys[min(j + 3, high - 1)]
        a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = np.float32(0.0)
        for d in range(head_dim):
            a, b = query0[d], query1[d]
            a0 += a * key0[d]
            a1 += a * key1[d]
            a2 += a * key2[d]
            a3 += a * key3[d]
            b0 += b * key0[d]
            b1 += b * key1[d]
            b2 += b * key2[d]
            b3 += b * key3[d]
        at = 2 * head_dim + j - low
        query0[at], query0[at + 1], query0[at + 2], query0[at + 3] = a0, a1, a2, a3
        query1[at], query1[at + 1], query1[at + 2], query1[at + 3] = b0, b1, b2, b3


@jit
def _largest(scores: np.ndarray) -> np.float32:
    """Largest of float32 (n,), by integers that order as the floats do: LLVM makes vector code of those only."""
    largest = np.int32(-(2**31))
    for i in range(scores.size):
        bits = np.int32(bits_of(scores[i]))
        largest = max(largest, np.int32(bits ^ ((bits >> 31) & 0x7FFFFFFF)))
    return float_of(np.uint32(largest ^ ((largest >> 31) & 0x7FFFFFFF)))


@jit(fastmath={"reassoc", "contract", "nsz"})
def _soften(scores: np.ndarray, largest: np.float32) -> np.float32:
    """Replace float32 (n,) scores by their weights `exp(score - largest)` and return the sum."""
    total = np.float32(0.0)
    for i in range(scores.size):
        weight = exp(scores[i] - largest)
        scores[i] = weight
        total += weight
    return total


@jit(fastmath={"contract"})
def _weigh(line: np.ndarray, head_dim: int, first: int, last: int, count: int) -> None:
    """Turn `count` scores of a row into weights, those outside first..last into zeros; bring the sums up to date."""
    scores = line[2 * head_dim : 2 * head_dim + (count + 3) // 4 * 4]
    scores[:first] = np.float32(0.0)
    scores[last:] = np.float32(0.0)
    if first >= last:
        return
    state = 2 * head_dim + _TILE
    largest = _largest(scores[first:last])
    if line[state] > largest:
        largest = line[state]
    shrink = exp(line[state] - largest)
    line[state] = largest
    line[state + 1] = line[state + 1] * shrink + _soften(scores[first:last], largest)
    if shrink != np.float32(1.0):
        for d in range(head_dim, 2 * head_dim):
            line[d] *= shrink


@jit(fastmath={"reassoc", "contract", "nsz"})
def _gather(line: np.ndarray, values: np.ndarray, low: int, high: int) -> None:
    """Add the weighted values of positions low..high to a row's sum."""
    head_dim = values.shape[1]
    total = line[head_dim : 2 * head_dim]
    for j in range(low, high, 4):
        at = 2 * head_dim + j - low
        w0, w1, w2, w3 = line[at], line[at + 1], line[at + 2], line[at + 3]
        value0, value1 = values[j], values[min(j + 1, high - 1)]
        value2, value3 = values[min(j + 2, high - 1)], values[min(j + 3, high - 1)]
        for d in range(head_dim):
            total[d] += (w0 * value0[d] + w1 * value1[d]) + (w2 * value2[d] + w3 * value3[d])


@jit
def _attend(work: np.ndarray, keys: np.ndarray, values: np.ndarray, position: int, shape: tuple[int, int, int]) -> None:
    """Attention of one task.

    Parameters
    ----------
    work : float32 (rows + rows % 2, 2 * head_dim + _TILE + 2)
        Scratch with the scaled queries in it, token by token; the sums are left in it.
    keys, values : float32 (capacity, head_dim)
    position : int
        Of the first token.
    shape : (int, int, int)
        Tokens, heads, window.
    """
    tokens, heads, window = shape
    head_dim = keys.shape[1]
    rows = work.shape[0]
    for low in range(max(0, position - window + 1), position + tokens, _TILE):
        for row in range(0, rows, 2):
            token0, token1 = row // heads, min((row + 1) // heads, tokens - 1)
            start = max(low, position + token0 - window + 1)
            stop = min(low + _TILE, position + token1 + 1)
            if start >= stop:
                continue
            _score(work, row, keys, start, stop)
            for i in range(2):
                seen = position + (token0 if i == 0 else token1) + 1
                first, last = max(start, seen - window), min(stop, seen)
                _weigh(work[row + i], head_dim, first - start, last - start, stop - start)
                _gather(work[row + i], values, start, stop)


@jit
def _run(
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray],
    place: tuple[int, int, np.float32],
    task: tuple[int, int, int],
    work: np.ndarray,
    out: np.ndarray,
) -> None:
    """Run one task: copy its queries into `work`, attend, and write its part of `out`.

    Parameters
    ----------
    arrays : (float32 (tokens, heads, head_dim), float32 (kv_heads, capacity, head_dim), the same)
        Queries, keys, values.
    place : (int, int, float32)
        Position of the first token, window, scale of the scores.
    task : (int, int, int)
        Number of the task, its heads and its tokens; its heads share keys.
    work : float32 (rows, 2 * head_dim + _TILE + 2)
        Scratch for heads x tokens, rounded up to pairs.
    out : float32 (tokens, heads, head_dim)
    """
    queries, keys, values = arrays
    tokens, heads, head_dim = queries.shape
    number, span, block = task
    start, window, scale = place
    blocks = (tokens + block - 1) // block
    head = number // blocks * span
    # Later blocks see more: light and heavy ones alternate, since threads take equal runs of tasks.
    turn = number % blocks
    token = block * (turn // 2 if turn % 2 == 0 else blocks - 1 - turn // 2)
    count = min(block, tokens - token)
    rows = count * span
    work = work[: rows + rows % 2]
    work[:, head_dim : 2 * head_dim] = np.float32(0.0)
    work[:, 2 * head_dim + _TILE] = np.float32(-np.inf)
    work[:, 2 * head_dim + _TILE + 1] = np.float32(0.0)
    work[work.shape[0] - 1, :head_dim] = np.float32(0.0)
    for row in range(rows):
        for d in range(head_dim):
            work[row, d] = queries[token + row // span, head + row % span, d] * scale
    cache = head // (heads // keys.shape[0])
    _attend(work, keys[cache], values[cache], start + token, (count, span, window))
    for row in range(rows):
        share = np.float32(1.0) / work[row, 2 * head_dim + _TILE + 1]
        for d in range(head_dim):
            out[token + row // span, head + row % span, d] = work[row, head_dim + d] * share


@jit
def _attention(
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray],
    place: tuple[int, int, np.float32],
    tasks: tuple[int, int, int],
    scratch: np.ndarray,
    out: np.ndarray,
) -> None:
    """Run all tasks on one thread; `arrays` are queries, keys and values, `tasks` their number, heads and tokens."""
    for task in range(tasks[0]):
        _run(arrays, place, (task, tasks[1], tasks[2]), scratch[0], out)


@jit(parallel=True)
def _attention_parallel(
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray],
    place: tuple[int, int, np.float32],
    tasks: tuple[int, int, int],
    scratch: np.ndarray,
    out: np.ndarray,
) -> None:
    """Run all tasks on all threads, each with its part of float32 (threads, rows, 2 * head_dim + _TILE + 2) scratch."""
    for task in numba.prange(tasks[0]):
        _run(arrays, place, (task, tasks[1], tasks[2]), scratch[_thread()], out)


def attention(
    queries: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    *,
    start: int,
    window: int | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Attend from new tokens to all positions of the cache up to their own.

    Parameters
    ----------
    queries : float32 (tokens, heads, head_dim)
        Scores are scaled by `1 / sqrt(head_dim)`.
    keys, values : float32 (kv_heads, capacity, head_dim)
        The cache, with the new tokens in it at `start` and after; `kv_heads` divides `heads`.
    start : int
        Position of the first query; `start + tokens <= capacity`.
    window : int, optional
        How many positions a token sees, itself included.
    out : float32 (tokens, heads, head_dim), optional

    Returns
    -------
    float32 (tokens, heads, head_dim)

    Raises
    ------
    TypeError, ValueError
        A dtype or shape that does not fit.
    """
    _check(queries, keys, values, start, window)
    tokens, heads, head_dim = queries.shape
    out = output_of(out, queries.shape)
    parallel = queries.size * (start + tokens) >= _PARALLEL
    # Fewer heads a task where there would not be a task for every thread.
    span = heads // keys.shape[0]
    while parallel and span % 2 == 0 and heads // span * -(-tokens * span // _ROWS) < threads():
        span //= 2
    block = min(max(1, _ROWS // span), max(tokens, 1))
    # As many as there can be, not as are set now: another Python thread may set more meanwhile.
    workers = _numba.config.NUMBA_NUM_THREADS if parallel else 1
    scratch = np.empty((workers, block * span + block * span % 2, 2 * head_dim + _TILE + 2), np.float32)
    arrays = frozen(queries), frozen(keys), frozen(values)
    place = start, window or start + tokens, np.float32(1.0 / math.sqrt(head_dim))
    tasks = heads // span * -(-tokens // block), span, block
    (_attention_parallel if parallel else _attention)(arrays, place, tasks, scratch, out)
    return out


def _check(queries: np.ndarray, keys: np.ndarray, values: np.ndarray, start: int, window: int | None) -> None:
    for name, array in (("queries", queries), ("keys", keys), ("values", values)):
        if array.dtype != np.float32 or array.ndim != 3:
            raise TypeError(f"{name} must be float32 of 3 dimensions, not {array.dtype} of {array.ndim}")
        if not (array.flags.c_contiguous and array.flags.aligned):
            raise ValueError(f"{name} must be C-contiguous and aligned")
    tokens, heads, head_dim = queries.shape
    kv_heads, capacity, _ = keys.shape
    if keys.shape != values.shape or keys.shape[2] != head_dim or kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"queries {queries.shape}, keys {keys.shape} and values {values.shape} do not fit")
    if start < 0 or start + tokens > capacity:
        raise ValueError(f"positions {start} to {start + tokens} lie outside a cache of {capacity}")
    if window is not None and window < 1:
        raise ValueError(f"window must be positive, not {window}")
