import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmq.observers import MinMax, MovingAverage
from llmq.spec import QuantSpec

ASYMMETRIC = QuantSpec(bits=8, symmetric=False)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 30), averaging=st.floats(0.001, 1.0))
def test_weighs_pieces_as_the_closed_form_does(seed: int, n: int, averaging: float) -> None:
    x = np.random.default_rng(seed).standard_cauchy((n, 2, 7)).astype(np.float32)
    observer = MovingAverage(ASYMMETRIC, channel_axis=0, averaging=averaging)
    for piece in x:
        observer.observe(piece)
    # The first piece counts (1 - c)**(n - 1), one that k others follow c * (1 - c)**k.
    weights = averaging * (1 - averaging) ** np.arange(n - 1, -1, -1.0)
    weights[0] = (1 - averaging) ** (n - 1)
    assert weights.sum() == pytest.approx(1)
    for found, ends in zip(observer.range(), (x.min(axis=2), x.max(axis=2)), strict=True):
        np.testing.assert_allclose(found, weights @ ends.astype(np.float64), rtol=1e-6, atol=1e-6 * np.abs(ends).max())


def test_one_odd_batch_moves_it_little() -> None:
    steady, odd = np.array([-1.0, 1.0]), np.array([-1.0, 500.0])
    observers = [MovingAverage(ASYMMETRIC), MinMax(ASYMMETRIC)]
    for observer in observers:
        for piece in (*[steady] * 10, odd):
            observer.observe(piece)
    assert [observer.range()[1].item() for observer in observers] == [pytest.approx(1 + 0.01 * 499), 500.0]


@pytest.mark.parametrize("averaging", [0.0, -0.1, 1.5, np.nan])
def test_refuses_weights_that_are_none(averaging: float) -> None:
    with pytest.raises(ValueError, match="averaging must be above 0 and at most 1"):
        MovingAverage(ASYMMETRIC, averaging=averaging)
