"""What is printed: names that strangers chose reach no terminal as they are."""

from llmq.cli.output import print_table


def test_control_characters_in_a_table_are_escaped(capsys):
    print_table(("tensor", "size>"), [("w\x1b]0;title\x07", 1), ("two\nlines", 22)])
    printed = capsys.readouterr().out
    assert printed.splitlines()[1:] == ["w\\x1b]0;title\\x07     1", "two\\nlines           22"]
