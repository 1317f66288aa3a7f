import numpy as np
import pytest

from llmq.observers.inputs import InputMoments


@pytest.mark.parametrize("whole", [False, True])
def test_means_over_all_inputs(whole):
    x = np.random.default_rng(0).standard_normal((2500, 24)).astype(np.float32)
    found = InputMoments(24, whole=whole)
    for part in np.array_split(x, [3, 3, 1500]):
        found.add(part)
    result = found.statistics()
    exact = x.astype(np.float64).T @ x.astype(np.float64) / len(x)
    assert result.tokens == 2500
    assert np.allclose(result.energy, exact.diagonal(), rtol=1e-5)
    assert (result.moments is not None) == whole
    if whole:
        assert np.allclose(result.moments, exact, atol=1e-5)
        assert np.array_equal(result.moments, result.moments.T)


def test_nothing_counted():
    with pytest.raises(ValueError, match="no inputs"):
        InputMoments(3).statistics()
