"""Tasks of `attention`: heads that share keys, a block of tokens and a stretch of the context.

Nothing of size tokens x context exists: a task walks its stretch in tiles, and keeps a running maximum and sum for each
of its rows (one head of one token). After "Online normalizer calculation for softmax" (Milakov, Gimelshein 2018) and
"FlashAttention" (Dao et al. 2022), algorithm 1. Stretches are put together as in "Flash-Decoding" (Dao et al. 2023),
in their order, and nothing depends on the number of threads.

Where the cache holds rows transformed (in 4 bits), queries are transformed alike, which leaves their products with keys
as they are, and the sums of values are transformed back, which gives the sums of what they stand for.

A row's line of scratch, float32 (2 * head_dim + tile + 2,), where heads are as wide as `padded` says::

    query | sum of values | scores, later weights | maximum | sum of weights
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from llmq_kernels.attention_rows import LANES, add_values, score, weigh
from llmq_kernels.exponential import exp
from llmq_kernels.jit import jit
from llmq_kernels.keyvalue_rows import row_elements, transform_row

__all__ = ["Plan", "line_size", "run_task", "sum_up"]


class Plan(NamedTuple):
    """How a call is divided into tasks; nothing of it depends on the number of threads.

    Parameters
    ----------
    start, window : int
        Position of the first token; how many positions a token sees.
    block : int
        Tokens of a task.
    low, split, splits : int
        Where the first stretch begins, a multiple of `split`; positions of a stretch; how many there are.
    tile : int
        Positions looked at in one go, a multiple of 8 that divides `split`.
    """

    start: int
    window: int
    block: int
    low: int
    split: int
    splits: int
    tile: int


def line_size(plan: Plan, head_dim: int) -> int:
    """Elements of a row's line."""
    return 2 * head_dim + plan.tile + 2


@jit
def _scale(scores: np.ndarray, scale: np.ndarray) -> None:
    """Multiply float32 (n,) by the scales of codes, if there are any."""
    for i in range(scale.size):
        scores[i] *= scale[i]


