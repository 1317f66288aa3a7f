import threading

import numba
import numpy as np
import pytest

from llmq_kernels.memory import address, clear_bytes, copy_bytes, expand, floats, next_number, octets


@numba.njit
def _copy(target, source, count):
    copy_bytes(address(target), address(source), count)


@numba.njit
def _clear(target, count):
    clear_bytes(address(target), count)


@numba.njit
def _expand(target, source, size, count, repeat):
    expand(address(target), address(source), size, count, repeat)


@numba.njit
def _read(array, i):
    return octets(address(array))[i], floats(address(array))[i]


@numba.njit(nogil=True)
def _take(counter, found):
    for i in range(found.size):
        found[i] = next_number(address(counter))


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 200])
def test_copies_and_clears(count):
    source, target = np.arange(201, dtype=np.uint8), np.full(202, 7, np.uint8)
    _copy(target[1:], source[1:], count)
    np.testing.assert_array_equal(target[1 : count + 1], source[1 : count + 1])
    assert target[0] == 7
    assert (target[count + 1 :] == 7).all()
    _clear(target[1:], count)
    assert not target[1 : count + 1].any()
    assert target[0] == 7
    assert (target[count + 1 :] == 7).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
@pytest.mark.parametrize(("count", "repeat"), [(0, 1), (1, 1), (7, 1), (7, 2), (9, 3), (8, 16)])
def test_expands(dtype, count, repeat):
    source, target = np.arange(1, 20, dtype=dtype), np.full(12, 99, dtype)
    _expand(target, source, source.itemsize, count, repeat)
    np.testing.assert_array_equal(target[:count], np.repeat(source, repeat)[:count])
    assert (target[count:] == 99).all()


def test_reads_through_addresses():
    array = np.arange(5, dtype=np.float32)
    assert _read(array, 3) == (array.view(np.uint8)[3], 3.0)
    assert _read(array[2:], 1)[1] == 3.0


def test_no_number_is_taken_twice():
    counter, found = np.full(1, 5, np.int64), np.empty((8, 20_000), np.int64)
    threads = [threading.Thread(target=_take, args=(counter, part)) for part in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (np.diff(found) > 0).all()
    assert sorted(found.ravel()) == list(range(5, 5 + found.size))
    assert counter[0] == 5 + found.size
