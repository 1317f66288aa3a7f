"""Fake quantization against the rounding of observers, and its gradients against LSQ's formulas."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from llmq.learn import FakeQuantize  # noqa: E402
from llmq.observers import dequantize_array, quantize_array  # noqa: E402
from llmq.spec import QuantSpec  # noqa: E402

SPECS = [
    *(QuantSpec(bits=bits, group_size=8) for bits in range(1, 9)),
    *(QuantSpec(bits=bits, group_size=8, symmetric=False) for bits in range(1, 9)),
    *(QuantSpec(bits=bits, strategy="channel", range="narrow", signed_scale=False) for bits in range(2, 9)),
    QuantSpec(bits=4, strategy="tensor"),
    QuantSpec(bits=3, group_size=8, scale_dtype="bfloat16"),
    QuantSpec(bits=3, group_size=8, scale_dtype="float16"),
]


def _fake(spec: QuantSpec, rows: int = 3, columns: int = 16, seed: int = 0) -> tuple[FakeQuantize, torch.Tensor]:
    rng = np.random.default_rng(seed)
    groups = {"group": columns // 8, "channel": 1}.get(spec.strategy)
    shape = () if groups is None else (rows, groups)
    scale = torch.tensor(rng.uniform(0.1, 0.4, shape), dtype=torch.float32)
    if spec.symmetric and spec.signed_scale:
        scale = scale * torch.tensor(rng.choice([-1.0, 1.0], shape), dtype=torch.float32)
    point = None if spec.symmetric else torch.tensor(rng.uniform(0, 2**spec.bits - 1, shape), dtype=torch.float32)
    x = torch.tensor(rng.normal(size=(rows, columns)), dtype=torch.float32)
    return FakeQuantize(spec, scale, point), x


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_values_and_codes_are_those_of_the_observers(spec: QuantSpec) -> None:
    fake, x = _fake(spec)
    scale, point = (None if t is None else t.detach().numpy() for t in fake.grid())
    if spec.strategy != "tensor":
        repeat = 16 // scale.shape[1]
        scale = np.repeat(scale, repeat, axis=1)
        point = None if point is None else np.repeat(point, repeat, axis=1)
    codes = quantize_array(x.numpy(), scale, point, spec)
    np.testing.assert_array_equal(fake.codes(x).numpy(), codes)
    np.testing.assert_array_equal(fake(x).detach().numpy(), dequantize_array(codes, scale, point, spec))


def test_scales_are_rounded_as_they_are_stored() -> None:
    fake, _ = _fake(QuantSpec(bits=3, group_size=8, scale_dtype="bfloat16"))
    scale, _point = fake.grid()
    torch.testing.assert_close(scale, fake.scale.to(torch.bfloat16).float(), rtol=0, atol=0)
    assert not torch.equal(scale, fake.scale)


@pytest.mark.parametrize("bits", range(2, 9))
def test_gradients_are_those_of_lsq(bits: int) -> None:
    spec = QuantSpec(bits=bits, strategy="channel", range="narrow", signed_scale=False)
    fake, x = _fake(spec)
    x.requires_grad_()
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    (fake(x) * upstream).sum().backward()
    v, top = (x / fake.scale).detach(), 2 ** (bits - 1) - 1
    inside = v.abs() <= top
    torch.testing.assert_close(x.grad, upstream * inside)
    by_value = torch.where(inside, v.round() - v, top * v.sign())
    expected = (by_value * upstream).sum(1, keepdim=True) / (16 * top) ** 0.5
    torch.testing.assert_close(fake.scale.grad, expected)


def test_gradients_of_zero_points_come_from_clipped_values() -> None:
    fake = FakeQuantize(QuantSpec(bits=2, symmetric=False, strategy="tensor"), torch.tensor(0.5), torch.tensor(1.2))
    x = torch.tensor([-5.0, 0.1, 0.6, 7.0], requires_grad=True)
    fake(x).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]
    torch.testing.assert_close(fake.zero_point.grad, torch.tensor(-2 * 0.5 / (4 * 3) ** 0.5))


def test_one_bit_passes_gradients_near_zero() -> None:
    fake = FakeQuantize(QuantSpec(bits=1, strategy="tensor"), torch.tensor(2.0))
    x = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0], requires_grad=True)
    y = fake(x)
    assert y.tolist() == [-1.0, -1.0, -1.0, 1.0, 1.0]
    (y * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).sum().backward()
    assert x.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 0.0]
    torch.testing.assert_close(fake.scale.grad, torch.tensor((-1 - 2 - 3 + 4 + 5) / 2 / 5**0.5))


def test_steps_are_never_zero() -> None:
    fake = FakeQuantize(QuantSpec(bits=4, strategy="tensor"), torch.tensor(0.0))
    assert torch.isfinite(fake(torch.tensor([1.0, 0.0]))).all()


def test_a_zero_point_belongs_to_asymmetric_grids() -> None:
    with pytest.raises(ValueError, match="zero point"):
        FakeQuantize(QuantSpec(bits=4, strategy="tensor"), torch.tensor(1.0), torch.tensor(0.0))
