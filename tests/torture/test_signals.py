"""Signals at a chosen place of a run."""

import signal

import pytest

from tortures.faults import Scene
from tortures.shim import Action, Calls, Fault


def test_ctrl_c_is_heard_between_blocks(host, subject, tmp_path):
    fault = Fault(at=30, classes=Calls.WRITE, action=Action.SIGNAL, error=signal.SIGINT)
    outcome = host.run(Scene("stopped", subject).request(tmp_path / "out", fault=fault))
    assert outcome.code == 75
    assert outcome.stderr.splitlines()[-2:] == [
        f"error: {tmp_path / 'out'}: stopped",
        "hint: the same command goes on from here",
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_hang_up_ends_a_run_as_sigterm_does(host, subject, tmp_path, number):
    fault = Fault(at=30, classes=Calls.WRITE, action=Action.SIGNAL, error=number)
    assert host.run(Scene("stopped", subject).request(tmp_path / "out", fault=fault)).code == 75


def test_a_second_signal_ends_the_process_at_once(host, subject, tmp_path):
    fault = Fault(at=25, classes=Calls.WRITE, action=Action.SIGNAL, error=signal.SIGINT, forever=True)
    outcome = host.run(Scene("stopped", subject).request(tmp_path / "out", fault=fault))
    assert outcome.code == -signal.SIGINT
    assert "Traceback" not in outcome.stderr
