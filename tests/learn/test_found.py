"""Ranges found at run time are those of the integer kernels, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llmq.learn import found_steps  # noqa: E402
from llmq.learn.found import found_grid  # noqa: E402
from llmq.spec import QuantSpec  # noqa: E402
from llmq_kernels.inputs import input_parameters, quantize_inputs  # noqa: E402

INPUTS = {
    "both signs": lambda rng: rng.normal(size=(4, 6)),
    "positive": lambda rng: rng.uniform(1, 2, (4, 6)),
    "negative": lambda rng: -rng.uniform(1, 2, (4, 6)),
    "a row of zeros": lambda rng: rng.normal(size=(4, 6)) * np.array([[1.0], [0.0], [1e-30], [1e30]]),
    "nothing": lambda rng: rng.normal(size=(0, 6)),
}


@pytest.mark.parametrize("strategy", ["tensor", "token"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", INPUTS)
def test_grids_and_codes_are_those_of_the_kernels(name: str, symmetric: bool, strategy: str) -> None:
    for bits in range(2, 9):
        spec = QuantSpec(bits=bits, strategy=strategy, symmetric=symmetric, dynamic=True)
        x = INPUTS[name](np.random.default_rng(bits)).astype(np.float32)
        scale, zero = found_grid(torch.from_numpy(x), spec, 1)
        s, z = input_parameters(x, bits, symmetric=symmetric, per_row=strategy == "token")
        np.testing.assert_array_equal(scale.numpy().ravel(), np.ravel(s))
        np.testing.assert_array_equal(zero.numpy().ravel() - 2 ** (bits - 1), np.ravel(z))
        steps, _ = found_steps(torch.from_numpy(x), spec, 1)
        codes = quantize_inputs(x, s, z, bits=bits).astype(np.float32)
        np.testing.assert_array_equal(steps.numpy(), codes - np.reshape(z, (-1, 1) if np.ndim(z) else ()))


def test_all_gradients_go_straight_through() -> None:
    x = torch.randn(3, 2, 4, 5, requires_grad=True)
    for strategy in ("tensor", "token"):
        steps, scale = found_steps(x, QuantSpec(bits=3, strategy=strategy, symmetric=False, dynamic=True), 3)
        assert scale.shape == (3 if strategy == "token" else 1, 1, 1, 1)
        (gradient,) = torch.autograd.grad((steps * scale).sum(), x)
        torch.testing.assert_close(gradient, torch.ones_like(x))
