"""What the workers of a packed product read, by place in their array of int64 (see `llmq_kernels.workers`).

Addresses and sizes are in bytes. `llmq_kernels.bundle` fills the array in.
"""

from __future__ import annotations

from typing import Final

COUNTER: Final = 0
"""Address of an int64 from which workers take numbers."""
TOKENS: Final = 1

# The activations, as `encode_rows` reads and writes them:
X: Final = 2
"""Address of float32 (tokens, columns)."""
COLUMNS: Final = 3
GROUP: Final = 4
"""Columns that share a scale of the activations; a multiple of 8."""
GROUPS: Final = 5
"""Such groups in a row."""
PADDED: Final = 6
"""Columns, rounded up to whole chunks."""
X_CODES: Final = 7
X_SCALES: Final = 8
X_SUMS: Final = 9
"""Addresses of int8 or int16 (tokens, padded) and float32 (tokens, stride), zero beyond the columns."""
STRIDE: Final = 10
"""Bytes of the scales of a token, whole vectors."""

# The weights:
KIND: Final = 11
"""A value of `SCALE_KINDS`."""
REPEAT: Final = 12
"""Groups of activations in one of the weight."""
ROW_BYTES: Final = 13
SCALE_BYTES: Final = 14
"""Bytes of a row of scales."""
ZERO_FORM: Final = 15
"""Address of four float32: what a stored zero point is multiplied by, what is taken off then, what the sums of the
activations are multiplied by, and whether these are int32 of codes, not float32 of values."""

# Scratch, a part for each worker; the places in it count from its beginning:
SCRATCH: Final = 16
SCRATCH_BYTES: Final = 17
SPARE: Final = 18
"""Copies of scales and zero points; of `encode_rows`, a line of `PADDED` bytes, zero beyond the columns."""
COPIES: Final = 19
"""Rows behind which memory may end."""
COPY_BYTES: Final = 20
"""Bytes from the beginning of a row up to where loads may reach."""
CHUNK: Final = 21
"""Of `decode`: rows that a worker takes at a time."""
TILE: Final = 22
"""Of `prefill`: unpacked codes."""
TOTALS: Final = 23
"""Of `prefill`: float32 (1 + tokens, rows of a tile); the first are zeros."""

X_BYTES: Final = 24
"""Bytes of a token's codes."""

X_COUNTER: Final = 25
"""Address of an int64 from which `encode_rows` takes numbers."""

STOP: Final = 26
"""Of `prefill`: the number of the tile before which workers stop for now."""

WEIGHTS: Final = 27
"""How many weights there are. Of each, from `JOBS` on:"""
JOBS: Final = 28

PACKED: Final = 0
SCALE: Final = 1
ZERO: Final = 2
"""Addresses of the first row."""
ZERO_ROW: Final = 3
"""Bytes from the zero points of one row to those of the next; 0 where all rows have the same."""
ZERO_STEP: Final = 4
"""Bytes from one zero point to the next; 0 where all groups have the same."""
ROWS: Final = 5
SAFE_ROWS: Final = 6
"""Rows behind whose beginning `COPY_BYTES` can be read, and whole vectors of scales and zero points."""
OUT: Final = 7
"""Address of float32 (tokens, rows)."""
JOB_SIZE: Final = 8
