"""Gradients of rounding, where they must not leak: on the ends of grids, and beyond them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from llmq.learn import FakeQuantize  # noqa: E402
from llmq.learn.rounding import round_within, scaled_gradient, straight, whole_within  # noqa: E402
from llmq.spec import QuantSpec  # noqa: E402


def test_the_ends_belong_to_the_grid() -> None:
    x = torch.tensor([-2.0, -2.5, 0.5, 1.5, 1.0], requires_grad=True)
    low, high = torch.tensor(-2.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    y = round_within(x, low, high)
    assert y.tolist() == [-2.0, -2.0, 0.0, 1.0, 1.0]
    y.backward(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert x.grad.tolist() == [1.0, 0.0, 3.0, 0.0, 5.0]
    assert (low.grad.item(), high.grad.item()) == (2.0, 4.0)


def test_ends_may_be_numbers_and_may_be_shared_by_rows() -> None:
    x = torch.tensor([[5.0, -5.0], [0.4, 3.0]], requires_grad=True)
    assert round_within(x, -1, 2).tolist() == [[2.0, -1.0], [0.0, 2.0]]
    high = torch.tensor([[1.0], [2.0]], requires_grad=True)
    round_within(x, torch.zeros(2, 1), high).sum().backward()
    assert high.grad.tolist() == [[1.0], [1.0]]


def test_zeros_of_a_relu_do_not_move_the_zero_point() -> None:
    fake = FakeQuantize(QuantSpec(bits=4, symmetric=False, strategy="tensor"), torch.tensor(0.1), torch.tensor(0.0))
    x = torch.tensor([0.0, 0.0, 0.3, 0.7], requires_grad=True)
    fake(x).sum().backward()
    assert x.grad.tolist() == [1.0] * 4
    assert fake.zero_point.grad.item() == 0.0


def test_zero_points_come_back_from_beyond_the_codes() -> None:
    x = torch.tensor([-0.7, 3.6, 1.2, -0.1, 4.0], requires_grad=True)
    y = whole_within(x, 3)
    assert y.tolist() == [0.0, 3.0, 1.0, 0.0, 3.0]
    y.backward(torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0]))
    # A step against the gradient leads further out for the first and the last.
    assert x.grad.tolist() == [0.0, 1.0, 1.0, -1.0, 0.0]


def test_values_and_gradients_part_ways() -> None:
    x, y = torch.tensor(2.0, requires_grad=True), torch.tensor(7.0, requires_grad=True)
    found = straight(x, y) + scaled_gradient(x, 0.25)
    found.backward()
    assert (found.item(), x.grad.item(), y.grad) == (9.0, 1.25, None)


@pytest.mark.parametrize(("dtype", "least"), [("float16", 2.0**-24), ("bfloat16", 2.0**-126), (None, 2.0**-126)])
def test_scales_can_be_stored(dtype: str | None, least: float) -> None:
    spec = QuantSpec(bits=2, strategy="channel", scale_dtype=dtype)
    scale, _ = FakeQuantize(spec, torch.tensor([[0.0], [-1e-40], [1e6]])).grid()
    assert scale[:2].tolist() == [[least], [-least]]
    assert scale[2].item() == (65504.0 if dtype == "float16" else pytest.approx(1e6, rel=4e-3))
