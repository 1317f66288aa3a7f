"""What the pages of the commands show, from the objects that `--json` prints."""

from __future__ import annotations

import platform
from importlib.metadata import version
from math import prod
from typing import TYPE_CHECKING, Any, Final

import llmq
from llmq.report.charts import frontier, timeline
from llmq.report.page import Contents
from llmq.system.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmq.report.measures import Measures

__all__ = ["compare_contents", "eval_contents", "quantize_contents"]

_EVALUATED: Final = (
    "bits_per_weight",
    "perplexity",
    "perplexity_se",
    "kl_mean",
    "kl_median",
    "kl_p99",
    "kl_max",
    "top1_agreement",
    "tokens",
    "compute",
)
"""Figures of an evaluation that the table of runs has."""


def quantize_contents(
    result: Mapping[str, Any],
    measures: Measures,
    *,
    source: str,
    settings: Mapping[str, Any],
    memory: Sequence[tuple[float, int]] = (),
) -> Contents:
    """Page of `llmq quantize`.

    Parameters
    ----------
    result : mapping
        `QuantizeReport.to_json`.
    measures : Measures
        That watched.
    source : str
        What was quantized.
    settings : mapping
        `method` and `max_memory` (bytes or None).
    memory : sequence of (float, int)
        Seconds and anonymous bytes.
    """
    found = {name: measure.row() for name, measure in measures.tensors.items()}
    tensors = [_sized(t) | found.get(t["name"], {}) | {"quantized": t["name"] in found} for t in result["tensors"]]
    ran = result["state"] == "quantized"
    summary = [
        ("source", source),
        ("output", result["output"]),
        ("size", f"{format_size(result['source_bytes'])} to {format_size(result['output_bytes'])}"),
        ("bits per weight", f"{result['bits_per_weight']:.3f}"),
        ("of quantized tensors", f"{result['bits_per_weight_quantized']:.3f} bits, scales included"),
        ("parameters", f"{result['parameters']:,}"),
        ("method", settings["method"]),
        *_error(measures),
        *_edges(result["edges"]),
        ("time", f"{result['seconds']:.1f} s" if ran else result["state"]),
        ("peak memory", f"{format_size(result['peak_anon_bytes'])} anonymous" if ran else "not run"),
        ("predicted peak", format_size(result["predicted_peak_bytes"])),
        *_versions(),
    ]
    levels = {"predicted": result["predicted_peak_bytes"], "budget": settings["max_memory"]}
    return Contents(
        f"llmq quantize: {result['output']}",
        summary,
        tensors,
        _pictures(measures),
        timeline=timeline(memory, levels),
        notes=result["warnings"],
    )


def compare_contents(
    source: str, results: Sequence[Mapping[str, Any]], described: Mapping[str, Mapping[str, Any]], measures: Measures
) -> Contents:
    """Page of `llmq compare`.

    Parameters
    ----------
    source : str
    results : sequence of mapping
        `Comparison.to_json` of each output with `output`, `bits_per_weight` and `output_bytes`; the page shows the
        tensors of the first.
    described : mapping
        `shape`, `bytes` and `group_size` of the first output's weights by name.
    measures : Measures
        That watched the first.
    """
    first = results[0]
    tensors = [_sized(described.get(t["name"], {})) | t for t in first["tensors"]]
    runs = [
        {
            "name": r["output"],
            "bytes": r["output_bytes"],
            **{key: r[key] for key in ("bits_per_weight", "nmse", "sqnr_db")},
        }
        for r in results
    ]
    summary = [
        ("source", source),
        ("output", first["output"]),
        ("size", format_size(first["output_bytes"])),
        ("bits per weight", f"{first['bits_per_weight']:.3f}"),
        ("NMSE", f"{first['nmse']:.3e}"),
        ("SQNR", f"{first['sqnr_db']:.2f} dB"),
        ("quantized tensors", f"{sum(t['quantized'] for t in first['tensors'])} of {len(first['tensors'])}"),
        *_versions(),
    ]
    several = len(runs) > 1
    return Contents(
        f"llmq compare: {first['output']}",
        summary,
        tensors,
        _pictures(measures),
        runs=runs if several else (),
        frontier=frontier(runs, "nmse", "NMSE"),
        notes=[f"Tensors and histograms are those of {first['output']}."] if several else (),
    )


def eval_contents(results: Sequence[Mapping[str, Any]]) -> Contents:
    """Page of `llmq eval`: the first result, with the others beside it.

    Each is the object of `llmq eval --json`; the error on the frontier is the mean divergence where it was measured of
    two runs or more, and else the perplexity.
    """
    first = results[0]
    runs = [{"name": r.get("model", ""), **{key: r.get(key) for key in _EVALUATED}} for r in results]
    summary = [
        ("model", first["model"]),
        ("text", first["text"]),
        ("perplexity", f"{first['perplexity']:.4f} \N{PLUS-MINUS SIGN} {first['perplexity_se']:.4f}"),
        *_divergence(first),
        ("bits per weight", f"{first['bits_per_weight']:.3f}"),
        ("tokens scored", f"{first['tokens']:,}"),
        ("time", f"{first['seconds']:.1f} s"),
        *_versions(),
    ]
    chart = frontier(runs, "kl_mean", "mean KL divergence, nats") or frontier(runs, "perplexity", "perplexity")
    return Contents(
        f"llmq eval: {first['model']}",
        summary,
        runs=runs,
        frontier=chart,
        notes=[f"Protocol: {first['protocol']}."],
    )


def _divergence(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    if result.get("kl_mean") is None:
        return []
    names = {"kl_mean": "mean", "kl_median": "median", "kl_p99": "99th percentile", "kl_max": "maximum"}
    told = [(f"KL divergence, {name}", f"{result[key]:.6f} nats") for key, name in names.items()]
    return [
        ("base", result["base"]),
        *told,
        ("same top token", f"{100 * result['top1_agreement']:.2f} %"),
    ]


def _sized(tensor: Mapping[str, Any]) -> dict[str, Any]:
    return dict(tensor) | {"elements": prod(tensor.get("shape", ()))}


def _edges(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    told = {
        "zero_groups": "groups of zeros",
        "constant_groups": "groups of one number",
        "scale_underflows": "groups with the least scale there is",
        "scale_overflows": "groups with the largest scale there is",
        "nonfinite_tensors": "tensors copied with NaN or infinity",
    }
    return [(what, f"{counts[key]:,}") for key, what in told.items() if counts[key]]


def _error(measures: Measures) -> list[tuple[str, str]]:
    sums = [measure.sums for measure in measures.tensors.values()]
    squares = sum(s.before for s in sums)
    return [("NMSE of quantized tensors", f"{sum(s.error for s in sums) / squares:.3e}")] if squares else []


def _pictures(measures: Measures) -> dict[str, dict[str, Any]]:
    return {name: measure.picture() for name, measure in measures.tensors.items()}


def _versions() -> list[tuple[str, str]]:
    told = ", ".join([f"llmq {llmq.__version__}", *(f"{name} {version(name)}" for name in ("numba", "numpy"))])
    return [("versions", f"{told}, Python {platform.python_version()}"), ("machine", platform.machine())]
