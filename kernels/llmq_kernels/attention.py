"""Causal attention of new tokens over a key-value cache, with grouped heads and a sliding window."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np

from llmq_kernels.attention_tasks import Plan, line_size, run_task, sum_up, tasks_of
from llmq_kernels.doors import frozen, output_of
from llmq_kernels.jit import call, jit
from llmq_kernels.scratch import Scratch

if TYPE_CHECKING:
    from llmq_kernels.keyvalues import KeyValues

__all__ = ["attention", "attention_reference"]

_numba: Any = numba  # some releases are half typed
_thread = _numba.get_thread_id

_FEW: Final = 4
"""Tokens up to which the context is split: more of them make tasks enough by themselves."""

_SPLIT: Final = 256
"""Positions of a task for few tokens."""

_TILE: Final = 64
"""Positions that a task for many tokens looks at in one go, widened to float32 in the first-level cache."""

_ROWS: Final = 32
"""Rows of a task for many tokens, about; a row is one head of one token."""

_PARALLEL: Final = 1 << 19
"""Products of queries and keys from which waking the threads pays: about 40 microseconds of work."""


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


@jit(parallel=True)
def _attention(
    queries: np.ndarray, cache: Any, plan: Plan, work: np.ndarray, lines: np.ndarray, out: np.ndarray
) -> None:
    """Run all tasks, each thread with a row of `work`, and put their results together if need be."""
    for task in numba.prange(tasks_of(queries, cache, plan)):
        # The number of a task is unsigned, and would have all of it compiled anew.
        run_task(int(np.int64(task)), queries, cache, plan, work[_thread()], lines)
    if plan.splits > 1:
        sum_up(lines, out)


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
    group = heads // cache.keys.shape[0]
    plan = _plan(tokens, group, start, window)
    parallel = queries.size * min(plan.window, start + tokens) >= _PARALLEL
    # As many as there can be, not as are set now: another Python thread may set more meanwhile.
    workers = _numba.config.NUMBA_NUM_THREADS if parallel else 1
    scratch = scratch or Scratch()
    work = scratch.room("attention work", (workers, plan.block * group, line_size(plan, cache.keys.shape[2])))
    lines = (
        scratch.room("attention lines", (plan.splits, tokens, heads, head_dim + 2)) if plan.splits > 1 else out[None]
    )
    call(_attention, frozen(queries), cache.views, plan, work, lines, out, parallel=parallel)
    return out


def _plan(tokens: int, group: int, start: int, window: int | None) -> Plan:
    """Divide a call of `tokens` tokens, whose keys `group` heads share each."""
    seen = window or start + tokens
    if tokens > _FEW:
        return Plan(start, seen, min(max(1, _ROWS // group), tokens), 0, start + tokens, 1, _TILE)
    low = max(0, start - seen + 1) // _SPLIT * _SPLIT
    splits = -(-(start + tokens - low) // _SPLIT)
    return Plan(start, seen, max(tokens, 1), low, _SPLIT, max(splits, 1), _SPLIT)


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
