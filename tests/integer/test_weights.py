"""Weights made of given codes, scales and zero points, against what the codes stand for."""

from typing import Any

import numpy as np
import pytest

from llmq.integer import ActivationGrid, Conv1d, Conv2d, Embedding, Grids, LayerWeight, Linear, load, save
from llmq.integer.weights import quantize_weight
from llmq.observers import dequantize_array
from llmq.spec import QuantScheme, QuantSpec

SPECS = [
    *(QuantSpec(bits=bits, strategy="channel") for bits in range(1, 9)),
    *(QuantSpec(bits=bits, strategy="channel", range="narrow") for bits in range(2, 9)),
    *(QuantSpec(bits=bits, strategy="channel", symmetric=False) for bits in range(1, 9)),
    QuantSpec(bits=3, group_size=4),
    QuantSpec(bits=1, group_size=4),
    QuantSpec(bits=4, group_size=4, range="narrow"),
    QuantSpec(bits=2, group_size=4, symmetric=False),
]
GRIDS = Grids(ActivationGrid(QuantSpec(bits=8, strategy="tensor", symmetric=False), np.float32(0.02), np.int32(-7)))


def drawn(spec: QuantSpec, shape: tuple[int, ...] = (5, 12), *, signed: bool = True) -> tuple[Any, Any, Any]:
    """Codes, scales of both signs, and zero points."""
    rng = np.random.default_rng(3)
    codes = rng.integers(int(spec.range == "narrow"), 2**spec.bits, shape).astype(np.uint8)
    groups = int(np.prod(shape[1:])) // spec.group_size if spec.group_size != -1 else 1
    scale = rng.uniform(0.1, 1.0, (shape[0], groups)) * rng.choice([-1, 1] if signed else [1], (shape[0], groups))
    point = None if spec.symmetric else rng.integers(0, 2**spec.bits, (shape[0], groups)).astype(np.uint8)
    return codes, scale.astype(np.float32), point


def expected(codes: np.ndarray, scale: np.ndarray, point: np.ndarray | None, spec: QuantSpec) -> np.ndarray:
    grouped = codes.reshape(*scale.shape, -1)
    values = dequantize_array(grouped, scale[..., None], None if point is None else point[..., None], spec)
    return values.reshape(codes.shape)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("shape", [(5, 12), (4, 3, 2, 2), (3, 4, 3)])
