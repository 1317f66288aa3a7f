"""Reading ahead and writing behind: order, errors, and an end."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
from xxhash import xxh3_128

from llmq.errors import InputError, ResourceError
from llmq.pipeline.read_ahead import Block, ReadAhead
from llmq.pipeline.write_behind import WriteBehind

DATA = np.random.default_rng(0).integers(0, 256, 1000, np.uint8)


class Source:
    """Bytes in memory; fails at byte `broken`."""

    def __init__(self, broken=None):
        self.broken = broken

    def read_into(self, info, start, buffer):
        if self.broken is not None and start + len(buffer) > self.broken:
            raise InputError("cannot be read")
        buffer[:] = DATA[start : start + len(buffer)]


def blocks(size=30, offset=72):
    info = SimpleNamespace(name="a", offset=offset, nbytes=1000)
    return [Block(info, start, min(size, 1000 - start)) for start in range(0, 1000, size)]


def our_threads():
    return [t.name for t in threading.enumerate() if t.name in ("llmq-read", "llmq-write")]


@pytest.mark.parametrize("offset", [0, 72, 4091])
def test_blocks_come_in_order_and_stand_as_in_the_file(offset):
    read = []
    with ReadAhead(Source(), blocks(size=32, offset=offset), 32, 3) as ahead:
        for view, release in ahead:
            assert (view.ctypes.data - (offset + sum(map(len, read))) // 8 * 8) % 64 == 0
            read.append(view.tobytes())
            assert "a" in ahead.digests or sum(map(len, read)) < 1000
            release()
    assert b"".join(read) == DATA.tobytes()
    assert ahead.digests == {"a": xxh3_128(DATA.tobytes()).hexdigest()}
    assert not our_threads()


def test_what_cannot_be_read_is_raised_after_what_could():
    done = []

    def read():
        with ReadAhead(Source(broken=500), blocks(), 30, 3) as ahead:
            for view, release in ahead:
                done.append(view.size)
                release()

    with pytest.raises(InputError):
        read()
    assert sum(done) == 480
    assert not our_threads()


def test_reading_ends_when_nobody_takes_more():
    with ReadAhead(Source(), blocks(), 30, 2) as ahead:
        next(iter(ahead))
    with ReadAhead(Source(), [], 30, 2) as ahead:
        assert list(ahead) == []
    assert not our_threads()


class Writer:
    """Keeps what is written; fails at the piece `broken`."""

    def __init__(self, broken=None):
        self.pieces = []
        self.broken = broken

    def write(self, name, data):
        if len(self.pieces) == self.broken:
            raise ResourceError("no room")
        self.pieces.append((name, data.tolist()))


def test_pieces_are_written_in_order_and_given_back():
    writer, given_back = Writer(), []
    with WriteBehind(writer, 2) as behind:
        for i in range(20):
            behind.write("ab"[i % 2], np.array([i]), lambda i=i: given_back.append(i))
    assert writer.pieces == [("ab"[i % 2], [i]) for i in range(20)]
    assert given_back == list(range(20))
    assert not our_threads()


@pytest.mark.parametrize("pieces", [4, 30])
def test_what_the_writer_raises_reaches_whoever_writes(pieces):
    writer, given_back = Writer(broken=3), []

    def write():
        with WriteBehind(writer, 2) as behind:
            for i in range(pieces):
                behind.write("a", np.array([i]), lambda: given_back.append(0))

    with pytest.raises(ResourceError):
        write()
    assert len(writer.pieces) == 3
    assert len(given_back) >= 4
    assert not our_threads()


def test_pieces_made_before_an_interrupt_are_written():
    writer = Writer()

    def write():
        with WriteBehind(writer, 5) as behind:
            for i in range(4):
                behind.write("a", np.array([i]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert len(writer.pieces) == 4
    assert not our_threads()
