"""What each method takes on a model of a billion parameters: time and peak memory."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

import make_checkpoint
from llmq.benchmarks.child import llmq
from llmq.errors import LlmqError
from llmq.methods import METHODS
from llmq.system.files import atomic_write
from quality_rows import CLIPPING, flags_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Costs"]

_LAYERS: Final = 4
"""Of a 7B Llama; with head and embeddings a little over a billion parameters. Slow methods get one."""


@dataclass(frozen=True)
class Costs:
    """Measures methods on random models of a preset with fewer layers.

    Parameters
    ----------
    folder : Path
        Holds models and results.
    calibration : Path
        A text.
    tokenizer : Path
        A checkpoint whose tokenizer is taken.
    preset : str
        Of `make_checkpoint.PRESETS`.
    """

    folder: Path
    calibration: Path
    tokenizer: Path
    preset: str = "llama-7b"

    def measure(self, code: str) -> None:
        """Measure all methods that are not measured yet with this code of ours, given by a digest."""
        for method in METHODS:
            path = self._path(method)
            if path.exists() and json.loads(path.read_text(encoding="utf-8")).get("code") == code:
                continue
            click.echo(f"measuring the cost of {method}", err=True)
            try:
                found = self._measure(method) | {"code": code}
            except LlmqError as error:
                found = {"method": method, "error": str(error)}
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, json.dumps(found, indent=1).encode())

    def kept(self) -> list[dict[str, Any]]:
        """What was measured, with any code."""
        paths = (self._path(method) for method in METHODS)
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]

    def _path(self, method: str) -> Path:
        return self.folder / "costs" / f"{method}.json"

    def _measure(self, method: str) -> dict[str, Any]:
        needs = METHODS[method].needs
        layers = 1 if needs in ("moments", "block") or method in CLIPPING else _LAYERS
        data = ("--calibrate", self.calibration) if needs != "nothing" else ()
        output = self.folder / f"out-cost-{method}"
        shutil.rmtree(output, ignore_errors=True)
        report = llmq("quantize", self._model(layers), "-o", output, *flags_of(method), *data)
        shutil.rmtree(output)
        return {
            "method": method,
            "layers": layers,
            "quantized": sum(t["shape"][0] * t["shape"][1] for t in report["tensors"] if t["bits"]),
            **{key: report[key] for key in ("parameters", "seconds", "peak_anon_bytes", "predicted_peak_bytes")},
        }

    def _model(self, layers: int) -> Path:
        path = self.folder / f"random-{layers}-layers"
        if not (path / "config.json").exists():
            click.echo(f"writing {path}", err=True)
            options = make_checkpoint.Options(layers, 0, "bfloat16", 5_000_000_000)
            beside = make_checkpoint.companions(self.tokenizer)
            shutil.rmtree(path, ignore_errors=True)
            make_checkpoint.make(make_checkpoint.read_config(self.preset), beside, path, options)
        return path
