"""Measure a model on this machine, quality, speed and memory at several widths, and add it to a file for the machine.

python scripts/reproduce.py MODEL [--text FILE] [--bits 8,4,3,2] [--methods rtn,mse,...] [--folder reproduce]

MODEL is `org/name[@revision]` on the Hub, or a folder. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

import llmq as package
from llmq.benchmarks.child import llmq
from llmq.benchmarks.rows import describe_machine
from llmq.checkpoint import json_strict
from llmq.checkpoint.source import open_local
from llmq.errors import LlmqError
from llmq.methods import METHODS
from llmq.system.files import atomic_write
from llmq.system.memory import total_memory
from llmq.system.sizes import format_size
from pages import table

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Run", "Settings", "machine", "main"]

SCHEMA: Final = 1
ORIGINAL: Final = "original"
FOLDER: Final = Path(__file__).parents[1] / "reproduce"

_WIDE: Final = 8
"""From so many bits on all methods round nearly alike: the default one is measured only."""

_DEFAULT: Final = "mse"
_LIGHT: Final = tuple(name for name, method in METHODS.items() if method.needs != "block")
"""Methods that take minutes at most and no torch."""

_QUANTIZED: Final = (
    "output_bytes", "bits_per_weight", "bits_per_weight_quantized", "seconds",
    "peak_anon_bytes", "predicted_peak_bytes",
)  # fmt: skip
_HEADINGS: Final = (
    "model", "bits", "method", "bits/weight", "size", "perplexity", "KL (nats)", "+-", "same top",
    "prompt tok/s", "tok/s",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What decides the figures of a model; kept with them.

    Parameters
    ----------
    text_sha256 : str or None
        Of the text that is scored; None for the bundled one.
    calibration_sha256 : str or None
        Likewise of the one that methods are calibrated on.
    context : int
        Tokens of a window.
    max_tokens : int or None
        Of the text.
    group_size : int
    """

    text_sha256: str | None
    calibration_sha256: str | None
    context: int
    max_tokens: int | None
    group_size: int


@dataclass(frozen=True)
class Run:
    """Measures one model.

    Parameters
    ----------
    model : str
        What commands are given: a folder, or a repository with its commit.
    settings : Settings
    text, calibration : Path or None
        Files; None takes the bundled ones.
    runs : int
        Of each timing.
    threads : int or None
        None times with as many as Numba takes.
    scratch : Path
        Quantized models stand there, one at a time.
    """

    model: str
    settings: Settings
    text: Path | None
    calibration: Path | None
    runs: int
    threads: int | None
    scratch: Path

    def row(self, bits: int | None, method: str | None) -> dict[str, Any]:
        """Figures at a width by a method, or of the original model where both are None; `error` where one failed."""
        name = ORIGINAL if bits is None else f"{bits}-{method}"
        found: dict[str, Any] = {"name": name, "bits": bits, "method": method}
        click.echo(f"measuring {name}", err=True)
        try:
            with tempfile.TemporaryDirectory(prefix="llmq-", dir=self.scratch) as folder:
                model = self.model if bits is None else str(Path(folder) / "out")
                if bits is not None:
                    found["quantize"] = self._quantize(model, bits, str(method))
                    found["compare"] = {key: llmq("compare", self.model, model)[key] for key in ("nmse", "sqnr_db")}
                found["eval"] = self._evaluate(model, () if bits is None else ("--base", self.model))
                if method in (None, _DEFAULT):  # the speed is the same, whatever chose the codes
                    found["speed"] = self._bench("generate", model, "--prompt", "128", "--context", "64")
                    found["memory"] = self._bench("memory", model, "--prompt", "128", "--tokens", "16")
        except LlmqError as error:
            found["error"] = str(error)
            click.echo(f"  failed: {error}", err=True)
        return found

    def _quantize(self, output: str, bits: int, method: str) -> dict[str, Any]:
        calibrated = METHODS[method].needs != "nothing"
        data = ("--calibrate", self.calibration) if calibrated and self.calibration else ()
        size = self.settings.group_size
        words = ("--bits", bits, "--group-size", size, "--method", method, *data)
        report = llmq("quantize", self.model, "-o", output, *words)
        return {key: report[key] for key in _QUANTIZED}

    def _evaluate(self, model: str, base: tuple[str, ...]) -> dict[str, Any]:
        text = ("--text", self.text) if self.text else ()
        limit = ("--max-tokens", self.settings.max_tokens) if self.settings.max_tokens else ()
        found = llmq("eval", model, *base, *text, *limit, "--context", self.settings.context)
        # Paths and names of this machine belong nowhere else.
        return {key: value for key, value in found.items() if key not in ("schema", "model", "base", "text")}

    def _bench(self, kind: str, model: str, *words: str) -> list[dict[str, Any]]:
        threads = ("--threads", self.threads) if self.threads else ("--threads", os.cpu_count() or 1)
        runs = ("--runs", self.runs) if kind == "generate" else ()
        rows: list[dict[str, Any]] = llmq("bench", kind, model, *words, *threads, *runs)["rows"]
        return rows


