"""What docs/quality.md shows of measured rows: tables, and the picture of the frontier."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from pages import put, table
from picture import style, svg
from picture_frontier import Point, draw_frontier
from quality_rows import FACTORS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from quality_rows import Row

__all__ = ["Page"]

_GATED: Final = ("4 bits, g64", "3 bits, g64", "2 bits, g32")
_MORE: Final = 0.1
"""Bits per weight that a better method may take above `rtn`."""

_UNIFORM: Final = {"3.25": "3 bits, g64", "2.5": "2 bits, g32"}
"""What takes as many bits per weight as a target, in one width."""

_EQUAL: Final = 5e-3
"""Bits per weight by which sizes may differ and be the same: paddings and shapes that are stored."""


@dataclass(frozen=True)
class Page:
    """Sections of the page.

    Parameters
    ----------
    found : tuple of (Row, dict)
        Rows and their results, as `bench_quality.Bench` gives them.
    costs : list of dict
        As `quality_cost.Costs` keeps them.
    waiting : tuple of Row
        What is not measured yet.
    """

    found: tuple[tuple[Row, dict[str, Any]], ...]
    costs: list[dict[str, Any]]
    waiting: tuple[Row, ...] = ()

    @cached_property
    def good(self) -> dict[Row, dict[str, Any]]:
        """Results of rows that did not fail, of the plain model, calibrated on unseen text or nothing."""
        return {row: r for row, r in self._succeeded if row.model == "plain" and row.text != "seen"}

    @property
    def _succeeded(self) -> list[tuple[Row, dict[str, Any]]]:
        return [(row, result) for row, result in self.found if "error" not in result]

    def write(self, path: Path) -> None:
        """Put all sections that there is something for into the page, and draw the picture beside it."""
        text = path.read_text(encoding="utf-8")
        for name in ("protocol", "rows", "gates", "mixed", "peers", "seen", "outliers", "cost", "failed"):
            content = getattr(self, name)()
            text = put(text, name, content) if content else text
        path.write_text(text, encoding="utf-8")
        (path.parent / "pictures").mkdir(exist_ok=True)
        with style():
            drawn = svg(draw_frontier(list(self._points())))
        (path.parent / "pictures" / "frontier.svg").write_text(drawn, encoding="utf-8")

    def protocol(self) -> str:
        """How many tokens, and how they are scored."""
        if not self.good:
            return ""
        first = next(iter(self.good.values()))
        return f"{first['tokens']:,} tokens are scored: {first['protocol']}."

    def rows(self) -> str:
        """Everything of the plain model, the largest first."""
        headings = (
            "quantizer",
            "calibrated",
            "bits per weight",
            "with head and embeddings",
            "KL",
            "KL p99",
            "perplexity",
            "same top token",
            "NMSE",
            "seconds",
            "peak memory",
        )
        order = sorted(self.good.items(), key=lambda item: (-item[1]["bits_per_weight_quantized"], item[1]["kl_mean"]))
        return table(headings, [_cells(row, result) for row, result in order]) if order else ""

    def gates(self) -> str:
        """Our best methods against rounding to nearest."""
        headings = ("shape", "rtn", "best without data", "ratio", "best with data", "ratio")
        lines = []
        for shape in _GATED:
            plain = self._named(f"rtn, {shape}")
            if plain is None:
                continue
            cells = [shape, f"{plain['kl_mean']:.6f}"]
            limit = plain["bits_per_weight_quantized"] + _MORE
            for data in (False, True):
                best = self._best(limit, data=data, shape=shape)
                cells += _beside(best, plain) if best else ["-", "-"]
            lines.append(cells)
        return table(headings, lines) if lines else ""

    def mixed(self) -> str:
        """Widths by budget against one width for all, by the same method at as many bits."""
        headings = ("method", "uniform", "bits", "KL", "mixed bits", "KL", "ratio")
        lines = []
        for row, result in self.good.items():
            method, at_most, target = row.name.partition(", mixed widths, at most ")
            plain = self._named(f"{method}, {_UNIFORM[target]}") if target in _UNIFORM else None
            if at_most and plain:
                ratio = f"{result['kl_mean'] / plain['kl_mean']:.2f}"
                lines.append([method, _UNIFORM[target], *_bits_and_kl(plain), *_bits_and_kl(result), ratio])
        return table(headings, lines) if lines else ""

    def peers(self) -> str:
        """Every other quantizer against the best of ours that is not larger."""
        headings = ("quantizer", "calibrated", "bits", "KL", "ours, not larger", "bits", "KL", "ours / its")
        lines = []
        for row, result in self.good.items():
            if row.maker == "llmq":
                continue
            limit = result["bits_per_weight_quantized"] + _EQUAL
            best = self._best(limit, data=row.text is not None)
            best = best if best and best[1]["bits_per_weight_quantized"] > limit - 1 else None
            shown = [f"{row.maker} {row.name}", _yes(row), *_bits_and_kl(result)]
            if best:
                shown += [best[0].name, *_bits_and_kl(best[1]), f"{best[1]['kl_mean'] / result['kl_mean']:.2f}"]
            lines.append([*shown, "-", "-", "-", "-"][: len(headings)])
        return table(headings, lines) if lines else ""

    def seen(self) -> str:
        """Calibrating on text that the model was trained on."""
        lines = []
        for row, result in self._succeeded:
            other = self._of(replace(row, text="calibration")) if row.text == "seen" else None
            if other is not None:
                both = other["kl_mean"], result["kl_mean"]
                lines.append([f"{row.maker} {row.name}", *(f"{kl:.6f}" for kl in both), f"{both[1] / both[0]:.2f}"])
        return table(("quantizer", "unseen text", "seen text", "seen / unseen"), lines) if lines else ""

    def outliers(self) -> str:
        """Checkpoints that compute the same with outliers in their weights, beside the plain one."""
        lines = []
        for row, result in self._succeeded:
            others = [self._of(replace(row, model=f"outliers-{factor}")) for factor in FACTORS]
            if row.model != "plain" or row.text == "seen" or not any(others):
                continue
            cells = [f"{row.maker} {row.name}", f"{result['kl_mean']:.6f}"]
            for other in others:
                kl = other["kl_mean"] if other else None
                cells += ["-", "-"] if kl is None else [f"{kl:.6f}", f"{kl / result['kl_mean']:.2f}"]
            lines.append(cells)
        names = [cell for factor in FACTORS for cell in (f"times {factor}", "ratio")]
        return table(("quantizer", "plain", *names), lines) if lines else ""

    def cost(self) -> str:
        """Time and peak memory of each method on a model of a billion parameters."""
        headings = ("method", "layers", "parameters", "seconds", "seconds per billion quantized", "peak memory")
        lines = []
        for cost in self.costs:
            if "error" in cost:
                lines.append([cost["method"], f"failed: {cost['error']}", "-", "-", "-", "-"])
                continue
            each = cost["seconds"] / cost["quantized"] * 1e9
            sizes = str(cost["layers"]), f"{cost['parameters'] / 1e9:.2f} B"
            times = f"{cost['seconds']:.1f}", f"{each:.1f}"
            lines.append([cost["method"], *sizes, *times, f"{cost['peak_anon_bytes'] / 2**20:,.0f} MiB"])
        return table(headings, lines) if lines else ""

    def failed(self) -> str:
        """What could not be measured, and why."""
        lines = [
            f"- {row.maker} {row.name}{'' if row.model == 'plain' else f' ({row.model})'}: {result['error']}"
            for row, result in self.found
            if "error" in result
        ]
        waiting = Counter(f"{row.maker} {row.method}" if row.maker == "llmq" else row.maker for row in self.waiting)
        lines += [f"- {who}: {count} rows, not measured yet" for who, count in waiting.items()]
        return "\n".join(lines) or "Every row was measured."

    def _named(self, name: str) -> dict[str, Any] | None:
        return next((result for row, result in self.good.items() if row.maker == "llmq" and row.name == name), None)

    def _of(self, row: Row) -> dict[str, Any] | None:
        return next((result for other, result in self._succeeded if other.key == row.key), None)

    def _best(self, limit: float, *, data: bool, shape: str = "") -> tuple[Row, dict[str, Any]] | None:
        """The row of ours with the least divergence among those of at most so many bits per weight.

        With `data` those that are calibrated count too.
        """
        fitting = [
            (row, result)
            for row, result in self.good.items()
            if row.maker == "llmq"
            and shape in row.name
            and (data or row.text is None)
            and result["bits_per_weight_quantized"] <= limit
        ]
        return min(fitting, key=lambda item: float(item[1]["kl_mean"]), default=None)

    def _points(self) -> Iterator[Point]:
        for row, result in self.good.items():
            bits, kl = result["bits_per_weight_quantized"], result["kl_mean"]
            label = row.name.partition(",")[0] if row.maker == "llama.cpp" else ""
            yield Point(row.maker, row.text is not None, bits, kl, label)


def _cells(row: Row, result: dict[str, Any]) -> tuple[str, ...]:
    error = result.get("kl_mean_se", result.get("kl_se"))
    return (
        f"{row.maker} {row.name}",
        _yes(row),
        f"{result['bits_per_weight_quantized']:.3f}",
        f"{result['bits_per_weight']:.3f}",
        f"{result['kl_mean']:.6f}" + ("" if error is None else f" ± {error:.6f}"),
        f"{result['kl_p99']:.4f}",
        f"{result['perplexity']:.3f}",
        f"{100 * result['top1_agreement']:.2f} %",
        f"{result['nmse']:.2e}",
        f"{result['seconds']:.1f}",
        f"{result['peak_anon_bytes'] / 2**20:,.0f} MiB",
    )


def _yes(row: Row) -> str:
    return "yes" if row.text else "no"


def _bits_and_kl(result: dict[str, Any]) -> tuple[str, str]:
    return f"{result['bits_per_weight_quantized']:.3f}", f"{result['kl_mean']:.6f}"


def _beside(best: tuple[Row, dict[str, Any]], plain: dict[str, Any]) -> list[str]:
    row, result = best
    return [f"{row.name}: {result['kl_mean']:.6f}", f"{result['kl_mean'] / plain['kl_mean']:.2f}"]
