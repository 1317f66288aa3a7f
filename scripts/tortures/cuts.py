"""Shards that end too early: at every byte of the header, and at every 64th of the data."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING

from llmq.cli.main import status
from tortures.attacks.headers import header_end

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["cut_everywhere", "places"]


def places(path: Path, *, quick: bool) -> list[int]:
    """Where to cut a file."""
    content = path.read_bytes()
    end = header_end(content)
    header = range(0, end + 1, 37 if quick else 1)
    return [*header, *range(end + 1, len(content), max(1, len(content) // 64))]


def cut_everywhere(folder: Path, out: Path, file: str, *, quick: bool) -> tuple[int, str]:
    """Have a shard that ends too early quantized and inspected; how often, and the first thing that was wrong."""
    path = folder / file
    content, wrong = path.read_bytes(), ""
    cuts = places(path, quick=quick)
    for number, cut in enumerate(cuts):
        path.write_bytes(content[:cut])
        command = ["quantize", str(folder), "-o", str(out)] if number % 2 else ["inspect", str(folder)]
        with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
            code = status(command)
        errors = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
        fine = code == 3 and len(errors) == 1 and errors[0].startswith(f"error: {file}: ") and not out.exists()
        if not fine and not wrong:
            wrong = f"at byte {cut}: exit code {code}, {said.getvalue()[-200:]!r}"
    path.write_bytes(content)
    return len(cuts), wrong
