"""What the workers of convolutions read besides `llmq_kernels.integer_places`, by place in the same array.

Inputs are kept as planes, one a channel, with their borders; a row of a plane holds its columns apart by what they
leave over when divided by the stride, so that what a filter meets next to each other lies next to each other::

    stride 2    0 2 4 6 ... 1 3 5 7 ...
"""

from __future__ import annotations

from typing import Final

from llmq_kernels.integer_places import SIZE

CHANNELS: Final = 26
HEIGHT: Final = 27
WIDTH: Final = 28
"""Of an image."""
TOP: Final = 29
LEFT: Final = 30
"""Padding, in pixels."""
STRIDE: Final = 31
"""Columns from one place of a filter to the next."""
PHASE: Final = 32
"""Columns of a row that leave the same over."""
ROW: Final = 33
PLANE: Final = 34
"""Operands of a row and of a plane."""
DOWN: Final = 35
"""Operands from the rows that one row of outputs meets to those of the next."""

GROUPS: Final = 36
FILTERS: Final = 37
"""Filters of a group."""
PART: Final = 38
"""Filters that a worker takes at a time."""
OFFSETS: Final = 39
"""Address of int64 (padded,): bytes from the first operand that a filter meets to the others of its group."""
OPERANDS: Final = 40
"""Address of the operands of the first filter: ``PADDED`` for each."""
ONES: Final = 41
"""Address of the operands of a filter of ones, or 0 if no sums of inputs are needed."""
OUT_WIDTH: Final = 42
PIXELS: Final = 43
"""Of an output."""
TURN: Final = 44
"""Tiles of pixels that a worker takes at a time."""
RUNS: Final = 45
"""Place in scratch: int64 (lanes, 2), where lanes of a tile that follow each other read and write."""
LINE: Final = 46
"""Place in scratch: sums of inputs of a tile, int32."""
GROUP_BYTES: Final = 47
"""Bytes of the planes of a group."""

assert GROUP_BYTES < SIZE
