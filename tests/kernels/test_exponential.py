import numpy as np

from llmq_kernels.exponential import exp
from llmq_kernels.jit import jit


@jit
def exp_of(x, out):
    for i in range(x.size):
        out[i] = exp(x[i])


def apply(values):
    x = np.asarray(values, np.float32)
    out = np.empty_like(x)
    exp_of(x, out)
    return out


def test_is_exact_to_2_units_in_the_last_place():
    x = np.linspace(-87, 88, 200_001).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(apply(x) - exact) <= 2 * np.spacing(exact.astype(np.float32))).all()


def test_the_ends():
    found = apply([0.0, -0.0, -1e30, -np.inf, 1e30, np.inf, np.nan])
    assert found[:2].tolist() == [1.0, 1.0]
    assert (found[2:4] > 0).all()
    assert (found[2:4] < 2e-38).all()
    assert (found[4:6] > 1e38).all()
    assert np.isfinite(found[:6]).all()
    assert np.isnan(found[6])
