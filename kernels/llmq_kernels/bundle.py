"""`Bundle`: packed weights that multiply the same activations, on all threads."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, Final

import numpy as np

from llmq_kernels import places
from llmq_kernels.activations import activation_group, encode_rows
from llmq_kernels.chunks import chunks_of
from llmq_kernels.decode import decode_rows
from llmq_kernels.jit import threads
from llmq_kernels.layout import midpoint
from llmq_kernels.memory import address_of
from llmq_kernels.planes import planes_of
from llmq_kernels.prefill import prefill_rows, sums_are_whole
from llmq_kernels.row_kernels import rows_together, scratch_bytes
from llmq_kernels.scratch import aligned_zeros, laid_out
from llmq_kernels.simd import target
from llmq_kernels.tiles import BLOCK, tile_rows, tile_shape
from llmq_kernels.workers import Turns, worker_address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmq_kernels.layout import PackedMatrix

__all__ = ["Bundle"]

_FEW: Final = 4
"""Tokens up to which rows are read for each few of them, instead of being unpacked into a tile."""

_MANY: Final = 256
"""Tokens that are multiplied in one go."""

_TURN: Final = 512 << 10
"""Packed bytes that a thread takes at a time, about: a small part of a millisecond."""

_PARALLEL: Final = 3 << 17
"""Products of activations and weights from which waking the threads pays."""

_MOST: Final = 4_000_000_000
"""Products of a thread before Ctrl-C is served: about a tenth of a second of those for AVX2."""

_SKEW: Final = 64
"""Bytes between the codes of tokens that meet tiles, so that powers of two do not crowd a few sets of the caches."""

_kept = threading.local()


class Bundle:
    """Packed weights of one form: the same width, groups, columns, kind of scales and of zero points.

    Parameters
    ----------
    matrices : sequence of PackedMatrix
        Not empty; their arrays are kept.

    Raises
    ------
    ValueError
        Weights of different forms.
    """

    def __init__(self, matrices: Sequence[PackedMatrix]) -> None:
        first = matrices[0]
        forms = {(*m.form, m.columns, m.zero_point is None) for m in matrices}
        if len(forms) > 1:
            raise ValueError(f"the weights of a bundle must have one form, not {len(forms)}")
        self.bits, self.group_size, self.kind = first.form
        self.columns = first.columns
        self.symmetric = first.zero_point is None
        self.rows = tuple(m.rows for m in matrices)
        self.group = activation_group(self.group_size)
        codes, chunk, vectors = chunks_of(self.bits, target())
        chunks = -(-self.columns // codes)
        self.padded = chunks * codes
        self.few_bytes = chunks * vectors * target().width
        self.reach = chunks * chunk + 16
        self._views = [m.views for m in matrices]
        self.scale_bytes = 2 * int(first.scale.shape[1])
        self.row_bytes = int(first.packed.shape[1])
        self._zeros = np.full(target().lanes, max(1, int(midpoint(self.bits))), np.uint8)
        self._jobs = np.concatenate([self._job(m) for m in matrices])
        self._key = (self.bits, self.group_size, self.kind, self.columns, self.symmetric, self.rows)

    @staticmethod
    def serves(matrix: PackedMatrix) -> bool:
        """Whether there are microkernels for a weight: its groups must fill whole 32-bit lanes of planes."""
        return activation_group(matrix.group_size) % (32 if matrix.bits == 1 else 16) == 0

    def _job(self, matrix: PackedMatrix) -> np.ndarray:
        packed, scale, zero = matrix.views
        job = np.zeros(places.JOB_SIZE, np.int64)
        job[places.PACKED], job[places.SCALE] = packed.ctypes.data, scale.ctypes.data
        job[places.ZERO] = self._zeros.ctypes.data if self.symmetric else zero.ctypes.data
        job[places.ZERO_ROW] = 0 if self.symmetric else zero.shape[1]
        job[places.ZERO_STEP] = 0 if self.symmetric else 1
        job[places.ROWS] = matrix.rows
        # Of each array, how far beyond its row loads may reach.
        groups = self.columns // self.group
        rest = -groups % target().lanes
        size = self.scale_bytes * self.group_size // self.columns
        reaches = [(self.row_bytes, self.reach - self.row_bytes), (self.scale_bytes, rest * size)]
        if not self.symmetric:
            reaches.append((int(zero.shape[1]), rest))
        job[places.SAFE_ROWS] = matrix.rows - max(-(-max(0, beyond) // row) for row, beyond in reaches)
        return job

    def multiply(self, x: np.ndarray, outs: Sequence[np.ndarray]) -> None:
        """Multiply activations, quantized to int8 on the fly, by all weights; Ctrl-C is served in between.

        Parameters
        ----------
        x : float32 (tokens, columns)
            C-contiguous.
        outs : sequence of float32 (tokens, rows)
            C-contiguous; written.
        """
        if x.shape[0] <= _MANY:
            self._multiply(x, outs)
            return
        for start in range(0, x.shape[0], _MANY):
            part = slice(start, start + _MANY)
            self._multiply(x[part], [out[part] for out in outs])

    def _multiply(self, x: np.ndarray, outs: Sequence[np.ndarray]) -> None:
        tokens = x.shape[0]
        if not tokens:
            return
        workers = threads() if x.size * sum(self.rows) >= _PARALLEL else 1
        room = min(1 << (tokens - 1).bit_length(), _MANY)
        key = self._key, room, workers
        known = _kept.__dict__.setdefault("plans", {})
        # Taken out while it is used: a signal handler may multiply, too.
        plan = known.pop(key, None) or _Plan(self, room, workers)
        p = plan.parameters
        p[places.TOKENS] = tokens
        p[places.X] = address_of(x)
        p[places.JOBS :] = self._jobs
        for number, out in enumerate(outs):
            p[places.JOBS + number * places.JOB_SIZE + places.OUT] = address_of(out)
        stops = _stops(self, tokens, workers)
        p[places.STOP] = stops[0]
        plan.turns.launch(plan.encode, plan.multiply, workers)
        for start, stop in itertools.pairwise(stops):
            p[places.STOP] = stop
            plan.turns.go_on(start, workers)
        if len(known) >= 64:
            known.clear()
        known[key] = plan


class _Plan:
    """Scratch, parameters and compiled workers for a form, a number of tokens and of threads; of one Python thread."""

    def __init__(self, bundle: Bundle, tokens: int, workers: int) -> None:
        few = tokens <= _FEW
        share = bundle.group.bit_length() - 1
        groups = bundle.columns // bundle.group
        stride = 4 * -(-groups // 16) * 16
        # Tokens that the microkernel adds to make up its number are read, and their results left.
        at_a_time = 1 if few else tile_shape(target())[1]
        padded_tokens = -(-tokens // at_a_time) * at_a_time
        size = 1 if few else target().operand(bundle.bits)
        x_bytes = bundle.few_bytes if few else size * bundle.padded + _SKEW
        self._codes = aligned_zeros((padded_tokens, x_bytes))
        self._scales = aligned_zeros((2, padded_tokens, stride))
        # For one bit, symmetric, the stored 1 means one half.
        half = bundle.symmetric and bundle.bits == 1
        offset = target().offset(bundle.bits)
        factor = 1.0 if few or not bundle.symmetric else offset - midpoint(bundle.bits)
        whole = not few and sums_are_whole(bundle.bits, symmetric=bundle.symmetric)
        self._zero_form = np.array([0.5 if half else 1.0, offset, factor, whole], np.float32)
        parts = _few_parts(bundle, tokens, stride) if few else _many_parts(bundle, padded_tokens, stride)
        starts, size_of_scratch = laid_out(parts)
        self._scratch = aligned_zeros((workers, size_of_scratch))
        values = {
            places.COLUMNS: bundle.columns,
            places.GROUP: bundle.group,
            places.GROUPS: groups,
            places.PADDED: bundle.padded,
            places.X_BYTES: x_bytes,
            places.X_CODES: self._codes.ctypes.data,
            places.X_SCALES: self._scales[0].ctypes.data,
            places.X_SUMS: self._scales[1].ctypes.data,
            places.STRIDE: stride,
            places.KIND: bundle.kind,
            places.REPEAT: bundle.group_size // bundle.group,
            places.ROW_BYTES: bundle.row_bytes,
            places.SCALE_BYTES: bundle.scale_bytes,
            places.ZERO_FORM: self._zero_form.ctypes.data,
            places.SCRATCH: self._scratch.ctypes.data,
            places.SCRATCH_BYTES: self._scratch.shape[1],
            places.COPY_BYTES: bundle.reach,
            places.CHUNK: _turn(bundle, tokens, workers) if few else 0,
            places.WEIGHTS: len(bundle.rows),
        }
        self.parameters = np.zeros(places.JOBS + len(bundle.rows) * places.JOB_SIZE, np.int64)
        self.turns = Turns(self.parameters.ctypes.data)
        self.parameters[places.X_COUNTER], self.parameters[places.COUNTER] = self.turns.counters
        for name, value in (values | starts).items():
            if name >= 0:
                self.parameters[name] = value
        planes = chunks_of(bundle.bits, target())[2] if few else planes_of(bundle.bits)
        run = target().lanes if few or planes == 1 else 1
        self.encode = worker_address(encode_rows, planes, run, size)
        if few:
            self.multiply = worker_address(decode_rows, bundle.bits, share, tokens)
        else:
            self.multiply = worker_address(prefill_rows, bundle.bits, share, 1 if bundle.symmetric else 2)


_BEGINNING: Final = -1
"""The part of the scratch that needs no place of its own."""


def _few_parts(bundle: Bundle, tokens: int, stride: int) -> dict[int, int]:
    """Bytes of each part of a worker's scratch, for `decode_rows`."""
    rows = rows_together(bundle.bits, tokens)
    return {
        _BEGINNING: scratch_bytes(bundle.bits, tokens),
        places.SPARE: max(rows * 5 * stride // 4, bundle.padded),
        places.COPIES: rows * bundle.reach,
    }


def _many_parts(bundle: Bundle, tokens: int, stride: int) -> dict[int, int]:
    """Bytes of each part of a worker's scratch, for `prefill_rows`."""
    rows = tile_rows(target())
    return {
        _BEGINNING: (2 * rows + 1) * stride,
        places.SPARE: max(stride, bundle.padded),
        places.COPIES: rows * bundle.reach,
        places.TILE: rows * BLOCK * target().operand(bundle.bits),
        places.TOTALS: 4 * (tokens + 1) * rows,
    }


def _stops(bundle: Bundle, tokens: int, workers: int) -> list[int]:
    """Numbers of tiles up to which `prefill_rows` goes at a time, so that none takes long; `decode_rows` needs none."""
    if tokens <= _FEW:
        return [0]
    size = tile_rows(target())
    tiles = sum(-(-rows // size) for rows in bundle.rows)
    parts = max(1, min(-(-tiles * size * bundle.columns * tokens // (_MOST * workers)), tiles))
    return [tiles * (part + 1) // parts for part in range(parts)]


def _turn(bundle: Bundle, tokens: int, workers: int) -> int:
    """Rows that a worker of `decode_rows` takes at a time."""
    rows = rows_together(bundle.bits, tokens)
    wanted = min(_TURN // bundle.row_bytes, sum(bundle.rows) // (4 * workers))
    return max(1, wanted // rows) * rows
