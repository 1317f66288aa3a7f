import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
    # A call takes seconds on a slow machine; it ends between two parts of at most 256 tokens.
    assert seconds < 5


@pytest.mark.skipif(sys.platform == "win32", reason="has no setitimer")
def test_threads_go_on_after_interrupts(run_program):
    done = run_program("stopped_often", NUMBA_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "10\n"
