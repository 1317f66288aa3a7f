import threading

import pytest

from llmq.checkpoint.background import Flusher


def test_syncs_beside_and_waits_only_beyond_the_most():
    gate, begun = threading.Event(), []

    def sync():
        begun.append(threading.current_thread().name)
        gate.wait(10)

    flusher = Flusher(sync, 100)
    flusher.wrote(99)
    assert begun == []
    flusher.wrote(1)
    flusher.wrote(99)  # the sync still runs
    assert len(begun) == 1
    gate.set()
    flusher.wrote(1)
    flusher.settle()
    flusher.close()
    assert len(begun) == 2
    assert begun[0].startswith("llmq-sync")


def test_what_a_sync_raises_reaches_whoever_writes():
    def sync():
        raise OSError(5, "broken")

    flusher = Flusher(sync, 10)
    flusher.wrote(10)
    with pytest.raises(OSError, match="broken"):
        flusher.settle()
    flusher.settle()
    flusher.wrote(10)
    flusher.close()
    flusher.close()
