"""Streaming histograms, against one pass over all the data."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from observed_data import pieces, samples

from llmq.observers import MSE, StreamingHistogram
from llmq.spec import QuantSpec


@settings(max_examples=100, deadline=None)
@given(x=samples, seed=st.integers(0, 1000), bins=st.sampled_from([2, 3, 64, 2048]))
def test_pieces_give_the_histogram_of_all_the_data(x: np.ndarray, seed: int, bins: int) -> None:
    histogram = StreamingHistogram(1, bins)
    for piece in pieces(x, seed):
        histogram.add(piece[None])
    assert (histogram.low, histogram.high) == (x.min(), x.max())
    place = np.floor(x.astype(np.float64) / histogram.width).astype(np.int64) - histogram.first
    np.testing.assert_array_equal(histogram.counts[0], np.bincount(place, minlength=bins))
    # No wider than it must be, and no narrower than the values themselves are known.
    step = float(np.spacing(np.abs(x).max()))
    assert histogram.width >= step
    assert histogram.width == step or histogram.width < 2 * (float(x.max()) - float(x.min())) / (bins - 1)


def test_channels_grow_apart() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((3, 1000)) * [[1e-5], [1.0], [1e5]]).astype(np.float32)
    x[1, 500:] *= 100
    together = StreamingHistogram(3, 128)
    for part in np.split(x, 10, axis=1):
        together.add(part)
    for i, row in enumerate(x):
        alone = StreamingHistogram(1, 128)
        alone.add(row[None])
        np.testing.assert_array_equal(alone.counts[0], together.counts[i])
        assert (alone.first, alone.exponent) == (together.first[i], together.exponent[i])


def test_the_largest_floats_and_the_least() -> None:
    ends = np.array([[np.finfo(np.float32).max, -np.finfo(np.float32).max, 2.0**-149, 0.0]], np.float32)
    histogram = StreamingHistogram(1, 16)
    for value in ends[0, ::-1]:
        histogram.add(np.array([[value]], np.float32))
    assert histogram.counts.sum() == 4
    assert histogram.edges(np.array([[0], [16]]).T).tolist() == [[-(2.0**128), 2.0**128]]


def test_memory_does_not_grow() -> None:
    observer = MSE(QuantSpec(bits=8), bins=256)
    for scale in range(1, 50):
        observer.observe(np.full(100, float(scale)))
    assert observer.histogram is not None
    assert observer.histogram.counts.shape == (1, 256)
    assert observer.histogram.counts.sum() == 4900


def test_needs_two_bins() -> None:
    with pytest.raises(ValueError, match="at least 2 bins, not 1"):
        StreamingHistogram(1, 1)
    with pytest.raises(ValueError, match="at least 2 bins, not 0"):
        MSE(QuantSpec(bits=8), bins=0)