def test_values_are_those_of_the_codes(spec: QuantSpec, shape: tuple[int, ...]) -> None:
    codes, scale, point = drawn(spec, shape)
    weight = LayerWeight.of(codes, scale, point, spec)
    np.testing.assert_array_equal(weight.values, expected(codes, scale, point, spec))
    assert weight.shape == shape
    if not (spec.symmetric and spec.range == "full"):
        assert (weight.scale > 0).all()


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.group_size == -1], ids=str)
def test_quantizing_and_taking_the_codes_are_one(spec: QuantSpec) -> None:
    values = np.random.default_rng(1).normal(size=(6, 3, 2, 2)).astype(np.float32)
    made = quantize_weight(values, spec)
    (part,) = made.parts
    factor, offset = part.form()
    codes = ((part.integers() + offset[:, None]) // factor).astype(np.uint8).reshape(values.shape)
    point = None if part.zero_point is None else part.zero_point[:, None]
    again = LayerWeight.of(codes, made.scale * (2 if spec.bits == 1 and spec.symmetric else 1), point, spec)
    np.testing.assert_array_equal(again.values, made.values)
    np.testing.assert_array_equal(again.parts[0].packed, part.packed)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_layers_of_either_sign_equal_their_reference(spec: QuantSpec, same: Any, tmp_path: Any) -> None:
    rng = np.random.default_rng(2)
    codes, scale, point = drawn(spec)
    bias = rng.normal(size=5).astype(np.float32)
    layer = Linear(LayerWeight.of(codes, scale, point, spec), bias, GRIDS)
    x = rng.normal(size=(7, 12)).astype(np.float32)
    same(layer(x), layer.reference(x))
    save(layer, tmp_path / "layer.safetensors")
    same(load(tmp_path / "layer.safetensors")(x), layer(x))
    table = Embedding(layer.weight)
    np.testing.assert_array_equal(table(np.array([4, 0])), layer.weight.values[[4, 0]])


@pytest.mark.parametrize("dynamic", ["tensor", "token", None])
def test_convolutions_of_either_sign(dynamic: Any, same: Any) -> None:
    spec, rng = QuantSpec(bits=3, strategy="channel"), np.random.default_rng(2)
    inputs = QuantSpec(bits=8, strategy=dynamic or "tensor", symmetric=False, dynamic=True)
    grids = Grids(ActivationGrid(inputs)) if dynamic else GRIDS
    bias, x = rng.normal(size=4).astype(np.float32), rng.normal(size=(2, 6, 9)).astype(np.float32)
    weight = LayerWeight.of(*drawn(spec, (4, 3, 3)), spec)
    flat = Conv1d.of(weight, bias, grids, stride=2, padding=1, groups=2)
    same(flat(x), flat.reference(x))
    images = LayerWeight.of(*drawn(spec, (4, 3, 1, 3)), spec)
    wide = Conv2d.of(images, bias, grids, stride=(1, 2), padding=(0, 1), groups=2)
    same(wide(x[:, :, None])[:, :, 0], flat(x))


def test_a_layer_of_codes_is_the_quantized_one(same: Any) -> None:
    rng = np.random.default_rng(0)
    values, bias = rng.normal(size=(5, 12)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    layer = Linear.quantize(values, bias, QuantScheme(), input_range=(-1.0, 2.0))
    (part,) = layer.weight.parts
    codes = (part.integers() + 128).astype(np.uint8)
    made = Linear(LayerWeight.of(codes, layer.weight.scale, None, layer.weight.spec), bias, layer.grids)
    x = rng.normal(size=(3, 12)).astype(np.float32)
    same(made(x), layer(x))


CODES, SCALE = np.zeros((2, 4), np.uint8), np.ones((2, 1), np.float32)
SIGNED, POINTS = QuantSpec(bits=2, strategy="channel"), QuantSpec(bits=2, strategy="channel", symmetric=False)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((CODES.astype(np.int8), SCALE, None, SIGNED), "codes must be uint8 of 2 rows"),
        ((CODES[:1], SCALE, None, SIGNED), "codes must be uint8 of 2 rows"),
        ((CODES, np.ones((2, 3), np.float32), None, SIGNED), "that 3 groups divide"),
        ((CODES, np.ones(2, np.float32), None, SIGNED), "codes must be uint8 of 0 rows"),
        ((CODES + 4, SCALE, None, SIGNED), "codes must be 0 to 3, found 4 to 4"),
        ((CODES, SCALE, None, QuantSpec(bits=2, strategy="channel", range="narrow")), "codes must be 1 to 3"),
        ((CODES, SCALE, None, POINTS), "zero points belong to asymmetric grids"),
        ((CODES, SCALE, np.zeros((2, 1), np.uint8), SIGNED), "zero points belong to asymmetric grids"),
        ((CODES, SCALE, np.zeros((2, 2), np.uint8), POINTS), "one to each scale"),
        ((CODES, SCALE, np.full((2, 1), 4, np.uint8), POINTS), "zero_point must be 0 to 3"),
        ((CODES, SCALE * 0, None, SIGNED), "scale must be finite and not zero"),
        ((CODES, SCALE * np.nan, None, SIGNED), "scale must be finite and not zero"),
        ((CODES, SCALE * 0, np.zeros((2, 1), np.uint8), POINTS), "scale must be positive and finite"),
    ],
)
def test_what_does_not_fit(arguments: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        LayerWeight.of(*arguments)


def test_integers_go_on_with_positive_scales_only() -> None:
    weight = LayerWeight.of(CODES, -SCALE, None, SIGNED)
    grid = GRIDS.input
    with pytest.raises(ValueError, match="integer results need positive scales"):
        Linear(weight, None, Grids(grid, grid))
    with pytest.raises(ValueError, match="in one group is needed"):
        Conv2d.of(LayerWeight.of(*drawn(SPECS[-1], (2, 2, 2, 2)), SPECS[-1]), None, GRIDS)
    with pytest.raises(ValueError, match="weight must have shape"):
        Conv1d.of(weight, None, GRIDS)
