import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from packed_cases import random_packed

from llmq_kernels import attention, bundle, dense, dot, matmul
from llmq_kernels.jit import threads
from llmq_kernels.keyvalues import KeyValues

pytestmark = pytest.mark.emitted

PROGRAM = Path(__file__).parent / "programs" / "interrupted.py"


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
@pytest.mark.parametrize("delay", [0.05, 0.6])
def test_a_product_of_many_tokens_can_be_interrupted(program_environment, delay):
    child = subprocess.Popen(
        [sys.executable, PROGRAM],
        env=program_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout.readline() == "begun\n"
        time.sleep(delay)
        before = time.monotonic()
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
        seconds = time.monotonic() - before
    finally:
        child.kill()
    assert errors.endswith("KeyboardInterrupt\n")
    assert child.returncode == -signal.SIGINT
    # A call takes seconds on a slow machine; it ends between two of its pieces.
    assert seconds < 5


TOKENS, ROWS, COLUMNS = 64, 1024, 1536


def packed(compute, group_size):
    matrix = random_packed(np.random.default_rng(0), (ROWS, COLUMNS), (4, group_size, True))
    x = np.random.default_rng(1).standard_normal((TOKENS, COLUMNS), np.float32)
    return (TOKENS, ROWS), lambda out: matmul.matmul(x, matrix, compute=compute, out=out)


def dense_weight():
    weight = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), np.float32)
    x = np.random.default_rng(1).standard_normal((TOKENS, COLUMNS), np.float32)
    return (TOKENS, ROWS), lambda out: dense.matmul_dense(x, weight, out=out)


def attending():
    keys, values = np.random.default_rng(0).standard_normal((2, 2, 1200, 64), np.float32)
    cache = KeyValues.of(keys, values, 16)
    queries = np.random.default_rng(1).standard_normal((TOKENS, 8, 64), np.float32)
    return queries.shape, lambda out: attention.attention(queries, cache, start=1200 - TOKENS, window=1000, out=out)


CALLS = {
    "microkernels": lambda: packed("int8", 64),
    "plain": lambda: packed("int8", 24),
    "float32": lambda: packed("float32", 64),
    "dense": dense_weight,
    "attention": attending,
}


@pytest.fixture(params=CALLS)
def call_in_pieces(request, monkeypatch):
    """Shape and function of a call, and a function after which it comes in pieces."""

    def cut():
        for module in (attention, dot, bundle):
            monkeypatch.setattr(module, "_MOST", max(1, TOKENS * ROWS * COLUMNS // (1000 * threads())))

    return *CALLS[request.param](), cut


def test_pieces_give_what_the_whole_gives(call_in_pieces):
    shape, call, cut = call_in_pieces
    whole, found = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    call(whole)
    cut()
    call(found)
    np.testing.assert_array_equal(found, whole)


def test_results_of_blocks_and_a_rest_do_not_depend_on_the_pieces(monkeypatch):
    matrix = random_packed(np.random.default_rng(0), (64, 128), (4, 64, True))
    x = np.random.default_rng(1).standard_normal((259, 128), np.float32)
    whole = matmul.matmul(x, matrix)
    monkeypatch.setattr(bundle, "_MOST", 1)
    np.testing.assert_array_equal(matmul.matmul(x, matrix), whole)


@pytest.mark.skipif(sys.platform == "win32", reason="has no setitimer")
@pytest.mark.parametrize("call_in_pieces", sorted(CALLS.keys() - {"plain"}), indirect=True)
def test_an_interrupt_is_served_between_pieces(call_in_pieces):
    class Interrupt(Exception):
        pass

    def interrupt(number, frame):
        raise Interrupt

    def call_for_a_moment(out):
        signal.setitimer(signal.ITIMER_REAL, 2e-4)  # each call takes longer
        call(out)

    shape, call, cut = call_in_pieces
    call(np.zeros(shape, np.float32))  # compiles
    cut()
    out = np.full(shape, np.nan, np.float32)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(Interrupt):
            call_for_a_moment(out)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert np.isnan(out).any()


@pytest.mark.skipif(sys.platform == "win32", reason="has no setitimer")
def test_threads_go_on_after_interrupts(run_program):
    done = run_program("stopped_often", NUMBA_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "10\n"