@jit
def _meet(work: np.ndarray, pair: Any, scales: tuple[np.ndarray, np.ndarray], low: int, shape: Any) -> None:
    """Let all rows of a task meet a tile.

    Parameters
    ----------
    work : float32 (rows, 2 * head_dim + tile + 2)
        Lines of the rows, token by token.
    pair : ((n, head_dim), (n, head_dim)), or half as wide
        Keys and values of the tile, as the cache holds them.
    scales : (float32 (n,), float32 (n,)) or empty
        Of codes.
    low : int
        Position of the tile's first key.
    shape : (int, int, int)
        Position of the first token, heads, window.
    """
    keys, values = pair
    position, heads, window = shape
    rows, head_dim, high = work.shape[0], row_elements(keys), low + keys.shape[0]
    row = 0
    while row < rows:
        count = 4 if row + 4 <= rows else 1
        start = max(low, position + row // heads + 1 - window)
        stop = min(high, position + (row + count - 1) // heads + 1)
        if start < stop:
            lines, part = work[row : row + count], keys[start - low : stop - low]
            if count == 4:
                score(lines, part, (0, 0, 0, 0))
            else:
                score(lines, part, (0,))
            for i in range(count):
                line, seen = lines[i], position + (row + i) // heads + 1
                first, last = max(start, seen - window) - start, min(stop, seen) - start
                _scale(line[2 * head_dim :], scales[0][start - low : stop - low])
                if first < last:
                    weigh(line, head_dim, first, last, stop - start)
                else:
                    for at in range((stop - start + LANES - 1) // LANES * LANES):
                        line[2 * head_dim + at] = np.float32(0.0)
                _scale(line[2 * head_dim :], scales[1][start - low : stop - low])
            part = values[start - low : stop - low]
            if count == 4:
                for pair in range(0, 4, 2):
                    add_values(lines[pair : pair + 2], part, (0, 0))
            else:
                add_values(lines, part, (0,))
        row += count


@jit
def run_task(number: int, queries: np.ndarray, cache: Any, plan: Plan, scratch: np.ndarray, lines: np.ndarray) -> None:
    """Run one task.

    Parameters
    ----------
    number : int
        Stretches of a block follow each other, then blocks of a head, then heads.
    queries : float32 (tokens, heads, head_dim)
    cache : KeyValues.arrays
    plan : Plan
    scratch : float32 (block * heads that share keys, line_size(...))
    lines : float32 (splits, tokens, heads, head_dim + 2)
        Receives sum of values, maximum and sum of weights; or the quotient, float32 (1, tokens, heads, head_dim), where
        there is one stretch only.
    """
    tokens, heads, size = queries.shape
    head_dim = row_elements(cache[0])
    group = heads // cache[0].shape[0]
    blocks = (tokens + plan.block - 1) // plan.block
    part = number % plan.splits
    turn = number // plan.splits % blocks
    shared = number // plan.splits // blocks
    # Later blocks see more: light and heavy ones alternate, since threads take equal runs of tasks.
    token = plan.block * (turn // 2 if turn % 2 == 0 else blocks - 1 - turn // 2)
    count = min(plan.block, tokens - token)
    rows, state = count * group, 2 * head_dim + plan.tile
    work = scratch[:rows]
    scale = np.float32(1.0) / np.sqrt(np.float32(size))
    for row in range(rows):
        line = work[row]
        line[size:head_dim] = np.float32(0.0)
        for d in range(size):
            line[d] = queries[token + row // group, shared * group + row % group, d] * scale
        transform_row(line[:head_dim], line[head_dim : 2 * head_dim], cache[0])
        line[head_dim : 2 * head_dim] = np.float32(0.0)
        line[state], line[state + 1] = np.float32(-np.inf), np.float32(0.0)
    position = plan.start + token
    low = max(plan.low + part * plan.split, position - plan.window + 1, 0)
    high = min(plan.low + (part + 1) * plan.split, position + count)
    keys, values, key_scale, value_scale = cache[0][shared], cache[1][shared], cache[2][shared], cache[3][shared]
    for edge in range(low // plan.tile * plan.tile, high, plan.tile):
        a, b = max(edge, low), min(edge + plan.tile, high)
        scales = key_scale[a:b], value_scale[a:b]
        _meet(work, (keys[a:b], values[a:b]), scales, a, (position, group, plan.window))
    for row in range(rows):
        out = lines[part, token + row // group, shared * group + row % group]
        transform_row(work[row, head_dim : 2 * head_dim], work[row, :head_dim], values)
        share = np.float32(1.0) if plan.splits > 1 else np.float32(1.0) / work[row, state + 1]
        for d in range(size):
            out[d] = work[row, head_dim + d] * share
        if plan.splits > 1:
            out[size] = work[row, state]
            out[size + 1] = work[row, state + 1]


@jit
def sum_up(lines: np.ndarray, out: np.ndarray) -> None:
    """Put stretches together.

    Parameters
    ----------
    lines : float32 (splits, tokens, heads, head_dim + 2)
        Of `run_task`.
    out : float32 (tokens, heads, head_dim)
    """
    tokens, heads, head_dim = out.shape
    for token in range(tokens):
        for head in range(heads):
            target = out[token, head]
            target[:] = np.float32(0.0)
            largest, total = np.float32(-np.inf), np.float32(0.0)
            for part in range(lines.shape[0]):
                if lines[part, token, head, head_dim] > largest:
                    largest = lines[part, token, head, head_dim]
            for part in range(lines.shape[0]):
                line = lines[part, token, head]
                # A stretch that none of the row's positions lies in has weighed nothing.
                if line[head_dim + 1] == np.float32(0.0):
                    continue
                share = exp(line[head_dim] - largest)
                total += line[head_dim + 1] * share
                for d in range(head_dim):
                    target[d] += line[d] * share
            for d in range(head_dim):
                target[d] /= total
