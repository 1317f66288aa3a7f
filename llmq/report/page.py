"""The page itself: one file that asks for nothing, with everything from outside escaped."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

import jinja2
from markupsafe import Markup

from llmq.errors import ResourceError, UsageError, printable
from llmq.report.heatmap import heatmap
from llmq.system.files import atomic_write

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from llmq.report.charts import Chart

__all__ = ["Contents", "check_writable", "render", "write_page"]

_COLUMNS: Final = (
    ("bits", "bits"),
    ("group_size", "group"),
    ("bytes", "bytes"),
    ("nmse", "NMSE"),
    ("sqnr_db", "SQNR dB"),
    ("cosine", "cosine"),
    ("max_error", "max error"),
    ("saturation", "saturated"),
)
"""Columns of numbers of the table and their headings."""


@dataclass(frozen=True)
class Contents:
    """What a page shows.

    Parameters
    ----------
    title : str
    summary : sequence of (str, str)
        What and how much, in the order in which they are read.
    tensors : sequence of mapping
        `name`, `shape`, `quantized` and, where known, `bits`, `group_size`, `bytes`, `nmse`, `sqnr_db`, `cosine`,
        `max_error` and `saturation` of each weight.
    pictures : mapping
        `TensorMeasure.picture` by weight.
    runs : sequence of mapping
        Rows of the table of runs, all with the same keys, which are its headings; `name` is the first.
    timeline, frontier : Chart or None
    notes : sequence of str
        Sentences under the summary.
    """

    title: str
    summary: Sequence[tuple[str, str]]
    tensors: Sequence[Mapping[str, Any]] = ()
    pictures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    runs: Sequence[Mapping[str, Any]] = ()
    timeline: Chart | None = None
    frontier: Chart | None = None
    notes: Sequence[str] = ()


def check_writable(path: Path) -> None:
    """Refuse a file that cannot be written, before any work is done for it; UsageError."""
    probe = path.with_name(f".{path.name}.{os.getpid()}.tmp") if path.name else path
    try:
        if path.is_dir():
            raise UsageError("--report is a folder, not a file", file=path)
        probe.open("xb").close()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"--report cannot be written: {error.strerror}", file=path) from None


def write_page(path: Path, contents: Contents) -> None:
    """Write a page, absent or whole whatever happens; ResourceError where the disk refuses."""
    try:
        atomic_write(path, render(contents).encode())
    except OSError as error:
        raise ResourceError(f"the report cannot be written: {error.strerror}", file=path) from None


def render(contents: Contents) -> str:
    """Return the page as text; control characters in names are shown, and markup is only text."""
    tensors = [{**tensor, "name": printable(tensor["name"])} for tensor in contents.tensors]
    script = _asset("page.js")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": _number, "key": _key, "printable": printable}
    return environment.from_string(_asset("page.html")).render(
        contents=contents,
        tensors=tensors,
        columns=[column for column in _COLUMNS if any(_known(t.get(column[0])) for t in tensors)],
        widths=sorted({t["bits"] for t in tensors if t.get("bits")}),
        heatmap=heatmap(tensors),
        style=Markup(_asset("page.css")),  # noqa: S704  (ours)
        script=Markup(script),  # noqa: S704  (ours)
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=_embedded({printable(name): picture for name, picture in contents.pictures.items()}),
    )


def _asset(name: str) -> str:
    return files("llmq.report").joinpath(name).read_text(encoding="utf-8")


def _embedded(data: Any) -> Markup:
    """JSON that no HTML parser takes for markup, wherever it stands."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    safe = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return Markup(safe)  # noqa: S704  (nothing is left that markup is made of)


def _known(value: object) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _number(value: Any, key: str) -> str:
    """A cell of a column as people read it."""
    if not _known(value):
        return ""
    if isinstance(value, float) and math.isinf(value):
        return "\N{INFINITY}" if value > 0 else "-\N{INFINITY}"
    if key in ("bits", "group_size"):
        return str(value)
    if key in ("bytes", "tokens"):
        return f"{value:,}"
    if key in ("sqnr_db", "bits_per_weight", "perplexity", "seconds"):
        return f"{value:.3f}" if key != "sqnr_db" else f"{value:.2f}"
    if key in ("saturation", "top1_agreement"):
        return f"{100 * value:.2f} %"
    if key == "cosine":
        return f"{value:.6f}"
    return f"{value:.3e}" if isinstance(value, int | float) else str(value)


def _key(value: Any) -> str:
    """What a cell is sorted by: a number that JavaScript reads, or nothing."""
    if not _known(value):
        return ""
    if isinstance(value, float) and math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return repr(value) if isinstance(value, int | float) else str(value)
