"""Quantize a small network that reads handwritten digits, in every way that docs/quantization.md tells of.

python scripts/digits.py [--seeds 3] [--markdown docs/quantization.md]

Each seed draws the split, the first weights and the order of training anew. Nothing is chosen by looking at the test
images: the settings below were fixed beforehand, and ranges come from images used neither for training nor for testing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from llmq.evaluate.sums import ErrorSums, decibels
from llmq.spec import QuantScheme, QuantSpec
from llmq.torch import IntegerModule, convert, prepare
from pages import put, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

EPOCHS: Final = 40
BATCH: Final = 64
RATE: Final = 3e-3
TRAINING, CALIBRATION = 0.5, 0.1
"""Shares of the images; the rest is for testing."""

HOT: Final = 20.0
"""Value of a hot pixel; white is 1."""

HOT_IMAGES: Final = 0.02
"""Share of images that have one."""

SCHEME: Final = QuantScheme()
INPUT: Final = SCHEME.input or QuantSpec()


class Network(nn.Module):
    """Three convolutions with batch norms, two linears: images float32 (n, 1, 8, 8) to scores (n, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of the ten digits."""
        scores: torch.Tensor = self.classifier(self.features(x))
        return scores


@dataclass(frozen=True)
class Images:
    """Some digits.

    Parameters
    ----------
    x : float32 (n, 1, 8, 8)
        0 to 1.
    y : int64 (n,)
    hot : bool (n,)
        Which have a pixel far too bright.
    """

    x: torch.Tensor
    y: torch.Tensor
    hot: torch.Tensor

    def with_hot_pixels(self, seed: int) -> Images:
        """The same with one pixel far too bright in some of them, at least in one."""
        rng = np.random.default_rng(seed)
        x = self.x.clone()
        chosen = rng.choice(len(x), max(1, round(HOT_IMAGES * len(x))), replace=False)
        x[chosen, 0, rng.integers(8, size=len(chosen)), rng.integers(8, size=len(chosen))] = HOT
        hot = torch.zeros(len(x), dtype=torch.bool)
        hot[chosen] = True
        return Images(x, self.y, hot)


def split(seed: int) -> tuple[Images, Images, Images]:
    """Images for training, calibration and testing, no image twice."""
    digits = load_digits()
    x = torch.from_numpy(digits.images.astype(np.float32) / 16)[:, None]
    y = torch.from_numpy(digits.target.astype(np.int64))
    order = np.random.default_rng(seed).permutation(len(x))
    ends = [round(TRAINING * len(x)), round((TRAINING + CALIBRATION) * len(x))]
    none = torch.zeros(len(x), dtype=torch.bool)
    training, calibration, test = (Images(x[part], y[part], none[part]) for part in np.split(order, ends))
    return training, calibration, test


def train(images: Images, seed: int) -> nn.Module:
    """A trained network in eval mode."""
    torch.manual_seed(seed)
    network = Network()
    steps = EPOCHS * -(-len(images.x) // BATCH)
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images.x)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images.x[batch]), images.y[batch]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@dataclass(frozen=True)
class Figures:
    """What was measured of one network.

    Parameters
    ----------
    accuracy : float
        Percent of the test images.
    sqnr_db : float
        Of the scores, against the float network's on the same images; those with a hot pixel are left out.
    nbytes : float
        Of weights, scales and biases.
    """

    accuracy: float
    sqnr_db: float
    nbytes: float

    @staticmethod
    def mean(of: Iterable[Figures]) -> Figures:
        """The means of each."""
        accuracy, sqnr_db, nbytes = np.mean([(f.accuracy, f.sqnr_db, f.nbytes) for f in of], axis=0)
        return Figures(accuracy, sqnr_db, nbytes)


class Subject:
    """A trained network with the images to calibrate and to test it on."""

    def __init__(self, network: nn.Module, calibration: Images, test: Images) -> None:
        self.network = network
        self.calibration = calibration
        self.test = test
        with torch.no_grad():
            self._expected: torch.Tensor = network(test.x)

    def unquantized(self) -> Figures:
        """The network as it was trained."""
        nbytes = sum(4 * p.numel() for p in prepare(self.network).parameters())
        return self._measure(self.network, nbytes)

    def quantized(self, scheme: QuantScheme) -> Figures:
        """The network in integers."""
        prepared = prepare(self.network, scheme)
        with torch.no_grad():
            for batch in self.calibration.x.split(BATCH):
                prepared(batch)
        converted = convert(prepared)
        return self._measure(converted, sum(m.nbytes for m in converted.modules() if isinstance(m, IntegerModule)))

    def _measure(self, network: nn.Module, nbytes: int) -> Figures:
        with torch.no_grad():
            scores = network(self.test.x)
        sums = ErrorSums()
        sums.add(self._expected[~self.test.hot].numpy(), scores[~self.test.hot].numpy())
        right = (scores.argmax(1) == self.test.y).double().mean()
        return Figures(100 * float(right), decibels(sums.nmse), nbytes)


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
    return found


def markdown(found: Mapping[str, Figures], seeds: int) -> str:
    """The tables for the page."""
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
    text = markdown(found, seeds)
    click.echo(text)
    if page is not None:
        page.write_text(put(page.read_text(encoding="utf-8"), "digits", text), encoding="utf-8")
    click.echo(f"\nAll of this took {time.perf_counter() - began:.0f} s.", err=True)


if __name__ == "__main__":
    main()
