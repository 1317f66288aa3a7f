"""Train the network of digits.py for few bits: weights and inputs of all layers, the first and the last like others."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import torch

from digits_network import Figures, Images, Subject, fit
from llmq.spec import QuantScheme
from llmq.torch import convert, parameter_groups, prepare_qat
from pages import table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

__all__ = ["EPOCHS", "WIDTHS", "markdown", "measure", "scheme", "train_for"]

WIDTHS: Final = ((4, 4), (3, 3), (2, 2), (1, 8), (1, 4))
"""Bits of weights and of inputs."""

EPOCHS: Final = 30
RATE: Final = 3e-3
STEP_RATE: Final = 3e-3
"""Of learned scales and zero points."""

WAYS: Final = {"minmax": "calibrated, `minmax`", "mse": "calibrated, `mse`", "trained": "trained"}


def scheme(weight_bits: int, input_bits: int, observer: str = "minmax") -> QuantScheme:
    """A scale for each filter, and one static range for the inputs of a layer; all codes are used."""
    default = QuantScheme()
    assert default.input is not None
    return QuantScheme(
        replace(default.weight, bits=weight_bits, range="full", observer=observer),
        replace(default.input, bits=input_bits, observer=observer),
    )


def train_for(scheme: QuantScheme, network: nn.Module, images: Images, seed: int, epochs: int = EPOCHS) -> nn.Module:
    """A copy of a trained network, trained on for its integers."""
    torch.manual_seed(seed)
    training = prepare_qat(network, scheme)
    fit(training, torch.optim.Adam(parameter_groups(training, lr=STEP_RATE), RATE), images, epochs)
    return training


def measure(subject: Subject, images: Images, seed: int) -> dict[str, Figures]:
    """Figures of a trained network at each width, after calibration and after training."""
    found = {}
    for widths in WIDTHS:
        for observer in ("minmax", "mse"):
            found[_name(observer, widths)] = subject.quantized(scheme(*widths, observer))
        trained = train_for(scheme(*widths), subject.network, images, seed)
        found[_name("trained", widths)] = subject.integers(convert(trained))
    return found


def _name(way: str, widths: tuple[int, int]) -> str:
    return f"{way} {widths[0]}/{widths[1]}"


def markdown(found: Mapping[str, Figures], seeds: int) -> str:
    """The table for the page."""
    unquantized = found["float"]
    rows = [["float32", "", "", "", f"{unquantized.accuracy:.2f} %", "", f"{unquantized.nbytes / 1000:.1f} kB"]]
    for widths in WIDTHS:
        figures = [found[_name(way, widths)] for way in WAYS]
        cells = [f"{figure.accuracy:.2f} %" for figure in figures]
        points = f"{figures[-1].accuracy - unquantized.accuracy:+.2f}"
        rows.append([*map(str, widths), *cells, points, f"{figures[-1].nbytes / 1000:.1f} kB"])
    headings = ("bits of weights", "of inputs", *WAYS.values(), "points", "size")
    return f"{_about(seeds)}\n\n{table(headings, rows)}"


def _about(seeds: int) -> str:
    return (
        f"The same network, trained {EPOCHS} epochs more with `prepare_qat`, on the images that trained it: accuracy\n"
        f"of the converted network of integers on the test images, means over the same {seeds} seeds. All layers have\n"
        "the widths that the row names, the first and the last too; weights have a scale for each filter, inputs one\n"
        "static range. Points are what the trained network has more or less than float32."
    )
