"""Causal attention of new tokens over a key-value cache, with grouped heads and a sliding window."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np

from llmq_kernels.attention_tasks import Plan, line_size, run_task, sum_up
from llmq_kernels.doors import output_of, pieces
from llmq_kernels.jit import threads
from llmq_kernels.memory import address_of, elements, floats, next_number
from llmq_kernels.scratch import Scratch
from llmq_kernels.workers import launch, worker_address

if TYPE_CHECKING:
    from llmq_kernels.keyvalues import KeyValues

__all__ = ["attention", "attention_reference"]

_numba: Any = numba  # some releases are half typed
_carray = _numba.carray

_FEW: Final = 4
"""Tokens up to which the context is split: more of them make tasks enough by themselves."""

_SPLITS: Final = (256, 1024)
"""Positions of a task for few tokens, at least and at most: each begins to read memory anew, which takes a while."""

_TASKS: Final = 64
"""Tasks for few tokens that are enough for any number of threads."""

_TILE: Final = 64
"""Positions that a task for many tokens looks at in one go, widened to float32 in the first-level cache."""

_ROWS: Final = 32
"""Rows of a task for many tokens, about; a row is one head of one token."""

_KINDS: Final = {32: 1, 16: 2, 8: 3, 4: 4}
"""The variant of `attend` by bits of an element."""

_PARALLEL: Final = 1 << 16
"""Products of queries and keys from which it pays to share the work: some 10 microseconds of it."""

_MOST: Final = 500_000_000
"""Products of a thread in one call of the workers: about a tenth of a second."""


def attention_reference(
    queries: np.ndarray, keys: np.ndarray, values: np.ndarray, start: int, window: int | None = None
) -> np.ndarray:
    """Specify `attention` in plain NumPy, over keys and values float32 (kv_heads, capacity, head_dim).

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


# What `attend` reads, by place in its parameters: addresses and shapes.
_COUNTER: Final = 0
_COUNT: Final = 1
_QUERIES: Final = 2
"""Their address, tokens, heads and elements of a head."""
_CACHE: Final = 6
"""Addresses of keys, values and their scales; heads, capacity and width of keys, and length of the scales."""
_PLAN: Final = 14
_WORK: Final = 21
"""Address of the lines of a worker, how many, and elements of one."""
_LINES: Final = 24
"""Address of the results, and their shape."""
_N_PARAMETERS: Final = 29


def attend(p: Any, number: int, kind: Any) -> None:
    """Run tasks as long as there are any: a worker (see `llmq_kernels.workers`).

    Parameters
    ----------
    p : pointer to int64
        Read at the places named above.
    number : int
        Of this worker.
    kind : pointer
        A value of `_KINDS`, as its length.
    """
    queries = _carray(floats(p[_QUERIES]), (p[_QUERIES + 1], p[_QUERIES + 2], p[_QUERIES + 3]))
    shape = p[_CACHE + 4], p[_CACHE + 5], p[_CACHE + 6]
    keys, values = _carray(elements(p[_CACHE], kind), shape), _carray(elements(p[_CACHE + 1], kind), shape)
    scales = shape[0], p[_CACHE + 7]
    cache = keys, values, _carray(floats(p[_CACHE + 2]), scales), _carray(floats(p[_CACHE + 3]), scales)
    plan = Plan(
        p[_PLAN], p[_PLAN + 1], p[_PLAN + 2], p[_PLAN + 3], p[_PLAN + 4], p[_PLAN + 5], p[_PLAN + 6]
    )  # Numba unpacks no pointer
    rows, size = p[_WORK + 1], p[_WORK + 2]
    work = _carray(floats(p[_WORK] + 4 * number * rows * size), (rows, size))
    lines = _carray(floats(p[_LINES]), (p[_LINES + 1], p[_LINES + 2], p[_LINES + 3], p[_LINES + 4]))
    task = next_number(p[_COUNTER])
    while task < p[_COUNT]:
        run_task(task, queries, cache, plan, work, lines)
        task = next_number(p[_COUNTER])


