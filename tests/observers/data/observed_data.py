"""Data of all kinds for observers."""

import numpy as np
from hypothesis import strategies as st


def _draw(kind: str, seed: int, size: int, magnitude: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(size)
    if kind == "outliers":
        x[rng.integers(size, size=1 + size // 500)] *= 10.0 ** rng.uniform(1, 3)
    elif kind == "heavy tails":
        x = rng.standard_cauchy(size)
    elif kind == "one side":
        x = np.maximum(x, 0.0)
    elif kind == "far from zero":
        x = x / 100 - 50
    elif kind == "constant":
        x[:] = x[0]
    elif kind == "zeros":
        x[:] = rng.choice([0.0, -0.0], size)
    elif kind == "huge range":
        x *= 10.0 ** rng.uniform(-30, 0, size)
    elif kind == "two values":
        x = rng.choice(x[:2], size)
    return (x * magnitude).astype(np.float32)


KINDS = (
    "normal",
    "outliers",
    "heavy tails",
    "one side",
    "far from zero",
    "constant",
    "zeros",
    "huge range",
    "two values",
)

samples = st.builds(
    _draw,
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32 - 1),
    size=st.one_of(st.integers(1, 20), st.integers(21, 3000)),
    magnitude=st.sampled_from([1.0, 2.0**-140, 1e-3, 1e30]),
)
"""Float32 (n,) of at least one value: smooth, constant, all zero, with outliers, subnormal, huge."""


def pieces(x: np.ndarray, seed: int) -> list[np.ndarray]:
    """Cut data anywhere, empty pieces among them, in growing order of magnitude half of the time."""
    rng = np.random.default_rng(seed)
    x = x[np.argsort(np.abs(x))] if seed % 2 else rng.permutation(x)
    return np.split(x, np.sort(rng.integers(0, x.size + 1, rng.integers(0, 6))))
