import numpy as np

from llmq.observers import MinMax
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
