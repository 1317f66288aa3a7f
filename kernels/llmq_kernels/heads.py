"""`store_heads`: what happens to new queries, keys and values before attention, in one pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numba
import numpy as np

from llmq_kernels.doors import frozen, matrix_of
from llmq_kernels.jit import jit
from llmq_kernels.keyvalue_rows import row_elements, store_row
from llmq_kernels.norm import rms_norm_reference, rms_norm_row
from llmq_kernels.rope import rope_reference, rope_row

if TYPE_CHECKING:
    from llmq_kernels.keyvalues import KeyValues

__all__ = ["HeadNorms", "store_heads", "store_heads_reference"]

_PARALLEL: Final = 1 << 18
"""Elements from which starting the threads pays."""

_NONE: Final = frozen(np.empty(0, np.float32))


@dataclass(frozen=True, eq=False)
class HeadNorms:
    """RMS norms of each head of queries and keys, before their rotation (Qwen3).

    Parameters
    ----------
    query, key : float32 (head_dim,) or None
        Weights; None means no norm.
    eps : float
        Added to the mean square.

    Raises
    ------
    ValueError
        A weight of another kind.
    """

    query: np.ndarray | None = None
    key: np.ndarray | None = None
    eps: float = 0.0
    views: tuple[np.ndarray, np.ndarray, np.float32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        found = []
        for weight in (self.query, self.key):
            if weight is not None and (weight.dtype != np.float32 or weight.ndim != 1):
                raise ValueError(f"weight must be float32 (head_dim,), not {weight.dtype} {weight.shape}")
            found.append(_NONE if weight is None else frozen(np.ascontiguousarray(weight)))
        object.__setattr__(self, "views", (*found, np.float32(self.eps)))


NO_NORMS: Final = HeadNorms()


def store_heads_reference(
    queries: np.ndarray,
    keys: np.ndarray,
    rotation: tuple[np.ndarray, np.ndarray],
    norms: HeadNorms = NO_NORMS,
) -> tuple[np.ndarray, np.ndarray]:
    """Specify in plain NumPy what `store_heads` makes of queries and keys; values are held as they are.

    Examples
    --------
    >>> quarter_turn = np.array([[0.0]], np.float32), np.array([[1.0]], np.float32)
    >>> queries = keys = np.array([[[3.0, 4.0]]], np.float32)
    >>> norms = HeadNorms(key=np.array([5.0, 5.0], np.float32))
    >>> [x.round(2).tolist() for x in store_heads_reference(queries, keys, quarter_turn, norms)]
    [[[[-4.0, 3.0]]], [[[-5.659999847412109, 4.239999771118164]]]]
    """
    found = []
    for x, weight in ((queries, norms.query), (keys, norms.key)):
        flat = x.reshape(-1, x.shape[2])
        normed = x if weight is None else rms_norm_reference(flat, weight, norms.eps).reshape(x.shape)
        found.append(rope_reference(normed, *rotation))
    return found[0], found[1]


@jit
def _store_token(token: int, heads: Any, rotation: Any, norms: Any, cache: Any, place: tuple[int, np.ndarray]) -> None:
    """Norm, rotate and store one token; queries and keys are changed in place.

    `place` is the position of the first token and room for `store_row`.
    """
    queries, keys, values = heads
    cosine, sine = rotation[0][token], rotation[1][token]
    position, room = place
    for head in range(queries.shape[1]):
        row = queries[token, head]
        if norms[0].size:
            rms_norm_row(row, norms[0], norms[2], row)
        rope_row(row, cosine, sine)
    for head in range(keys.shape[1]):
        row = keys[token, head]
        if norms[1].size:
            rms_norm_row(row, norms[1], norms[2], row)
        rope_row(row, cosine, sine)
        store_row(row, cache[0][head], cache[2][head], position + token, room)
        store_row(values[token, head], cache[1][head], cache[3][head], position + token, room)


@jit
def _store(heads: Any, rotation: Any, norms: Any, cache: Any, position: int) -> None:
    """Store all tokens on one thread."""
    room = np.empty((2, row_elements(cache[0])), np.float32)
    for token in range(heads[0].shape[0]):
        _store_token(token, heads, rotation, norms, cache, (position, room))


@jit(parallel=True)
def _store_parallel(heads: Any, rotation: Any, norms: Any, cache: Any, position: int) -> None:
    """Store all tokens, each on one of the threads."""
    for token in numba.prange(heads[0].shape[0]):
        room = np.empty((2, row_elements(cache[0])), np.float32)
        _store_token(token, heads, rotation, norms, cache, (position, room))


def store_heads(
    heads: tuple[np.ndarray, np.ndarray, np.ndarray],
    rotation: tuple[np.ndarray, np.ndarray],
    cache: KeyValues,
    *,
    position: int,
    norms: HeadNorms = NO_NORMS,
) -> None:
    """Norm and rotate queries in place, and put normed and rotated keys, and values, into a cache.

    Parameters
    ----------
    heads : float32 (tokens, heads, head_dim), (tokens, kv_heads, head_dim), the same
        Queries, keys and values of new tokens, C-contiguous. Queries are changed in place; keys too, as scratch.
    rotation : float32 (tokens, head_dim / 2), the same
        Cosines and sines of each token's angles.
    cache : KeyValues
    position : int
        Of the first token in the cache.
    norms : HeadNorms, optional

    Raises
    ------
    TypeError, ValueError
        A dtype or shape that does not fit.
    """
    _check(heads, cache, position, norms)
    queries, keys, values = heads
    tokens, _, head_dim = queries.shape
    cosine = matrix_of("cosine", rotation[0], np.float32, head_dim // 2)
    sine = matrix_of("sine", rotation[1], np.float32, head_dim // 2)
    if cosine.shape[0] != tokens or sine.shape[0] != tokens:
        raise ValueError(f"{tokens} tokens need as many cosines and sines, not {cosine.shape}, {sine.shape}")
    parallel = tokens > 1 and queries.size + 2 * keys.size >= _PARALLEL
    run = _store_parallel if parallel else _store
    run((queries, keys, frozen(values)), (cosine, sine), norms.views, cache.arrays, position)


def _check(heads: tuple[np.ndarray, ...], cache: KeyValues, position: int, norms: HeadNorms) -> None:
    for name, x in zip(("queries", "keys", "values"), heads, strict=True):
        if x.dtype != np.float32 or x.ndim != 3:
            raise TypeError(f"{name} must be float32 of 3 dimensions, not {x.dtype} of {x.ndim}")
        flags = x.flags
        if not (flags.c_contiguous and flags.aligned and (flags.writeable or name == "values")):
            raise ValueError(f"{name} must be C-contiguous, aligned and, but for values, writable")
    queries, keys, values = heads
    tokens, head_dim = queries.shape[0], cache.head_dim
    expected = (tokens, cache.keys.shape[0], head_dim)
    if keys.shape != expected or values.shape != expected or queries.shape[2] != head_dim or head_dim % 2:
        raise ValueError(f"queries {queries.shape}, keys {keys.shape} and values {values.shape} do not fit the cache")
    if position < 0 or position + tokens > cache.capacity:
        raise ValueError(f"positions {position} to {position + tokens} lie outside a cache of {cache.capacity}")
    if any(weight.size not in (0, head_dim) for weight in norms.views[:2]):
        raise ValueError(f"norms must have {head_dim} weights")
