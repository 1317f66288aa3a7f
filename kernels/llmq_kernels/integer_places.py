"""What the workers of integer layers read, by place in their array of int64 (see `llmq_kernels.workers`).

Addresses and sizes are in bytes. A sum of products is finished as ``factor * sum + row * item + constant``: codes lose
an offset in tiles, and zero points are taken off afterwards.
"""

from __future__ import annotations

from typing import Final

COUNTER: Final = 0
"""Address of an int64 from which workers take numbers."""
SCRATCH: Final = 1
SCRATCH_BYTES: Final = 2
"""Scratch, a part for each worker."""

# The inputs:
X: Final = 3
"""Address of int8 or float32: (tokens, columns), or (n, channels, height, width)."""
TOKENS: Final = 4
"""Tokens, or images."""
COLUMNS: Final = 5
"""Columns of a row of the weight."""
PADDED: Final = 6
"""Columns, rounded up to whole chunks."""
X_CODES: Final = 7
X_BYTES: Final = 8
"""Address of the operands of the first token or image, and bytes from one to the next."""
X_SCALES: Final = 9
"""Address of float32 (tokens,)."""
X_POINTS: Final = 10
X_SUMS: Final = 11
"""Addresses of int32 (tokens,): zero points, and sums of codes less zero points."""
LOWEST: Final = 12
HIGHEST: Final = 13
"""Codes of inputs."""

# The weight:
PACKED: Final = 14
ROW_BYTES: Final = 15
ROWS: Final = 16
SAFE_ROWS: Final = 17
"""Rows behind whose beginning `COPY_BYTES` can be read."""
COPY_BYTES: Final = 18
ROW_FORMS: Final = 19
"""Address of 4-byte numbers (5, `FORM_BYTES` / 4): see `RowForms`."""
FORM_BYTES: Final = 20
OUT: Final = 21
"""Address of int32 or float32: (tokens, rows), or (n, filters, output height, output width)."""

# Places in scratch:
TILE: Final = 22
SUMS: Final = 23
COPIES: Final = 24
SPARE: Final = 25

TILES: Final = 48
"""Address of all tiles of the weight, where they are kept unpacked, or 0."""

X_COUNTER: Final = 49
"""Address of an int64 from which those that encode inputs take numbers."""

SIZE: Final = 50
"""Of the array; 26 to 47 are places of convolutions alone (`llmq_kernels.convolution_places`)."""
