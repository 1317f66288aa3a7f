"""What is printed: names that strangers chose reach no terminal as they are."""

import logging
import sys

from llmq.cli.output import print_piece, print_table
from llmq.cli.settings import shown_log


def test_control_characters_in_a_table_are_escaped(capsys):
    print_table(("tensor", "size>"), [("w\x1b]0;title\x07", 1), ("two\nlines", 22)])
    printed = capsys.readouterr().out
    assert printed.splitlines()[1:] == ["w\\x1b]0;title\\x07     1", "two\\nlines           22"]


def test_what_a_model_says_steers_no_terminal(capsys, monkeypatch):
    said = "a\tb\n\x1b[2J\r\x9b1m\U0001f468\u200d\U0001f33e"
    print_piece(said)  # click leaves out what would colour a file
    assert capsys.readouterr().out == said.replace("\x1b[2J", "")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_piece(said)
    assert capsys.readouterr().out == "a\tb\n\\x1b[2J\\r\\x9b1m\U0001f468\u200d\U0001f33e"


def test_what_is_logged_is_one_line(capsys):
    with shown_log(logging.INFO):
        logging.getLogger("llmq").warning("%s holds NaN", "w\x1b[31m\nerror: all is well")
    assert capsys.readouterr().err == "warning: w\\x1b[31m\\nerror: all is well holds NaN\n"
