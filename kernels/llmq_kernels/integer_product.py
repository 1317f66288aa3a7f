"""Launches the workers of integer products: scratch and parameters, kept between calls."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from llmq_kernels import integer_places as places
from llmq_kernels.integer_rows import TILE_BYTES, encode_tokens, multiply_integers, unpack_tiles
from llmq_kernels.jit import jit, threads
from llmq_kernels.memory import address, address_of, call_worker, longs
from llmq_kernels.planes import chunk_bytes, chunk_codes, planes_of
from llmq_kernels.row_forms import RowForms
from llmq_kernels.scratch import aligned_zeros, laid_out
from llmq_kernels.simd import target
from llmq_kernels.tile_sums import FLOATS, INTEGERS, TILE_IS_CODES
from llmq_kernels.tiles import tile_rows
from llmq_kernels.workers import Turns, launch, worker_address

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from llmq_kernels.integer_weight import IntegerWeight

__all__ = ["Plan", "multiply_tokens", "plan_of", "workers_for"]

_MANY: Final = 512
_FEWEST: Final = 64
"""Tokens that are multiplied in one go, at most, and at least of those there are."""

_PRODUCTS: Final = 1 << 33
"""Products from which tokens are fewer, so that Ctrl-C is served."""

_PARALLEL: Final = 3 << 17
"""Products from which waking the threads pays."""

_SKEW: Final = 64
"""Bytes between tokens, so that powers of two do not crowd a few sets of the caches."""

_MOST_PLANS: Final = 64

P = TypeVar("P", bound="Plan")

_KEPT_TILES: Final = 1 << 20
"""Bytes of a weight's tiles up to which they are kept unpacked, beside the packed codes: reading them takes less than
computing them anew."""


class _Room:
    """What a Python thread keeps between calls."""

    def __init__(self) -> None:
        self.parameters = np.zeros(places.SIZE, np.int64)
        self.turns = Turns(address_of(self.parameters))
        self._memory, self._address = np.zeros(0, np.uint8), 0

    def address(self, size: int) -> int:
        """Address of room for `size` bytes, which begins a line; it grows where it does not suffice."""
        if self._memory.size < size:
            self._memory = aligned_zeros((size,))
            self._address = address_of(self._memory)
        return self._address


_kept = threading.local()


def workers_for(products: int) -> int:
    """Threads for some products: all of them from where waking them pays."""
    return threads() if products >= _PARALLEL else 1


def kind_of(array: np.ndarray) -> int:
    """`FLOATS` or `INTEGERS`, of inputs or outputs of workers."""
    return FLOATS if array.dtype == np.float32 else INTEGERS


def multiply_tokens(
    x: np.ndarray,
    weight: IntegerWeight,
    inputs: tuple[np.ndarray, np.ndarray, int],
    numbers: np.ndarray,
    out: np.ndarray,
) -> None:
    """Multiply int8 or float32 (tokens, columns) by a weight, into int32 or float32 (tokens, rows).

    Parameters
    ----------
    inputs : (float32 (tokens,), int32 (tokens,), int)
        Scales, zero points and bits of `x`; of int8, scales count for float32 outputs alone.
    numbers : int32 (5, rows)
        See `RowForms.filled`.
    """
    tokens = x.shape[0]
    at_once = max(_FEWEST, min(_MANY, _PRODUCTS // max(weight.rows * weight.columns, 1)))
    if tokens <= at_once:
        _multiply(x, weight, inputs, numbers, out)
        return
    scales, points, bits = inputs
    for start in range(0, tokens, at_once):
        part = slice(start, start + at_once)
        _multiply(x[part], weight, (scales[part], points[part], bits), numbers, out[part])


def _multiply(
    x: np.ndarray,
    weight: IntegerWeight,
    inputs: tuple[np.ndarray, np.ndarray, int],
    numbers: np.ndarray,
    out: np.ndarray,
) -> None:
    tokens = x.shape[0]
    if not tokens:
        return
    plan = plan_of(weight, tokens, _Plan, tokens)
    plan.run((x, out), inputs, numbers, workers_for(x.size * weight.rows))


class Plan(ABC):
    """Parameters of workers that stay the same from call to call, and the sizes of the room they work in.

    Parameters
    ----------
    values : dict of int
        Numbers by place.
    shared : dict of int
        Bytes of what all workers share, by the place of its address.
    own : dict of int
        Bytes of the parts of a worker's scratch, by place.
    """

    def __init__(self, values: dict[int, int], shared: dict[int, int], own: dict[int, int]) -> None:
        parts, self._scratch = laid_out(own)
        starts, self._begin = laid_out(shared)
        starts[places.SCRATCH] = self._begin
        self._values, self._starts = np.zeros(places.SIZE, np.int64), np.zeros(places.SIZE, np.bool_)
        for place, value in (values | parts | starts | {places.SCRATCH_BYTES: self._scratch}).items():
            self._values[place] = value
        self._starts[list(starts)] = True
        self._compiled: dict[tuple[int, int], tuple[int, int]] = {}

    @abstractmethod
    def worker_addresses(self, source: int, result: int) -> tuple[int, int]:
        """Addresses of the workers that encode inputs and that multiply; see `kind_of`."""

    def run(
        self,
        arrays: tuple[np.ndarray, np.ndarray],
        inputs: tuple[np.ndarray, np.ndarray, int],
        numbers: np.ndarray,
        workers: int,
    ) -> None:
        """Fill in the parameters of this Python thread, and run the workers.

        Parameters
        ----------
        arrays : (array, array)
            Inputs and outputs.
        inputs, numbers
            See `multiply_tokens`.
        workers : int
            Threads.
        """
        x, out = arrays
        kinds = kind_of(x), kind_of(out)
        both = self._compiled.get(kinds) or self._compiled.setdefault(kinds, self.worker_addresses(*kinds))
        # Taken out while it is used: a signal handler may multiply, too.
        room: _Room = _kept.__dict__.pop("room", None) or _Room()
        plan = self._values, self._starts, room.address(self._begin + workers * self._scratch)
        addresses, alone = (address_of(x), address_of(out)), both if workers == 1 else None
        _begin(room.parameters, plan, room.turns.counters, addresses, inputs, numbers, alone)
        if workers > 1:
            room.turns.launch(*both, workers)
        _kept.room = room


@jit
def _begin(
    p: np.ndarray,
    plan: tuple[np.ndarray, np.ndarray, int],
    counters: tuple[int, int],
    arrays: tuple[int, int],
    inputs: tuple[np.ndarray, np.ndarray, int],
    numbers: np.ndarray,
    alone: tuple[int, int] | None,
) -> None:
    """Fill in the parameters of a call; see `Plan.run`.

    Where there are addresses of workers, `alone`, run both one after the other on this thread, as `Turns.launch` does.
    """
    values, starts, room = plan
    for place in range(p.size):
        p[place] = values[place] + (room if starts[place] else 0)
    p[places.X_COUNTER], p[places.COUNTER] = counters
    p[places.X], p[places.OUT] = arrays
    scales, points, bits = inputs
    p[places.X_SCALES], p[places.X_POINTS] = address(scales), address(points)
    p[places.LOWEST], p[places.HIGHEST] = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    p[places.ROW_FORMS] = address(numbers)
    if alone is not None:
        for turn in range(2):
            longs(counters[turn])[0] = 0
            call_worker(alone[turn], address(p), 0)


def plan_of(weight: IntegerWeight, key: Hashable, make: Callable[..., P], *args: Any) -> P:
    """Return the plan for a weight and what else decides it, `make(weight, *args)`, made once and kept with it."""
    known: dict[Hashable, P] = weight.__dict__.setdefault("_plans", {})
    plan = known.get(key)
    if plan is None:
        if len(known) >= _MOST_PLANS:
            known.clear()
        plan = known[key] = make(weight, *args)
    return plan


class _Plan(Plan):
    """Of products of a number of tokens."""

    def __init__(self, weight: IntegerWeight, tokens: int) -> None:
        goal, bits, row = target(), weight.bits, int(weight.packed.shape[1])
        planes, forms = planes_of(bits), RowForms.of(weight)
        self._encode = planes, goal.lanes if planes == 1 else 1, goal.operand(bits)
        self._multiply = bits, TILE_IS_CODES, forms.factor
        chunks = -(-weight.columns // chunk_codes(bits, goal.width))
        padded, reach = chunks * chunk_codes(bits, goal.width), chunks * chunk_bytes(bits, goal.width) + 16
        token_bytes = goal.operand(bits) * padded + _SKEW
        values = {
            places.TOKENS: tokens,
            places.COLUMNS: weight.columns,
            places.PADDED: padded,
            places.X_BYTES: token_bytes,
            places.PACKED: address_of(weight.view),
            places.ROW_BYTES: row,
            places.ROWS: weight.rows,
            places.SAFE_ROWS: weight.rows - -(-max(0, reach - row) // row),
            places.COPY_BYTES: reach,
            places.FORM_BYTES: 4 * forms.numbers.shape[1],
        }
        shared = {places.X_SUMS: 4 * tokens, places.X_CODES: tokens * token_bytes}
        own = {
            places.SPARE: padded,
            places.COPIES: tile_rows(goal) * reach,
            places.TILE: tile_rows(goal) * TILE_BYTES,
            places.SUMS: 4 * (tokens + 1) * tile_rows(goal),
        }
        super().__init__(values, shared, own)
        tiles = -(-weight.rows // tile_rows(goal)) * tile_rows(goal) * padded * goal.operand(bits)
        if tiles <= _KEPT_TILES:
            self._values[places.TILES] = self._unpacked(weight, tiles)

    def worker_addresses(self, source: int, result: int) -> tuple[int, int]:
        """Addresses of the workers that encode tokens and that multiply."""
        encode = worker_address(encode_tokens, *self._encode, source)
        return encode, worker_address(multiply_integers, *self._multiply, result)

    def _unpacked(self, weight: IntegerWeight, size: int) -> int:
        """Address of the weight's tiles, unpacked once and kept with it, and with this plan."""
        kept: dict[str, Any] = weight.__dict__
        tiles = kept.get("_tiles")
        if tiles is None:
            tiles = aligned_zeros((size,))
            room, counter = aligned_zeros((self._begin + self._scratch,)), np.zeros(1, np.int64)
            p = self._values + self._starts * address_of(room)
            p[places.TILES], p[places.COUNTER] = address_of(tiles), address_of(counter)
            launch(worker_address(unpack_tiles, weight.bits), address_of(p), 1)
            tiles = kept.setdefault("_tiles", tiles)  # another thread's, if it was first
        self._tiles = tiles
        return address_of(tiles)
