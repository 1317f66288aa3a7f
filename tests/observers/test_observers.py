"""What holds of every observer, and ranges of weights."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from observed_data import pieces, samples

from llmq.observers import OBSERVERS, range_for, scale_and_zero_point
from llmq.spec import QuantSpec

ASYMMETRIC = QuantSpec(bits=8, symmetric=False)


@pytest.mark.parametrize("name", OBSERVERS)
@settings(max_examples=30, deadline=None)
@given(x=samples, seed=st.integers(0, 1000), symmetric=st.booleans(), bits=st.integers(1, 8))
def test_ranges_lie_within_the_extremes(name: str, x: np.ndarray, seed: int, symmetric: bool, bits: int) -> None:
    observer = OBSERVERS[name](QuantSpec(bits=bits, symmetric=symmetric))
    for piece in pieces(x, seed):
        observer.observe(piece)
    low, high = observer.range()
    assert low.dtype == high.dtype == np.float32
    assert low.shape == high.shape == ()
    if symmetric:
        assert 0 <= high <= np.abs(x).max()
        assert low == -high
    else:
        # Averages of equal numbers are rounded.
        room = 1e-6 * np.abs(x).max() if name == "moving_average" else 0
        assert x.min() - room <= low <= high <= x.max() + room
    scale, zero_point = observer.parameters()
    assert np.isfinite(scale)
    assert scale > 0
    assert (zero_point is None) == symmetric


@pytest.mark.parametrize("name", [name for name in OBSERVERS if name != "moving_average"])
@settings(max_examples=15, deadline=None)
@given(x=samples, seeds=st.tuples(st.integers(0, 1000), st.integers(0, 1000)))
def test_neither_pieces_nor_their_order_count(name: str, x: np.ndarray, seeds: tuple[int, int]) -> None:
    found = []
    for seed in seeds:
        observer = OBSERVERS[name](ASYMMETRIC)
        for piece in pieces(x, seed):
            observer.observe(piece)
        found.append(observer.range())
    assert found[0] == found[1]


@pytest.mark.parametrize("name", OBSERVERS)
def test_refuses_what_is_not_finite_and_goes_on(name: str) -> None:
    observer = OBSERVERS[name](ASYMMETRIC)
    observer.observe(np.array([-1.0, 3.0]))
    before = observer.range()
    for value in (np.nan, np.inf, -np.inf, 1e300):
        with pytest.raises(ValueError, match=r"^cannot observe NaN or infinity$"):
            observer.observe(np.array([1.0, value]))
    assert observer.range() == before


@pytest.mark.parametrize("name", OBSERVERS)
def test_needs_data(name: str) -> None:
    observer = OBSERVERS[name](ASYMMETRIC, channel_axis=1)
    observer.observe(np.zeros((0, 4), np.float32))
    with pytest.raises(ValueError, match=r"^nothing was observed$"):
        observer.range()
    with pytest.raises(ValueError, match=r"^nothing was observed$"):
        observer.parameters()


@pytest.mark.parametrize("name", OBSERVERS)
def test_keeps_to_the_channels_of_the_first_data(name: str) -> None:
    observer = OBSERVERS[name](ASYMMETRIC, channel_axis=1)
    observer.observe(np.ones((2, 3, 4)))
    with pytest.raises(ValueError, match="2 channels, but 3 before"):
        observer.observe(np.zeros((2, 2, 2)))
    assert observer.range()[0].shape == (3,)


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("size", [4, -1])
def test_ranges_of_a_weight_are_those_of_its_parts(name: str, dtype: type, size: int) -> None:
    weight = np.random.default_rng(3).standard_normal((300, 4, 4)).astype(dtype)
    for strategy, parts, shape in (
        ("tensor", weight.reshape(1, -1), ()),
        ("channel", weight.reshape(300, 16), (300,)),
        ("group", weight.reshape(-1, 16 if size == -1 else size), (300, 1 if size == -1 else 4)),
    ):
        spec = QuantSpec(bits=4, symmetric=False, strategy=strategy, group_size=size, observer=name)
        low, high = range_for(weight, spec)
        assert low.shape == high.shape == shape
        scale, _ = scale_and_zero_point(low, high, spec)
        assert scale.shape == shape
        for i in {0, len(parts) // 2, len(parts) - 1}:
            alone = OBSERVERS[name](spec)
            alone.observe(parts[i])
            assert (low.flat[i], high.flat[i]) == alone.range()


def test_options_reach_the_observer() -> None:
    weight = np.arange(1.0, 101.0).reshape(1, 100)
    spec = QuantSpec(bits=8, strategy="channel", observer="percentile")
    assert range_for(weight, spec)[1] == 100
    assert range_for(weight, spec, percentile=50)[1] < 51
    with pytest.raises(TypeError, match="percentile"):
        range_for(weight, QuantSpec(bits=8, strategy="channel"), percentile=50)


@pytest.mark.parametrize(
    ("weight", "fields", "message"),
    [
        (np.ones((2, 4)), {"observer": "eye"}, "unknown observer 'eye': choose one of minmax"),
        (np.ones((2, 4)), {"strategy": "token", "dynamic": True}, "not by token"),
        (np.ones((2, 4)), {"group_size": 3}, "groups of 3 do not divide rows of 4"),
        (np.ones(4), {}, r"not the shape \(4,\)"),
        (np.ones((0, 4)), {}, r"not the shape \(0, 4\)"),
        (np.full((2, 4), np.nan), {"group_size": 4}, "NaN or infinity"),
    ],
)
def test_weights_that_have_no_ranges(weight: np.ndarray, fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        range_for(weight, QuantSpec(**fields))
