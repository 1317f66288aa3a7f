"""Quantize a small network that reads handwritten digits, in every way that docs/quantization.md tells of.

python scripts/digits.py [--seeds 3] [--markdown docs/quantization.md]

Nothing is chosen by looking at the test images: the settings were fixed beforehand, those of training for integers by
the images that ranges come from, which are used neither for training nor for testing.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import torch

import digits_qat
from digits_network import HOT, HOT_IMAGES, Figures, Subject, split, train
from llmq.spec import QuantScheme, QuantSpec
from pages import put, table

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEME: Final = QuantScheme()
INPUT: Final = SCHEME.input or QuantSpec()


def weights(bits: int, **changes: Any) -> QuantScheme:
    """Weights of some width, and like the default but for some changes, beside static 8-bit inputs."""
    width = {"bits": bits, "range": "full" if bits == 1 else "narrow"}
    return replace(SCHEME, weight=replace(SCHEME.weight, **width | changes))


def inputs(**changes: Any) -> QuantScheme:
    """8-bit weights beside inputs that are like the default but for some changes."""
    return replace(SCHEME, input=replace(INPUT, **changes))


RANGES: Final = {
    "static": SCHEME,
    "dynamic, a range for each batch": inputs(dynamic=True),
    "dynamic, a range for each row": inputs(dynamic=True, strategy="token"),
}
WIDTHS: Final = (8, 5, 4, 3, 2, 1)
WAYS: Final[dict[str, dict[str, Any]]] = {
    "per tensor": {"strategy": "tensor"},
    "per channel": {},
    "per channel, `mse`": {"observer": "mse"},
}
"""How the ranges of weights are chosen."""

OBSERVERS: Final = ("minmax", "moving_average", "percentile", "mse", "entropy")
INPUT_WIDTHS: Final = (8, 4)


def measure(seed: int) -> dict[str, Figures]:
    """All figures of one seed, by a name for each."""
    training, calibration, test = split(seed)
    network = train(training, seed)
    clean = Subject(network, calibration, test)
    hot = Subject(network, calibration.with_hot_pixels(seed), test.with_hot_pixels(seed + 1000))
    found = {"float": clean.unquantized(), "hot float": hot.unquantized()}
    found |= {name: clean.quantized(scheme) for name, scheme in RANGES.items()}
    for bits in WIDTHS:
        found |= {f"{bits} {way}": clean.quantized(weights(bits, **changes)) for way, changes in WAYS.items()}
    for bits in INPUT_WIDTHS:
        for observer in OBSERVERS:
            scheme = inputs(bits=bits, observer=observer)
            found[f"{observer} {bits}"] = clean.quantized(scheme)
            found[f"hot {observer} {bits}"] = hot.quantized(scheme)
    return found | digits_qat.measure(clean, training, seed)


def markdown(found: Mapping[str, Figures], seeds: int) -> str:
    """The tables of calibration for the page."""
    return "\n\n".join([_about(seeds), _ranges(found), _widths(found), _observers(found)])


def _about(seeds: int) -> str:
    training, calibration, test = (len(images.x) for images in split(0))
    return (
        "`python scripts/digits.py` trains a network and quantizes it with [`llmq.torch`](torch.md).\n"
        f"Three convolutions with batch norms and two linears learn {training} of scikit-learn's handwritten digits\n"
        f"(8x8 pixels), {calibration} others give the ranges, and the remaining {test} are the test. All figures are\n"
        f"means over {seeds} seeds, each with its own split and its own training; a point of accuracy is\n"
        f"{test / 100:.0f} images. SQNR compares the scores with the float network's."
    )


def _ranges(found: Mapping[str, Figures]) -> str:
    rows = [["float32", f"{found['float'].accuracy:.2f} %", "", "", _size(found["float"])]]
    for name in RANGES:
        this = found[name]
        change = f"{this.accuracy - found['float'].accuracy:+.2f}"
        rows.append([f"8 bits, {name}", f"{this.accuracy:.2f} %", change, f"{this.sqnr_db:.1f} dB", _size(this)])
    return table(("weights and inputs", "accuracy", "points", "SQNR", "size"), rows)


def _widths(found: Mapping[str, Figures]) -> str:
    rows = []
    for bits in WIDTHS:
        figures = [found[f"{bits} {way}"] for way in WAYS]
        cells = [cell for f in figures for cell in (f"{f.accuracy:.2f} %", f"{f.sqnr_db:.1f} dB")]
        rows.append([str(bits), *cells, _size(figures[-1]), f"{found['float'].nbytes / figures[-1].nbytes:.1f}x"])
    headings = ("bits", *(heading for way in WAYS for heading in (way, "SQNR")), "size", "smaller")
    return f"Weights of fewer bits beside static inputs of 8:\n\n{table(headings, rows)}"


def _observers(found: Mapping[str, Figures]) -> str:
    rows = [["float32", "", f"{found['float'].accuracy:.2f} %", "", f"{found['hot float'].accuracy:.2f} %", ""]]
    for bits in INPUT_WIDTHS:
        for observer in OBSERVERS:
            clean, hot = found[f"{observer} {bits}"], found[f"hot {observer} {bits}"]
            both = [cell for f in (clean, hot) for cell in (f"{f.accuracy:.2f} %", f"{f.sqnr_db:.1f} dB")]
            rows.append([f"`{observer}`", str(bits), *both])
    headings = ("observer", "bits of inputs", "clean", "SQNR", "hot pixels", "SQNR")
    return (
        "Static ranges by each observer, weights of 8 bits; on the right, one pixel of "
        f"{100 * HOT_IMAGES:.0f} % of the images,\ncalibration and test alike, is {HOT:.0f} times as bright as white "
        "(SQNR: of the scores of the other images):"
        f"\n\n{table(headings, rows)}"
    )


def _size(of: Figures) -> str:
    return f"{of.nbytes / 1000:.1f} kB"


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--seeds", type=click.IntRange(1), default=3, help="How many trainings to average over.")
@click.option("--markdown", "page", type=click.Path(path_type=Path, exists=True), help="Put the tables into this page.")
def main(seeds: int, page: Path | None) -> None:
    """Train, quantize in every way, and print the tables."""
    began = time.perf_counter()
    torch.set_num_threads(1)  # threads do not pay for networks so small
    runs = []
    for seed in range(seeds):
        runs.append(measure(seed))
        click.echo(f"seed {seed}: float {runs[-1]['float'].accuracy:.2f} %", err=True)
    found = {name: Figures.mean(run[name] for run in runs) for name in runs[0]}
    sections = {"digits": markdown(found, seeds), "digits-qat": digits_qat.markdown(found, seeds)}
    click.echo("\n\n".join(sections.values()))
    if page is not None:
        text = page.read_text(encoding="utf-8")
        for name, content in sections.items():
            text = put(text, name, content)
        page.write_text(text, encoding="utf-8")
    click.echo(f"\nAll of this took {time.perf_counter() - began:.0f} s.", err=True)


if __name__ == "__main__":
    main()
