"""Launches the workers of integer products: scratch and parameters, kept between calls."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from llmq_kernels import integer_places as places
from llmq_kernels.integer_rows import FLOATS, INTEGERS, encode_tokens, multiply_integers
from llmq_kernels.jit import threads
from llmq_kernels.memory import address_of
from llmq_kernels.planes import chunk_bytes, chunk_codes, planes_of
from llmq_kernels.prefill import BLOCK, tile_rows
from llmq_kernels.row_forms import RowForms
from llmq_kernels.scratch import Scratch
from llmq_kernels.simd import target
from llmq_kernels.tile_sums import TILE_IS_CODES
from llmq_kernels.workers import launch, worker_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmq_kernels.integer_weight import IntegerWeight

__all__ = ["Plan", "kind_of", "multiply_tokens", "plan_of", "room", "run_workers", "set_inputs", "workers_for"]

_MANY: Final = 256
"""Tokens that are multiplied in one go."""

_PARALLEL: Final = 3 << 17
"""Products from which waking the threads pays."""

_ENCODE_PARALLEL: Final = 1 << 16
"""Inputs from which it pays to encode them."""

_SKEW: Final = 64
"""Bytes between tokens, so that powers of two do not crowd a few sets of the caches."""

_MOST_PLANS: Final = 64

P = TypeVar("P", bound="Plan")

_kept = threading.local()


def room(name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Room to work in, of this Python thread."""
    scratch = _kept.__dict__.setdefault("scratch", Scratch())
    found: np.ndarray = scratch.room(name, shape, dtype)
    return found


def workers_for(inputs: int, products: int) -> tuple[int, int]:
    """Threads that multiply, and that encode the inputs: all of them from where waking them pays."""
    workers = threads() if products >= _PARALLEL else 1
    return workers, workers if inputs >= _ENCODE_PARALLEL else 1


def kind_of(array: np.ndarray) -> int:
    """`FLOATS` or `INTEGERS`, of inputs or outputs of workers."""
    return FLOATS if array.dtype == np.float32 else INTEGERS


def multiply_tokens(
    x: np.ndarray,
    weight: IntegerWeight,
    inputs: tuple[np.ndarray, np.ndarray, int],
    layer: tuple[np.ndarray | None, np.ndarray | None],
    out: np.ndarray,
) -> None:
    """Multiply int8 or float32 (tokens, columns) by a weight, into int32 or float32 (tokens, rows).

    Parameters
    ----------
    inputs : (float32 (tokens,), int32 (tokens,), int)
        Scales, zero points and bits of `x`; of int8, scales count for float32 outputs alone.
    layer : (float32 (rows,), int32 or float32 (rows,))
        Scales and bias of the rows, or None.
    """
    forms = RowForms.of(weight)
    numbers = forms.filled(*layer)
    scales, points, bits = inputs
    for start in range(0, x.shape[0], _MANY):
        part = slice(start, start + _MANY)
        _multiply(x[part], weight, (scales[part], points[part], bits), (forms.factor, numbers), out[part])


def _multiply(
    x: np.ndarray,
    weight: IntegerWeight,
    inputs: tuple[np.ndarray, np.ndarray, int],
    forms: tuple[int, np.ndarray],
    out: np.ndarray,
) -> None:
    workers, encoders = workers_for(x.size, x.size * weight.rows)
    plan = plan_of(weight, (x.shape[0],), lambda: _Plan(weight, x.shape[0]))
    codes = room("codes", (x.shape[0], plan.token_bytes), np.int8)
    p = plan.parameters(workers)
    p[places.X], p[places.X_CODES], p[places.OUT] = address_of(x), address_of(codes), address_of(out)
    p[places.X_SUMS] = address_of(room("sums", x.shape[:1], np.int32))
    p[places.PACKED], p[places.ROW_FORMS] = address_of(weight.view), address_of(forms[1])
    set_inputs(p, inputs)
    planes, size, bits = planes_of(weight.bits), target().operand(weight.bits), weight.bits
    run = target().lanes if planes == 1 else 1
    run_workers(worker_address(encode_tokens, planes, run, size, kind_of(x)), p, encoders)
    run_workers(worker_address(multiply_integers, bits, TILE_IS_CODES, forms[0], kind_of(out)), p, workers)


class Plan:
    """Parameters of workers that stay the same from call to call, and the size of their scratch.

    Parameters
    ----------
    values : dict of int
        Numbers by place.
    parts : dict of int
        Bytes of the parts of a worker's scratch, by place.
    """

    def __init__(self, values: dict[int, int], parts: dict[int, int]) -> None:
        self._base = np.zeros(places.SIZE, np.int64)
        end = 0
        for place, size in parts.items():
            self._base[place] = end
            end += -(-size // 64) * 64
        self._scratch = end + 64
        for place, value in values.items():
            self._base[place] = value

    def parameters(self, workers: int) -> np.ndarray:
        """Parameters for a call, with scratch for workers; addresses are to be filled in."""
        p = room("parameters", (places.SIZE,), np.int64)
        p[:] = self._base
        p[places.COUNTER] = address_of(room("counter", (8,), np.int64))
        p[places.SCRATCH] = address_of(room("scratch", (workers, self._scratch), np.uint8))
        p[places.SCRATCH_BYTES] = self._scratch
        return p


def plan_of(weight: IntegerWeight, key: tuple[Any, ...], make: Callable[[], P]) -> P:
    """Return the plan for a weight and what else decides it, made once and kept with the weight."""
    known: dict[tuple[Any, ...], P] = weight.__dict__.setdefault("_plans", {})
    plan = known.get(key)
    if plan is None:
        if len(known) >= _MOST_PLANS:
            known.clear()
        plan = known[key] = make()
    return plan


def set_inputs(p: np.ndarray, inputs: tuple[np.ndarray, np.ndarray, int]) -> None:
    """Fill in scales, zero points and bits of inputs."""
    half = 1 << (inputs[2] - 1)
    p[places.X_SCALES], p[places.X_POINTS] = address_of(inputs[0]), address_of(inputs[1])
    p[places.LOWEST], p[places.HIGHEST] = -half, half - 1


def run_workers(worker: int, p: np.ndarray, workers: int) -> None:
    """Run a worker with its counter at zero."""
    room("counter", (8,), np.int64)[0] = 0
    launch(worker, address_of(p), workers)


class _Plan(Plan):
    """Of products of a number of tokens."""

    def __init__(self, weight: IntegerWeight, tokens: int) -> None:
        goal, bits, row = target(), weight.bits, int(weight.packed.shape[1])
        chunks = -(-weight.columns // chunk_codes(bits, goal.width))
        padded, reach = chunks * chunk_codes(bits, goal.width), chunks * chunk_bytes(bits, goal.width) + 16
        self.token_bytes = goal.operand(bits) * padded + _SKEW
        values = {
            places.TOKENS: tokens,
            places.COLUMNS: weight.columns,
            places.PADDED: padded,
            places.X_BYTES: self.token_bytes,
            places.ROW_BYTES: row,
            places.ROWS: weight.rows,
            places.SAFE_ROWS: weight.rows - -(-max(0, reach - row) // row),
            places.COPY_BYTES: reach,
            places.FORM_BYTES: 4 * RowForms.of(weight).numbers.shape[1],
        }
        parts = {
            places.SPARE: padded,
            places.COPIES: tile_rows(goal) * reach,
            places.TILE: tile_rows(goal) * BLOCK * goal.operand(bits),
            places.SUMS: 4 * tokens * tile_rows(goal),
        }
        super().__init__(values, parts)
