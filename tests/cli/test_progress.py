import io
import logging

import pytest
from rich.console import Console

from llmq.cli.progress import LineProgress, TerminalProgress, activity, show_progress
from llmq.cli.settings import say, shown_log
from llmq.system.progress import NullProgress


def test_lines_are_few_and_sober(capsys):
    seconds = [0.0]
    progress = LineProgress(clock=lambda: seconds[0])
    progress.start("copying", 8_000_000)
    told = []
    for _ in range(80):
        seconds[0] += 1
        progress.advance(100_000)
        lines = capsys.readouterr().err.splitlines()
        told += [(seconds[0], line) for line in lines if "%" in line]
    progress.finish()
    progress.finish()
    assert [second for second, _ in told] == [*range(2, 60, 2), 68, 78]
    assert told[4][1] == "copying: 12 %, 100 kB/s, 70 s left"
    assert capsys.readouterr().err.splitlines() == ["copying: done in 80.0 s (100 kB/s)"]


def test_other_units_and_stages_without_work(capsys):
    progress = LineProgress(clock=lambda: 1.0)
    progress.start("scoring", 1234, "tokens")
    progress.start("nothing", 0)
    progress.finish()
    assert capsys.readouterr().err.startswith("scoring: 1,234 tokens\nnothing: 0 B\nnothing: done in")


def test_a_bar_shows_amounts_rate_and_time_left():
    screen = io.StringIO()
    progress = TerminalProgress(Console(file=screen, force_terminal=True, width=120))
    progress.start("copying [x]", 4_000_000)
    progress.advance(1_000_000)
    say("a notice")
    progress.start("scoring", 10, "tokens")
    progress.advance(5)
    progress.finish()
    shown = screen.getvalue()
    assert "copying [x]" in shown
    assert "1.0/4.0 MB" in shown
    assert "a notice" in shown
    assert "5/10 tokens" in shown


def test_no_terminal_means_lines_and_quiet_means_nothing(monkeypatch):
    with show_progress() as progress:
        assert isinstance(progress, LineProgress)
    monkeypatch.setattr("llmq.cli.progress.settings", lambda: type("Quiet", (), {"quiet": True}))
    with show_progress() as progress:
        assert isinstance(progress, NullProgress)


def test_an_activity_shows_nothing_where_there_is_no_terminal(capsys):
    with activity("thinking") as stop:
        stop()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("level", "lines"), [(logging.INFO, ["a notice", "warning: w"]), (logging.WARNING, ["warning: w"])]
)
def test_the_log_is_shown_line_by_line(capsys, level, lines):
    logger = logging.getLogger("llmq")
    before = logger.level, list(logger.handlers)
    with shown_log(level):
        logger.info("a notice")
        logger.warning("w")
    assert capsys.readouterr().err.splitlines() == lines
    assert (logger.level, logger.handlers) == before
