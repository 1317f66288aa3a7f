"""The file beside a graph that holds its data: named after it, and named in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmq.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["data_path", "refuse_name"]


def data_path(output: Path) -> Path:
    """Return the path of the data of a graph that is to be written."""
    return output.with_name(f"{output.name}.data")


def refuse_name(output: Path) -> None:
    """Raise UsageError for a path that ONNX cannot take: its text is UTF-8, and names of files need not be."""
    try:
        str(output).encode()
    except UnicodeEncodeError:
        raise UsageError("the name of the output is not UTF-8", file=output, hint="choose another name") from None
