"""Pictures of training for few bits: the gradients of rounding, and weights before and after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from digits_network import split, train
from digits_qat import scheme, train_for
from llmq.integer.weights import quantize_weight
from llmq.learn import FakeQuantize
from llmq.spec import QuantSpec
from llmq.torch import prepare, quantized_tensors
from llmq.torch.fake_layers import fake_layers
from picture import BLUE, GREY, INK, ORANGE, PALE, RED, canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lesson_sample import Sample

__all__ = ["OnGrid", "draw_gradients", "draw_training", "histograms"]

LAYER: Final = "classifier.1"
"""A linear of 8,192 weights."""

_CODES: Final = np.arange(-2, 2)
"""Whole numbers of 2 bits."""


def draw_gradients(_sample: Sample) -> Figure:
    """What rounding gives, and its gradients with respect to a number and to the step."""
    figure, (values, straight, step) = canvas(2.5, 1, 3, sharex=True)
    x = torch.linspace(-3.2, 2.2, 1081)
    fake = FakeQuantize(QuantSpec(bits=2, strategy="tensor"), torch.tensor(1.0))
    given = x.clone().requires_grad_()
    rounded = fake(given)
    rounded.sum().backward()
    # One number at a time: the gradient of a step adds up over all that share it.
    by_step = [float(torch.autograd.grad(fake(one[None]).sum(), fake.scale)[0]) for one in x]
    values.plot(x, x, color=GREY, linewidth=0.8, linestyle="--")
    values.plot(x, rounded.detach(), color=BLUE)
    values.set(title="q: x rounded to 2 bits", xlabel="x / s")
    assert given.grad is not None
    straight.plot(x, given.grad, color=ORANGE)
    straight.set(title="straight through: dq/dx", xlabel="x / s", ylim=(-0.2, 1.2))
    step.plot(x, by_step, color=RED)
    step.axhline(0.0, color=GREY, linewidth=0.8)
    step.set(title="of the step: dq/ds", xlabel="x / s")
    for ax in (values, straight, step):
        ax.axvspan(-2, 1, color=PALE, linewidth=0, zorder=0)
    return figure


@dataclass(frozen=True)
class OnGrid:
    """Weights of a layer and the grid that each of its rows has.

    Parameters
    ----------
    weight : float32 (rows, columns)
    scale : float32 (rows, 1)
    codes : int (rows, columns)
        -2 to 1.
    """

    weight: np.ndarray
    scale: np.ndarray
    codes: np.ndarray


def draw_training(_sample: Sample) -> Figure:
    """Weights of a linear of the network of digits against grids of 2 bits."""
    return histograms(*_before_and_after(0))


def histograms(before: OnGrid, after: OnGrid) -> Figure:
    """Weights in steps of their rows' grids, and what they round to: calibrated, and trained."""
    figure, axes = canvas(3.9, 2, 2, sharex=True, sharey="col")
    for (counts, bars), this, color, words in (
        (axes[:2], before, BLUE, "trained in float, minmax"),
        (axes[2:], after, ORANGE, "trained for 2 bits"),
    ):
        ratio = (this.weight / this.scale).ravel()
        counts.hist(ratio.clip(-3.5, 2.5), bins=np.linspace(-3.5, 2.5, 97), color=color, histtype="stepfilled")
        counts.set(title=f"{words}: the weights", ylabel="how many")
        for line in _CODES:
            counts.axvline(line, color=INK, linewidth=0.8, linestyle="--")
        shares = [float(np.mean(this.codes == code)) for code in _CODES]
        bars.bar(_CODES, [100 * share for share in shares], width=0.25, color=color)
        for code, share in zip(_CODES.tolist(), shares, strict=True):
            bars.text(code, 100 * share + 2, f"{100 * share:.0f} %", ha="center", fontsize=8)
        error = float(np.sqrt(np.mean((this.codes * this.scale - this.weight) ** 2) / np.mean(this.weight**2)))
        bars.set(title=f"what they round to, {100 * error:.0f} % off", ylabel="% of them", ylim=(0, 100))
    axes[2].set(xlabel="in steps of the row's grid; at the edges: and beyond")
    axes[3].set(xlabel="in steps of the row's grid")
    return figure


def _before_and_after(seed: int) -> tuple[OnGrid, OnGrid]:
    images = split(seed)[0]
    network = train(images, seed)
    wanted = scheme(2, 2)
    weight = _weight(prepare(network).get_submodule(LAYER))
    made = quantize_weight(weight, wanted.weight)
    before = OnGrid(weight, made.scale, np.rint(made.values / made.scale).astype(int))
    training = train_for(wanted, network, images, seed)
    tensor = quantized_tensors(training)[f"{LAYER}.weight"]
    latent = fake_layers(training)[LAYER].latent.detach().numpy()
    return before, OnGrid(latent, tensor.scale, tensor.codes().astype(int) - 2)


def _weight(module: Any) -> np.ndarray:
    found: np.ndarray = module.weight.detach().numpy()
    return found