def machine() -> dict[str, Any]:
    """Processor, cores, memory, system and versions; no names of a host or a user."""
    found = describe_machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return found | {"cores": cores, "memory_bytes": total_memory()}


def file_of(found: dict[str, Any]) -> str:
    """Name of the file of a machine.

    >>> file_of({"cpu": "A(R) Chip @ 2 GHz", "cores": 4, "memory_bytes": 17179869184, "system": "Linux 6.1 x86_64"})
    'a-r-chip-2-ghz-4-cores-16-gib-linux.json'
    """
    words = (
        f"{found['cpu']} {found['cores']} cores {found['memory_bytes'] / 2**30:.0f} GiB {found['system'].split()[0]}"
    )
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-") + ".json"


def identify(model: str) -> tuple[str, str, dict[str, Any]]:
    """What a model is: what commands are given, its name, and facts to keep with its figures."""
    with open_local(model) as source:
        identity = source.identity()
    hub = identity.get("hub")
    headers = sorted(entry["header"] for entry in identity["files"].values())
    facts = {"commit": hub["commit"] if hub else None, "headers_sha256": _digest("".join(headers).encode())}
    held = llmq("inspect", model)
    facts |= {key: held[key] for key in ("architecture", "parameters", "total_bytes", "bits_per_weight")}
    if hub:
        return f"{hub['repo']}@{hub['commit']}", hub["repo"], facts
    return model, Path(model).resolve().name, facts


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _file_digest(path: Path | None) -> str | None:
    return None if path is None else _digest(path.read_bytes())


def load_results(path: Path) -> dict[str, Any]:
    """The file of a machine, or its beginning. Raises click.ClickException where it is something else."""
    if not path.exists():
        return {"schema": SCHEMA, "machine": machine(), "models": []}
    found = json_strict.loads(path.read_bytes(), path)
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or not isinstance(found.get("models"), list):
        raise click.ClickException(f"{path} is not a file of results with schema {SCHEMA}")
    return found


