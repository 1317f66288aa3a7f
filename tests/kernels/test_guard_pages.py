import signal
import sys

import pytest

pytestmark = [pytest.mark.emitted, pytest.mark.skipif(sys.platform == "win32", reason="has no mprotect")]


@pytest.mark.parametrize("what", ["packed", "dense"])
def test_nothing_is_touched_beyond_the_arrays(run_program, what):
    done = run_program("guard_pages", what)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 500


def test_hostile_scales_touch_nothing_and_hurt_their_own_row_alone(run_program):
    done = run_program("hostile_scales")
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 1000


def test_the_fences_hold(run_program):
    assert run_program("guard_pages", "beyond").returncode in (-signal.SIGSEGV, -signal.SIGBUS)