def attention(
    queries: np.ndarray,
    cache: KeyValues,
    *,
    start: int,
    window: int | None = None,
    out: np.ndarray | None = None,
    scratch: Scratch | None = None,
) -> np.ndarray:
    """Attend from new tokens to all positions of a cache up to their own.

    The result is the same for any number of threads.

    Parameters
    ----------
    queries : float32 (tokens, heads, head_dim)
        Scores are scaled by `1 / sqrt(head_dim)`.
    cache : KeyValues
        With the new tokens in it at `start` and after; its heads divide `heads`.
    start : int
        Position of the first query; `start + tokens` is at most the cache's capacity.
    window : int, optional
        How many positions a token sees, itself included.
    out : float32 (tokens, heads, head_dim), optional
    scratch : Scratch, optional
        What calls one after another should share, so that none of them allocates.

    Returns
    -------
    float32 (tokens, heads, head_dim)

    Raises
    ------
    TypeError, ValueError
        A dtype or shape that does not fit.
    """
    _check(queries, cache, start, window)
    tokens, heads, head_dim = queries.shape
    out = output_of(out, queries.shape)
    scratch = scratch or Scratch()
    cost = heads * head_dim * min(window or start + tokens, start + tokens)
    for part in pieces(tokens, cost, _MOST * threads()):
        _attend(queries[part], cache, (start + part.start, window), out[part], scratch)
    return out


def _attend(
    queries: np.ndarray, cache: KeyValues, place: tuple[int, int | None], out: np.ndarray, scratch: Scratch
) -> None:
    """Attend from some tokens; `place` is the position of the first one and the window."""
    start, window = place
    tokens, heads, head_dim = queries.shape
    group = heads // cache.keys.shape[0]
    plan = _plan(tokens, (group, cache.keys.shape[0]), start, window)
    parallel = queries.size * min(plan.window, start + tokens) >= _PARALLEL
    workers = threads() if parallel else 1
    work = scratch.room("attention work", (workers, plan.block * group, line_size(plan, cache.width)))
    lines = (
        scratch.room("attention lines", (plan.splits, tokens, heads, head_dim + 2)) if plan.splits > 1 else out[None]
    )
    tasks = plan.splits * -(-tokens // plan.block) * cache.keys.shape[0]
    _run((queries, cache, work, lines), plan, tasks, scratch)
    if plan.splits > 1:
        sum_up(lines, out)


def _run(
    arrays: tuple[np.ndarray, KeyValues, np.ndarray, np.ndarray], plan: Plan, tasks: int, scratch: Scratch
) -> None:
    queries, cache, work, lines = arrays
    p = scratch.room("attention parameters", (_N_PARAMETERS + 1,), np.int64)
    place = address_of(p)
    p[_N_PARAMETERS] = 0
    p[_COUNTER:_CACHE] = place + 8 * _N_PARAMETERS, tasks, address_of(queries), *queries.shape
    p[_CACHE : _CACHE + 4] = [address_of(array) for array in cache.arrays]
    p[_CACHE + 4 : _PLAN] = *cache.keys.shape, cache.key_scale.shape[1]
    p[_PLAN:_WORK] = plan
    p[_WORK:_N_PARAMETERS] = address_of(work), *work.shape[1:], address_of(lines), *lines.shape
    launch(worker_address(attend, _KINDS[cache.bits]), place, work.shape[0])


def _plan(tokens: int, heads: tuple[int, int], start: int, window: int | None) -> Plan:
    """Divide a call of `tokens` tokens; `heads` are those that share keys, and heads of keys."""
    seen = window or start + tokens
    if tokens > _FEW:
        return Plan(start, seen, min(max(1, _ROWS // heads[0]), tokens), 0, start + tokens, 1, _TILE)
    split, most = _SPLITS
    while split < most and 2 * split * _TASKS <= heads[1] * min(seen, start + tokens):
        split *= 2
    low = max(0, start - seen + 1) // split * split
    splits = -(-(start + tokens - low) // split)
    return Plan(start, seen, max(tokens, 1), low, split, max(splits, 1), split)


def _check(queries: np.ndarray, cache: KeyValues, start: int, window: int | None) -> None:
    if queries.dtype != np.float32 or queries.ndim != 3:
        raise TypeError(f"queries must be float32 of 3 dimensions, not {queries.dtype} of {queries.ndim}")
    if not (queries.flags.c_contiguous and queries.flags.aligned):
        raise ValueError("queries must be C-contiguous and aligned")
    tokens, heads, head_dim = queries.shape
    kv_heads, capacity, _ = cache.keys.shape
    if cache.head_dim != head_dim or heads % kv_heads:
        raise ValueError(f"queries {queries.shape} and keys {cache.keys.shape} do not fit")
    if start < 0 or start + tokens > capacity:
        raise ValueError(f"positions {start} to {start + tokens} lie outside a cache of {capacity}")
    if window is not None and window < 1:
        raise ValueError(f"window must be positive, not {window}")
