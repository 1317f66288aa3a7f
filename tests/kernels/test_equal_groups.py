import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmq_kernels.equal_groups import count_equal_groups, equal_groups_reference


@given(
    rows=st.integers(0, 5),
    group_size=st.integers(1, 9),
    n_groups=st.integers(1, 4),
    dtype=st.sampled_from([np.float16, ml_dtypes.bfloat16, np.float32]),
    seed=st.integers(0, 2**32 - 1),
)
def test_counts_what_the_reference_counts(rows, group_size, n_groups, dtype, seed):
    rng = np.random.default_rng(seed)
    numbers = np.array([0.0, -0.0, 1.0, -1.0, 2.0**-24])[: rng.integers(1, 6)]
    groups = rng.choice(numbers, (rows * n_groups, group_size))
    groups[rng.random(len(groups)) < 0.3] = 0.5
    weight = groups.reshape(rows, -1) if rows else np.empty((0, group_size * n_groups))
    weight = weight.astype(dtype)
    assert count_equal_groups(weight, group_size) == equal_groups_reference(weight, group_size)


@given(
    rows=st.integers(0, 5),
    group_size=st.sampled_from([4, 8, 16, 32, 64]),
    n_groups=st.integers(1, 4),
    bits=st.integers(1, 8),
    seed=st.integers(0, 2**32 - 1),
)
def test_codes_only_save_work(rows, group_size, n_groups, bits, seed):
    rng = np.random.default_rng(seed)
    groups = rng.choice(np.array([0.0, -0.0, 1.0]), (rows * n_groups, group_size))
    alike = rng.random(len(groups)) < 0.7
    groups[alike] = rng.choice(np.array([0.0, 0.5]), alike.sum())[:, None]
    groups[alike, -1] = np.where(rng.random(alike.sum()) < 0.3, 2.0, groups[alike, -1])
    weight = groups.reshape(rows, -1).astype(np.float16) if rows else np.empty((0, group_size * n_groups), np.float16)
    # Equal numbers get equal codes, and other numbers may get them too.
    codes = (np.abs(weight).astype(np.uint8) if seed % 2 else np.zeros(weight.shape, np.uint8)) & (2**bits - 1)
    stream = ((codes[:, :, None] >> np.arange(bits, dtype=np.uint8)) & 1).reshape(rows, group_size * n_groups * bits)
    packed = np.packbits(stream, axis=1, bitorder="little")
    packed = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4)))
    assert count_equal_groups(weight, group_size, packed, bits) == equal_groups_reference(weight, group_size)


def test_what_it_does_not_take():
    with pytest.raises(ValueError, match="does not divide"):
        count_equal_groups(np.zeros((2, 6), np.float32), 4)
    with pytest.raises(ValueError, match="does not divide"):
        count_equal_groups(np.zeros((2, 6), np.float32), 0)
    with pytest.raises(TypeError, match="weight must be"):
        count_equal_groups(np.zeros((2, 6), np.complex64), 3)
    for packed in (np.zeros((2, 3), np.uint8), np.zeros((1, 4), np.uint8), np.zeros((2, 4), np.int8)):
        with pytest.raises(ValueError, match="do not fit"):
            count_equal_groups(np.zeros((2, 8), np.float32), 8, packed, 4)
