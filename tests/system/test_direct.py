import errno
import os
from pathlib import Path

import numpy as np
import pytest

from llmq.system import direct
from llmq.system.direct import ALIGNMENT, DirectFile

SIZE = 3 * ALIGNMENT + 1234


@pytest.fixture
def contents(tmp_path):
    data = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8).tobytes()
    (tmp_path / "file").write_bytes(data)
    return tmp_path / "file", data


def aligned(size):
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size].data


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(("offset", "count"), [(0, 100), (0, ALIGNMENT), (ALIGNMENT, 5000), (2 * ALIGNMENT, 5330)])
def test_reads_what_is_there(contents, cached, offset, count):
    path, data = contents
    file = DirectFile(os.open(path, os.O_RDONLY), cached=cached)
    buffer = aligned(-(-count // ALIGNMENT) * ALIGNMENT)
    assert file.read(buffer, offset, count) >= count
    assert bytes(buffer[:count]) == data[offset : offset + count]
    file.close()


@pytest.mark.parametrize("cached", [False, True])
def test_the_end_of_the_file_is_told(contents, cached):
    path, data = contents
    file = DirectFile(os.open(path, os.O_RDONLY), cached=cached)
    buffer = aligned(2 * ALIGNMENT)
    assert file.read(buffer, 3 * ALIGNMENT, 5000) == 1234
    assert bytes(buffer[:1234]) == data[-1234:]
    assert file.read(buffer, 4 * ALIGNMENT, 100) == 0


def test_a_file_that_cannot_be_read_directly_is_read_through_the_cache(contents, monkeypatch):
    def refuse(fd, buffer, offset, count):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(direct, "_read_aligned", refuse)
    path, data = contents
    buffer = aligned(ALIGNMENT)
    assert DirectFile(os.open(path, os.O_RDONLY)).read(buffer, 0, 777) == 777
    assert bytes(buffer[:777]) == data[:777]


def test_other_errors_are_raised(contents):
    path, _ = contents
    file = DirectFile(os.open(path, os.O_WRONLY), cached=True)
    with pytest.raises(OSError, match="Bad file"):
        file.read(aligned(ALIGNMENT), 0, 1)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_descriptors_are_closed_with_a_file_that_nobody_holds(contents):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        DirectFile(os.open(contents[0], os.O_RDONLY))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
