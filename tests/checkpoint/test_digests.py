import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmq.checkpoint.digests import new_digest, update_both

LARGE = 1 << 30


def fed(digest, data, cuts):
    """Checksum of bytes that arrive in pieces."""
    for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        digest.update(memoryview(data)[start:stop])
    return digest.hexdigest()


@pytest.mark.parametrize("size", [0, 1, 3, 54, 55, 56, 63, 64, 65, 119, 120, 127, 128, 1000, 4096])
def test_equals_hashlib(size):
    data = np.random.default_rng(size).bytes(size)
    assert fed(new_digest(LARGE), data, []) == hashlib.sha256(data).hexdigest()


@given(size=st.integers(0, 700), seed=st.integers(0, 2**32 - 1), cuts=st.lists(st.integers(0, 700), max_size=8))
def test_pieces_of_any_size(size, seed, cuts):
    data = np.random.default_rng(seed).bytes(size)
    cuts = sorted(min(cut, size) for cut in cuts)
    assert fed(new_digest(LARGE), data, cuts) == hashlib.sha256(data).hexdigest()


@given(
    before=st.integers(0, 200), after=st.integers(0, 200), sizes=st.lists(st.integers(0, 400), min_size=1, max_size=5)
)
def test_two_streams_at_a_time(before, after, sizes):
    rng = np.random.default_rng(before)
    first, last = rng.bytes(before), rng.bytes(after)
    pieces = [rng.bytes(size) for size in sizes]
    file, tensor = new_digest(LARGE), new_digest(LARGE)
    file.update(memoryview(first))
    for piece in pieces:
        if not update_both(file, tensor, memoryview(piece)):
            file.update(memoryview(piece))
            tensor.update(memoryview(piece))
    assert tensor.hexdigest() == hashlib.sha256(b"".join(pieces)).hexdigest()
    file.update(memoryview(last))
    assert file.hexdigest() == hashlib.sha256(b"".join([first, *pieces, last])).hexdigest()


def test_asking_early_changes_nothing():
    digest = new_digest(LARGE)
    digest.update(memoryview(b"abc"))
    assert digest.hexdigest() == digest.hexdigest() == hashlib.sha256(b"abc").hexdigest()
    digest.update(memoryview(b"def"))
    assert digest.hexdigest() == hashlib.sha256(b"abcdef").hexdigest()


def test_small_streams_need_no_kernel():
    small = new_digest(1000)
    assert type(small) is type(hashlib.sha256())
    assert not update_both(small, new_digest(LARGE), memoryview(b"abc"))
    assert small.hexdigest() == hashlib.sha256().hexdigest()
