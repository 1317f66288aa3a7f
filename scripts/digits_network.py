"""A small network that reads handwritten digits, its images, and what is measured of it.

Each seed draws the split, the first weights and the order of training anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from llmq.evaluate.sums import ErrorSums, decibels
from llmq.torch import IntegerModule, convert, prepare

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmq.spec import QuantScheme

__all__ = [
    "BATCH",
    "EPOCHS",
    "HOT",
    "HOT_IMAGES",
    "RATE",
    "Figures",
    "Images",
    "Network",
    "Subject",
    "fit",
    "split",
    "train",
]

EPOCHS: Final = 40
BATCH: Final = 64
RATE: Final = 3e-3
TRAINING, CALIBRATION = 0.5, 0.1
"""Shares of the images; the rest is for testing."""

HOT: Final = 20.0
"""Value of a hot pixel; white is 1."""

HOT_IMAGES: Final = 0.02
"""Share of images that have one."""


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
    fit(network, torch.optim.Adam(network.parameters(), RATE), images, EPOCHS)
    return network.eval()


def fit(network: nn.Module, optimizer: torch.optim.Optimizer, images: Images, epochs: int) -> None:
    """Train a network: rates rise to those of the optimizer and fall again."""
    batches = -(-len(images.x) // BATCH)
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=epochs * batches)
    network.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images.x)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images.x[batch]), images.y[batch]).backward()
            optimizer.step()
            schedule.step()


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
        return self.integers(convert(prepared))

    def integers(self, converted: nn.Module) -> Figures:
        """A network of integer layers."""
        return self._measure(converted, sum(m.nbytes for m in converted.modules() if isinstance(m, IntegerModule)))

    def _measure(self, network: nn.Module, nbytes: int) -> Figures:
        with torch.no_grad():
            scores = network(self.test.x)
        sums = ErrorSums()
        sums.add(self._expected[~self.test.hot].numpy(), scores[~self.test.hot].numpy())
        right = (scores.argmax(1) == self.test.y).double().mean()
        return Figures(100 * float(right), decibels(sums.nmse), nbytes)
