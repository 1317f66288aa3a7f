"""Checksums in one pass over files of all sizes."""

import hashlib
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from llmq.checkpoint.header import read_header
from llmq.errors import InputError
from llmq.system.progress import NullProgress
from llmq.verification.digests import digest_file, digest_shard

TENSORS = {
    "large": np.arange(5 * 1024 * 1024 // 4 + 77, dtype=np.float32),
    "many pieces": np.random.default_rng(0).integers(0, 256, (9 << 20) + 3, np.uint8),
    "odd": np.array([1.0, np.nan, -np.inf, np.inf, 0.0], np.float16),
    "empty": np.zeros((0, 3), np.int32),
}


class Counted(NullProgress):
    done = 0

    def advance(self, count):
        self.done += count


@pytest.fixture
def shard(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors")
    fd = os.open(tmp_path / "x.safetensors", os.O_RDWR)
    yield fd, (tmp_path / "x.safetensors").read_bytes()
    os.close(fd)


def test_of_a_file_and_its_tensors(shard):
    fd, data = shard
    progress = Counted()
    whole, tensors = digest_shard(fd, "x", read_header(fd, "x"), progress)
    assert whole == digest_file(fd, "x", len(data), NullProgress()) == hashlib.sha256(data).hexdigest()
    assert progress.done == len(data)
    assert tensors.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        assert tensors[name].sha256 == hashlib.sha256(array.tobytes()).hexdigest()
        assert (tensors[name].nan, tensors[name].infinite) == ((1, 2) if name == "odd" else (0, 0))


def test_a_file_that_becomes_shorter(shard):
    fd, data = shard
    header = read_header(fd, "x")
    os.ftruncate(fd, len(data) - 1)
    with pytest.raises(InputError, match=r"^x: became shorter"):
        digest_shard(fd, "x", header, NullProgress())
    with pytest.raises(InputError, match=r"^x: became shorter"):
        digest_file(fd, "x", len(data), NullProgress())
