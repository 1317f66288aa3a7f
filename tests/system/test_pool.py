import gc
import threading
import time
from concurrent.futures import CancelledError

import pytest

from llmq.system.pool import DaemonPool


def _alive(name):
    return [thread for thread in threading.enumerate() if thread.name == name]


def _wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_results_errors_and_order():
    pool = DaemonPool(1, "test-pool-order")
    seen = []
    futures = [pool.submit(seen.append, number) for number in range(20)]
    assert pool.submit(sum, [1, 2]).result() == 3
    assert seen == list(range(20))
    assert all(future.done() for future in futures)
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 1, 0).result()
    assert pool.submit(sum, [4]).result() == 4, "an error does not end the thread"
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(int)
    _wait_until(lambda: not _alive("test-pool-order"))


def test_what_is_cancelled_is_not_run():
    pool, hold, seen = DaemonPool(1, "test-pool-cancel"), threading.Event(), []
    pool.submit(hold.wait)
    later = pool.submit(seen.append, 1)
    assert later.cancel()
    hold.set()
    pool.submit(int).result()
    assert seen == []
    with pytest.raises(CancelledError):
        later.result()
    pool.close()


def test_threads_end_with_a_pool_that_nobody_holds():
    pool = DaemonPool(3, "test-pool-dropped")
    pool.submit(int).result()
    assert len(_alive("test-pool-dropped")) == 3
    del pool
    gc.collect()
    _wait_until(lambda: not _alive("test-pool-dropped"))
