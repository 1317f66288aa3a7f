import signal
import sys

import pytest

pytestmark = [pytest.mark.emitted, pytest.mark.skipif(sys.platform == "win32", reason="has no mprotect")]


@pytest.mark.parametrize("what", ["packed", "dense"])
def test_nothing_is_touched_beyond_the_arrays(run_program, what):
    done = run_program("guard_pages", what)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 500


def test_the_fences_hold(run_program):
    assert run_program("guard_pages", "beyond").returncode in (-signal.SIGSEGV, -signal.SIGBUS)
