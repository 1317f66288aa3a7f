import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from llmq.checkpoint.mapped import MappedCheckpoint
from llmq.checkpoint.mapped_parts import MappedParts
from llmq.checkpoint.source import open_source
from llmq.system.memory import current_memory

MEBIBYTE = 1 << 20


@pytest.fixture
def mapped(tmp_path):
    """Eight tensors of a mebibyte."""
    draw = np.random.default_rng(0)
    save_file({f"t{i}": draw.integers(0, 255, MEBIBYTE, np.uint8) for i in range(8)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with open_source(tmp_path) as source:
        yield MappedCheckpoint(source)


def test_what_was_not_used_for_longest_is_given_back(mapped, monkeypatch):
    told = []
    monkeypatch.setattr(mapped, "expect", lambda names: told.append(("expect", *names)))
    monkeypatch.setattr(mapped, "forget", lambda names: told.append(("forget", *names)))
    parts = MappedParts(mapped, {i: [f"t{i}"] for i in range(8)}, 3 * MEBIBYTE)
    parts.use(0, 1)
    parts.use(1, 2)
    parts.use(2)
    assert told == [("expect", "t0"), ("expect", "t1"), ("expect", "t2")]
    parts.use(0)
    parts.use(3)
    assert told[3:] == [("expect", "t3"), ("forget", "t1")], "0 was used after 1"
    parts.use(4, 5)
    assert told[5:] == [("expect", "t4"), ("forget", "t2")], "no room for what follows"
    assert parts.nbytes == 3 * MEBIBYTE


def test_a_part_larger_than_the_limit(mapped):
    parts = MappedParts(mapped, {"a": ["t0", "t1"], "b": ["t2", "t3"]}, MEBIBYTE)
    for key in "abab":
        parts.use(key)
        assert parts.nbytes == 2 * MEBIBYTE


@pytest.mark.skipif(sys.platform != "linux", reason="RssFile")
def test_memory_of_the_process_follows(mapped):
    arrays = [mapped.tensor(f"t{i}") for i in range(8)]
    parts = MappedParts(mapped, {i: [f"t{i}"] for i in range(8)}, 2 * MEBIBYTE)
    sums = [int(array.sum()) for array in arrays]
    mapped.release()
    before = current_memory().file
    for i in [*range(8)] * 2:
        parts.use(i, (i + 1) % 8)
        assert int(arrays[i].sum()) == sums[i]
        assert current_memory().file - before < 3.5 * MEBIBYTE
    mapped.release()
    for array in arrays:
        array.sum()
    assert current_memory().file - before > 7 * MEBIBYTE, "the figure tells"
