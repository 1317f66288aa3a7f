"""Signals end a run behind a block, anywhere if that takes long, and never in the middle of an import."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from llmq.cli import stopping
from llmq.cli.stopping import interruptible, stoppable

pytestmark = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs the signals of POSIX")

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
SLOW = "import time\nprint('ready', flush=True)\nuntil = time.monotonic() + {seconds}\n"
SLOW += "while time.monotonic() < until:\n    pass\nprint('imported', flush=True)\n"


@pytest.fixture(autouse=True)
def default_handlers():
    """As a shell starts a command: nohup, or a job in the background, has signals ignored."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in NUMBERS[1:]:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Told:
    def __init__(self):
        self.calls = []

    def start(self, title, total, unit="bytes"):
        self.calls.append((title, total, unit))

    def advance(self, count):
        self.calls.append(count)

    def finish(self):
        self.calls.append("end")


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_heard_behind_a_block(number):
    told, before = Told(), {n: signal.getsignal(n) for n in (*NUMBERS, signal.SIGALRM)}

    def run():
        with stoppable(told) as progress:
            progress.start("work", 3)
            progress.advance(1)
            signal.raise_signal(number)
            told.calls.append("goes on")
            progress.advance(2)
            told.calls.append("not reached")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert told.calls == [("work", 3, "bytes"), 1, "goes on", 2]
    assert {n: signal.getsignal(n) for n in before} == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_no_signal_changes_nothing():
    told = Told()
    with stoppable(told) as progress:
        progress.start("work", 1, "tokens")
        progress.advance(1)
        progress.finish()
    assert told.calls == [("work", 1, "tokens"), 1, "end"]


def test_a_block_that_takes_long_is_interrupted():
    began = time.monotonic()

    def run():
        with stoppable(Told()):
            signal.raise_signal(signal.SIGTERM)
            while time.monotonic() < began + 20:
                pass

    with pytest.raises(KeyboardInterrupt):
        run()
    assert time.monotonic() < began + 5


def test_only_one_interrupt_comes():
    with stoppable(Told()) as progress:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            progress.advance(1)
        time.sleep(2 * stopping._PATIENCE)  # cleaning up is left alone


def test_an_import_is_waited_for(tmp_path, monkeypatch):
    (tmp_path / "slowly_imported.py").write_text("import time\nuntil = time.monotonic() + 0.4\n"
                                                 "while time.monotonic() < until:\n    pass\n")  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)

    def run():
        with stoppable(Told()):
            signal.raise_signal(signal.SIGINT)
            import slowly_imported  # noqa: F401

            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert sys.modules.pop("slowly_imported").until < time.monotonic()


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable(Told()) as progress:
            signal.raise_signal(signal.SIGHUP)
            progress.advance(1)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_are_not_stopped():
    told, seen = Told(), []

    def run():
        with stoppable(told) as progress, interruptible():
            seen.append(progress is told)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [True]


def interrupted(program, environment, folder=None):
    """Send Ctrl-C once a program is ready: its exit code and what it said."""
    path = os.pathsep.join(filter(None, [str(folder or ""), environment["PYTHONPATH"]]))
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_ctrl_c_in_an_import_ends_the_process_at_once(environment, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW.format(seconds=30))
    program = "from llmq.cli.stopping import interruptible\nwith interruptible():\n    import slow"
    assert interrupted(program, environment, tmp_path) == (-signal.SIGINT, "", "")


def test_an_import_that_takes_long_ends_the_process(environment, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW.format(seconds=30))
    program = "from llmq.cli.stopping import stoppable\nwith stoppable(None):\n    import slow"
    assert interrupted(program, environment, tmp_path) == (-signal.SIGINT, "", "")


def test_ctrl_c_before_the_command_is_imported_is_silent(environment, tmp_path):
    (tmp_path / "click.py").write_text(SLOW.format(seconds=30))
    program = "from llmq.cli.entry import run; run()"
    assert interrupted(program, environment, tmp_path) == (-signal.SIGINT, "", "")


def test_a_second_signal_ends_the_process_wherever_it_is(environment):
    program = (
        "import os, signal, time\nfrom llmq.cli.stopping import stoppable\n"
        "with stoppable(None):\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    try:\n        time.sleep(30)\n    finally:\n        print('ready', flush=True)\n        time.sleep(30)\n"
    )
    assert interrupted(program, environment) == (-signal.SIGINT, "", "")
