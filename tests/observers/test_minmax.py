import numpy as np
import pytest

from llmq.observers import OBSERVERS, MinMax
from llmq.spec import QuantSpec

ASYMMETRIC = QuantSpec(bits=8, symmetric=False)


def test_extremes_over_all_pieces() -> None:
    observer = MinMax(ASYMMETRIC)
    for piece in ([[1.0, -2.0]], [], [0.5, 7.0]):
        observer.observe(np.array(piece, np.float32))
    assert [float(end) for end in observer.range()] == [-2.0, 7.0]


def test_symmetric_ranges_reach_as_far_on_both_sides() -> None:
    observer = MinMax(QuantSpec(bits=8))
    observer.observe(np.array([-1.0, 3.0]))
    assert [float(end) for end in observer.range()] == [-3.0, 3.0]


def test_channels() -> None:
    observer = MinMax(ASYMMETRIC, channel_axis=1)
    observer.observe(np.arange(12.0).reshape(2, 3, 2))
    low, high = observer.range()
    assert low.tolist() == [0, 2, 4]
    assert high.tolist() == [7, 9, 11]
    with pytest.raises(ValueError, match="2 channels, but 3 before"):
        observer.observe(np.zeros((2, 2, 2)))


@pytest.mark.parametrize("name", OBSERVERS)
def test_every_observer_refuses_what_is_not_finite(name: str) -> None:
    observer = OBSERVERS[name](ASYMMETRIC)
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="NaN or infinity"):
            observer.observe(np.array([1.0, value]))


@pytest.mark.parametrize("name", OBSERVERS)
def test_every_observer_needs_data(name: str) -> None:
    observer = OBSERVERS[name](ASYMMETRIC)
    observer.observe(np.zeros((0, 4), np.float32))
    with pytest.raises(ValueError, match="nothing was observed"):
        observer.range()