def entry_of(results: dict[str, Any], name: str, facts: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The entry of a model, measured with these settings by this version; a new one where there is none."""
    asked = {"model": name, "settings": asdict(settings), "llmq_version": package.__version__} | facts
    for entry in results["models"]:
        if all(entry.get(key) == value for key, value in asked.items()):
            return dict(entry)
    return asked | {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "rows": []}


def wanted(bits: tuple[int, ...], methods: tuple[str, ...]) -> Iterator[tuple[int | None, str | None]]:
    """Widths and methods, the original model first."""
    yield None, None
    for width in bits:
        alike = width >= _WIDE and _DEFAULT in methods
        for method in (_DEFAULT,) if alike else methods:
            yield width, method


def summary(entry: dict[str, Any]) -> str:
    """Table of an entry's rows."""
    return table(_HEADINGS, [_cells(entry["model"], row) for row in entry["rows"]])


def _cells(model: str, row: dict[str, Any]) -> tuple[str, ...]:
    head = model, str(row["bits"] or "-"), row["method"] or ORIGINAL
    if "error" in row:
        return (*head, row["error"], *("-" for _ in _HEADINGS[4:]))
    scored, speed = row["eval"], {r["name"]: r for r in row.get("speed", ())}
    size = row["quantize"]["output_bytes"] if row["bits"] else None
    rates = [next((r["tokens_per_second"] for n, r in speed.items() if n.startswith(kind)), None) for kind in _RATES]
    return (
        *head,
        f"{scored['bits_per_weight']:.3f}",
        format_size(size) if size else "-",
        f"{scored['perplexity']:.3f}",
        _number(scored.get("kl_mean"), ".6f"),
        _number(scored.get("kl_mean_se_clustered"), ".6f"),
        _number(scored.get("top1_agreement"), ".2%"),
        *(_number(rate, ".1f") for rate in rates),
    )


_RATES: Final = ("prefill", "decode")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _listed(kind: type, choices: Any) -> Any:
    def read(context: click.Context, parameter: click.Parameter, value: str) -> tuple[Any, ...]:  # noqa: ARG001
        try:
            found = tuple(kind(word) for word in value.split(","))
        except ValueError:
            found = ()
        if not found or not set(found) <= set(choices):
            raise click.BadParameter(f"{value!r}: choose some of {', '.join(map(str, choices))}")
        return found

    return read


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.argument("model")
@click.option(
    "--text", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="To score; else the bundled."
)
@click.option("--calibrate", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Else the bundled.")
@click.option("--bits", default="8,4,3,2", callback=_listed(int, range(1, 9)), help="Widths.")
@click.option("--methods", default=",".join(_LIGHT), callback=_listed(str, METHODS), help="Of choosing codes.")
@click.option("--group-size", type=click.IntRange(min=1), default=64)
@click.option("--context", type=click.IntRange(min=2), default=512, help="Tokens of a window.")
@click.option("--max-tokens", type=click.IntRange(min=2), help="Use the first N tokens of the text only.")
@click.option("--runs", type=click.IntRange(min=1), default=3, help="Of each timing.")
@click.option("--threads", type=click.IntRange(min=1), help="Of timings; all by default.")
@click.option("--folder", type=click.Path(path_type=Path), default=FOLDER, help="Where results go.")
@click.option("--scratch", type=click.Path(path_type=Path, exists=True, file_okay=False), help="For quantized models.")
def main(model: str, text: Path | None, calibrate: Path | None, folder: Path, **options: Any) -> None:
    """Measure MODEL on this machine, and add it to the machine's file of results."""
    given, name, facts = identify(model)
    digests = _file_digest(text), _file_digest(calibrate)
    settings = Settings(*digests, options["context"], options["max_tokens"], options["group_size"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_of(machine())
    results = load_results(path)
    entry = entry_of(results, name, facts, settings)
    others = [e for e in results["models"] if e["model"] != name or e["settings"] != entry["settings"]]
    scratch = options["scratch"] or Path(tempfile.gettempdir())
    run = Run(given, settings, text, calibrate, options["runs"], options["threads"], scratch)
    for bits, method in wanted(options["bits"], options["methods"]):
        done = {(row["bits"], row["method"]) for row in entry["rows"] if "error" not in row}
        if (bits, method) in done:
            continue
        rest = [row for row in entry["rows"] if (row["bits"], row["method"]) != (bits, method)]
        entry["rows"] = [*rest, run.row(bits, method)]
        written = {**results, "machine": machine(), "models": [*others, entry]}
        atomic_write(path, json_strict.dumps(json_strict.without_infinity(written)))
    click.echo(summary(entry))
    click.echo(f"\n{path}")


if __name__ == "__main__":
    try:
        main()
    except LlmqError as error:
        raise SystemExit(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else "")) from None
