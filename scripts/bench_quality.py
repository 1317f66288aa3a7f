"""Quantize the sample model by our methods and by others, evaluate them all alike, and write docs/quality.md.

python scripts/bench_quality.py --text FILE --calibration FILE [--seen FILE] [--only PATTERN]... [--folder quality]

Every row is kept as a JSON file: a run that was stopped goes on where it was, and only what is not measured yet is.
Takes about 40 minutes on two cores.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

import make_outliers
from llmq.benchmarks.child import llmq
from llmq.errors import LlmqError
from llmq.system.files import atomic_write
from peer_child import Child, ContestantError
from quality_cost import Costs
from quality_page import Page
from quality_rows import Row, rows

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Bench", "main"]

_ROOT: Final = Path(__file__).parents[1]
_CODE: Final = ("llmq/methods", "llmq/pipeline", "llmq/plan", "kernels/llmq_kernels")
"""What decides the bytes that `llmq quantize` writes."""

_FACTS: Final = ("bits_per_weight", "bits_per_weight_quantized", "seconds", "peak_anon_bytes")


@dataclass(frozen=True)
class Bench:
    """Measures rows.

    Parameters
    ----------
    folder : Path
        Holds models and results.
    texts : dict
        Files by what they are for: text, calibration, seen.
    max_tokens : int
        Of the text; 0 for all.
    old : bool
        Take results that other code of ours gave.
    """

    folder: Path
    texts: dict[str, Path]
    max_tokens: int
    old: bool = False
    _warm: set[str] = field(default_factory=set, repr=False)

    def result(self, row: Row) -> dict[str, Any]:
        """Find the result of a row: a kept one, or a new one.

        It has `error` if the row failed, and then only that.
        """
        path, asked = self.folder / "rows" / f"{row.key}.json", self._asked(row)
        kept = self.kept(row)
        if kept is not None:
            return kept
        click.echo(f"measuring {row.maker} {row.name}, {row.model}", err=True)
        try:
            found = self._measure(row)
        except (LlmqError, ContestantError) as error:
            found = {"error": str(error)}
            click.echo(f"  failed: {error}", err=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps({"asked": asked, "result": found}, indent=1).encode())
        return found

    def kept(self, row: Row) -> dict[str, Any] | None:
        """Result of a row that succeeded before, with the same settings, texts and code."""
        try:
            stored = json.loads((self.folder / "rows" / f"{row.key}.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        found: dict[str, Any] = stored["result"]
        before, now = stored["asked"], self._asked(row)
        if self.old:
            before, now = before | {"code": None}, now | {"code": None}
        return found if before == now and "error" not in found else None

    def _asked(self, row: Row) -> dict[str, Any]:
        texts = {"text", row.text} - {None}
        asked = asdict(row) | {
            "texts": {str(name): _digest(self.texts[str(name)]) for name in sorted(map(str, texts))},
            "max_tokens": self.max_tokens,
            "code": code() if row.maker == "llmq" else None,
        }
        return dict(json.loads(json.dumps(asked)))

    def _measure(self, row: Row) -> dict[str, Any]:
        model, output = self.model(row.model), self.folder / f"out-{row.key}"
        shutil.rmtree(output, ignore_errors=True)
        if row.maker == "llmq":
            data = ("--calibrate", self.texts[row.text]) if row.text else ()
            report = self._quantize(row.method, "quantize", model, "-o", output, *row.flags, *data)
            found = {key: report[key] for key in _FACTS} | {"nmse": llmq("compare", model, output)["nmse"]}
        else:
            with Child("quality_peers", row.method, **self._arguments(row, model, output)) as child:
                found = child.call("run")
        limit = ("--max-tokens", self.max_tokens) if self.max_tokens else ()
        evaluated = llmq("eval", output, "--base", model, "--text", self.texts["text"], *limit)
        shutil.rmtree(output)
        return {**evaluated, **found, "eval_seconds": evaluated["seconds"]}

    def _quantize(self, method: str, *arguments: object) -> dict[str, Any]:
        """Run a command, twice for a method not used yet, so that no kernel is compiled while it is timed."""
        report = llmq(*arguments)
        if method not in self._warm:
            self._warm.add(method)
            report = llmq(*arguments, "--overwrite")
        return report

    def _arguments(self, row: Row, model: Path, output: Path) -> dict[str, Any]:
        arguments = {"model": str(model), "output": str(output), **row.peer}
        if row.maker == "AutoRound":
            arguments["text"] = str(self.texts[str(row.text)])
        if row.maker == "llama.cpp":
            arguments["importance"] = str(self._energies(row.model, row.text)) if row.text else None
        return arguments

    def _energies(self, name: str, text: str) -> Path:
        path = self.folder / f"energies-{name}-{text}-{_digest(self.texts[text])[:8]}.npz"
        if not path.exists():
            arguments = {"model": str(self.model(name)), "text": str(self.texts[text]), "output": str(path)}
            with Child("quality_peers", "Energies", **arguments) as child:
                child.call("run")
        return path

    def model(self, name: str) -> Path:
        """Find a float checkpoint, made first where there is none: the sample, or the sample with outliers."""
        path = self.folder / name
        if not (path / "config.json").exists():
            if name == "plain":
                llmq("sample", path)
            else:
                make_outliers.make(self.model("plain"), path, 0.005, int(name.rpartition("-")[2]), 0)
        return path


def code() -> str:
    """Digest of the code that quantizes."""
    found = hashlib.sha256()
    for folder in _CODE:
        for path in sorted((_ROOT / folder).rglob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _chosen(seen: bool, patterns: tuple[str, ...]) -> Iterator[Row]:
    for row in rows(seen=seen):
        if not patterns or any(re.search(pattern, row.key) for pattern in patterns):
            yield row


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--text", required=True, type=click.Path(path_type=Path, exists=True), help="To evaluate on.")
@click.option("--calibration", required=True, type=click.Path(path_type=Path, exists=True), help="To calibrate on.")
@click.option("--seen", type=click.Path(path_type=Path, exists=True), help="Text that the model was trained on.")
@click.option("--folder", type=click.Path(path_type=Path), default="quality", help="Holds models and results.")
@click.option("--only", multiple=True, metavar="PATTERN", help="Measure rows whose keys it finds; repeatable.")
@click.option("--max-tokens", type=click.IntRange(min=0), default=16384, help="Of the text; 0 for all.")
@click.option("--old", is_flag=True, help="Take results that other code of ours gave, too.")
@click.option("--cost/--no-cost", default=True, help="Measure time and memory on a model of a billion parameters.")
@click.option("--page", type=click.Path(path_type=Path, exists=True), default=_ROOT / "docs" / "quality.md")
def main(seen: Path | None, folder: Path, only: tuple[str, ...], page: Path, **options: Any) -> None:
    """Measure what is not measured yet, and write the page from all that is."""
    texts = {"text": options["text"], "calibration": options["calibration"]} | ({"seen": seen} if seen else {})
    bench = Bench(folder, texts, options["max_tokens"], options["old"])
    failed = {row.key: result for row in _chosen(bool(seen), only) if "error" in (result := bench.result(row))}
    costs = Costs(folder, options["calibration"], bench.model("plain"))
    if options["cost"]:
        costs.measure(code())
    every = list(rows(seen=bool(seen)))
    found = [(row, kept) for row in every if (kept := failed.get(row.key) or bench.kept(row))]
    measured = {row.key for row, _ in found}
    waiting = tuple(row for row in every if row.key not in measured)
    Page(tuple(found), costs.kept(), waiting).write(page)


if __name__ == "__main__":
    main()
