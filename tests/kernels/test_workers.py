import threading
import time

import numpy as np
import pytest

from llmq_kernels import crew, jit
from llmq_kernels.activations import encode_rows
from llmq_kernels.memory import next_number
from llmq_kernels.workers import Turns, launch, worker_address

COUNTER, WORK, STARTED, DONE = range(4)
"""Address of the counter, how many pieces of work there are, who has begun, and from here on who did each piece."""


def take_all(p, number, variant):
    """Do pieces of work until there are none."""
    p[STARTED] += 1 << number
    piece = next_number(p[COUNTER])
    while piece < p[WORK]:
        p[DONE + piece] += number + 1
        piece = next_number(p[COUNTER])


def meet(p, number, variant):
    """Wait, for seconds but not for ever, until another worker is here."""
    if number:
        p[STARTED] = number
    for _ in range(p[WORK]):
        # Taking a number makes the compiler read again what others write.
        if next_number(p[COUNTER]) < 0 or p[STARTED]:
            return


def parameters(work):
    counter, p = np.zeros(1, np.int64), np.zeros(DONE + work, np.int64)
    p[COUNTER], p[WORK] = counter.ctypes.data, work
    return counter, p


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_every_piece_is_done_once(workers):
    address = worker_address(take_all, 1)
    for work in (0, 1, 2, 1000):
        for _ in range(50):
            counter, p = parameters(work)
            launch(address, p.ctypes.data, workers)
            assert ((p[DONE:] >= 1) & (p[DONE:] <= workers)).all()
            assert p[STARTED] & 1
            # Each worker that ran took one number in vain.
            assert work + 1 <= counter[0] <= work + workers


def prepare(p, number):
    """Do pieces of work slowly, one at a time."""
    piece = next_number(p[COUNTER])
    while piece < p[WORK]:
        for _ in range(1000):
            p[STARTED] = piece
        p[DONE + piece] += 1
        piece = next_number(p[COUNTER])


def check(p, number):
    """Count the pieces that are done, once for each worker."""
    done = 0
    for piece in range(p[WORK]):
        done += p[DONE + piece]
    p[DONE + p[WORK] + number] = done + 1


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_the_second_worker_begins_when_the_first_is_done(workers):
    first, second = worker_address(prepare), worker_address(check)
    for work in (0, 1, 2, 40):
        counter, p = np.zeros(1, np.int64), np.zeros(DONE + work + workers, np.int64)
        p[COUNTER], p[WORK] = counter.ctypes.data, work
        turns = Turns(p.ctypes.data)
        for _ in range(50):
            counter[0], p[DONE:] = 0, 0
            turns.launch(first, second, workers)
            assert (p[DONE : DONE + work] == 1).all()
            found = p[DONE + work :]
            assert found[0] == work + 1
            assert np.isin(found, [0, work + 1]).all()


def test_one_worker_runs_on_the_calling_thread():
    _, p = parameters(5)
    launch(worker_address(take_all, 1), p.ctypes.data, 1)
    assert p[STARTED:].tolist() == [1] * 6


def test_threads_meet():
    # Members of a crew are awake for a while, then asleep: in either state, and between them, they come to help.
    address = worker_address(meet, 1)
    for pause in (0.0, 0.0, 0.0002, 0.0003, 0.0004, 0.05) * 20:
        time.sleep(pause)
        _, p = parameters(0)
        p[WORK] = 1 << 30
        launch(address, p.ctypes.data, 2)
        assert p[STARTED] == 1


def test_python_threads_launch_at_once():
    address = worker_address(take_all, 1)
    wrong = []

    def work():
        for _ in range(300):
            _, p = parameters(200)
            launch(address, p.ctypes.data, 3)
            wrong.extend(p[DONE:][(p[DONE:] < 1) | (p[DONE:] > 3)])

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_variants_have_code_of_their_own():
    addresses = {worker_address(encode_rows, planes, 1, 1) for planes in (1, 2, 4)}
    assert len(addresses) == 3
    assert worker_address(encode_rows, 2, 1, 1) in addresses


def test_notices_name_the_workers(run_program, tmp_path):
    script = "workers_compiled"
    cold = run_program(script, LLMQ_CACHE_DIR=str(tmp_path))
    assert cold.returncode == 0, cold.stderr
    named = cold.stdout.split()
    assert {"decode.decode_rows", "prefill.prefill_rows", "activations.encode_rows", "dense_rows.dense_rows"} <= {
        *named
    }
    warm = run_program(script, LLMQ_CACHE_DIR=str(tmp_path))
    assert (warm.returncode, warm.stdout.split()) == (0, []), warm.stderr


def test_a_forked_child_has_a_crew_of_its_own(run_program):
    done = run_program("forked")
    assert (done.returncode, done.stdout.split()) == (0, ["right", "right"]), done.stderr


def test_a_crew_is_no_larger_than_asked():
    before = jit.threads()
    _, p = parameters(10)
    launch(worker_address(take_all, 1), p.ctypes.data, max(before, 2))
    members = [thread for thread in threading.enumerate() if thread.name.startswith("kernels-")]
    assert 1 <= len(members) <= 6
    assert all(thread.daemon for thread in members)
    assert crew._crew is not None
