"""Write the pages of `docs/` that repeat what the code says; `--check` only tells whether they are up to date.

`--check` leaves out the tables that take more than a moment, or whose last digits depend on the machine.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from lesson_sample import Sample
from llmq.cli.main import COMMANDS, cli
from pages import put
from tour import LESSONS, NEED_SAMPLE

if TYPE_CHECKING:
    from collections.abc import Collection

DOCS = Path(__file__).parents[1] / "docs"
SAMPLE = Path("demo") / "sample"

_SETTINGS: Final[dict[str, Any]] = dict(cli.context_settings) | {"terminal_width": 100, "max_content_width": 100}
"""The width of whatever terminal this runs in must not show."""


def command_line() -> str:
    """The page of commands and flags, from their own help."""
    parts = [
        "# The command line\n",
        "Made from the commands' own help by `make docs`.\n",
        "Results go to stdout, progress and hints to stderr. Every command takes `--json`. Exit codes: 0 fine,",
        "1 unexpected, 2 usage, 3 input bad or corrupt, 4 unsupported, 5 not enough disk or memory, 6 verification",
        "failed, 7 network, 75 stopped but resumable, 130 interrupted.\n",
    ]
    with click.Context(cli, info_name="llmq", **_SETTINGS) as top:
        parts += ["```", cli.get_help(top), "```\n"]
        for name in COMMANDS:
            command = cli.get_command(top, name)
            assert command is not None
            parts += _sections(command, name, top)
    return "\n".join(parts)


def _sections(command: click.Command, name: str, parent: click.Context) -> list[str]:
    """Lines about a command, and about those under it."""
    with click.Context(command, info_name=name, parent=parent, **_SETTINGS) as context:
        lines = [f"## {context.command_path}\n", "```", command.get_help(context), "```\n"]
        below = command.commands if isinstance(command, click.Group) else {}
        for inner, one in below.items():
            lines += _sections(one, inner, context)
        return lines


def quantization(page: str, names: Collection[str], sample: Sample) -> str:
    """The page of quantization with the tables of some lessons made anew."""
    for name in names:
        for section, table in LESSONS[name](sample).tables.items():
            page = put(page, section, table.markdown())
    return page


def main() -> None:
    """Write or check the pages."""
    checking = "--check" in sys.argv[1:]
    lessons = [name for name in LESSONS if not (checking and name in NEED_SAMPLE)]
    course = DOCS / "quantization.md"
    pages = {
        DOCS / "cli.md": command_line(),
        course: quantization(course.read_text(encoding="utf-8"), lessons, Sample(SAMPLE)),
    }
    stale = [path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if not checking:
        for path in stale:
            path.write_text(pages[path], encoding="utf-8")
    elif stale:
        sys.exit(f"out of date: {', '.join(path.name for path in stale)} (run `make docs`)")


if __name__ == "__main__":
    main()
