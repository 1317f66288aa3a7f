"""The program `llmq`: until it has imported a command, Ctrl-C ends it without a word."""

from __future__ import annotations

import signal
from typing import NoReturn

__all__ = ["run"]


def run() -> NoReturn:
    """Run the command that the process was started for, and exit."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from llmq.cli.main import run as run_command

    run_command()
