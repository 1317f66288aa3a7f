"""Write the pages of `docs/` that repeat what the code says; `--check` only tells whether they are up to date.

`--check` leaves out the tables that take more than a moment, or whose last digits depend on the machine.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from lesson_sample import Sample
from llmq.architectures import decoder_config
from llmq.cli.main import COMMANDS, cli
from llmq.plan.budget import PROCESS_BYTES
from llmq.plan.calibrated import CALIBRATION_TOKENS, TOKENIZER_BYTES, calibration_bytes
from pages import put, table
from tour import LESSONS, NEED_SAMPLE

if TYPE_CHECKING:
    from collections.abc import Collection

DOCS = Path(__file__).parents[1] / "docs"
SAMPLE = Path("demo") / "sample"

_MODELS: Final = (
    ("1 B (2048, 5632)", 2048, 5632, 32, 4, 22),
    ("7 B (4096, 11008)", 4096, 11008, 32, 32, 32),
    ("8 B (4096, 14336)", 4096, 14336, 32, 8, 32),
    ("70 B (8192, 28672)", 8192, 28672, 64, 8, 80),
)
"""Names, and sizes as `config.json` has them: hidden, intermediate, heads, key-value heads, layers."""

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
        for section, made in LESSONS[name](sample).tables.items():
            page = put(page, section, made.markdown())
    return page


def calibration_memory() -> str:
    """What calibrating models of usual sizes is planned to take, at 4 bits in groups of 64."""
    rows = []
    for name, hidden, inner, heads, kv_heads, layers in _MODELS:
        config = decoder_config(
            {
                "model_type": "llama",
                "hidden_size": hidden,
                "intermediate_size": inner,
                "num_attention_heads": heads,
                "num_key_value_heads": kv_heads,
                "num_hidden_layers": layers,
                "vocab_size": 32000,
            }
        )
        block = 2 * (2 * hidden**2 + 2 * hidden * config.n_kv_heads * config.head_dim + 3 * hidden * inner)
        needs = [
            PROCESS_BYTES
            + TOKENIZER_BYTES
            + calibration_bytes(config, (block, block * 17 // 64), CALIBRATION_TOKENS, needs=needs)
            for needs in ("energy", "moments", "block")
        ]
        rows.append((name, *(f"{need / 1e9:.1f} GB" for need in needs)))
    return table(("model", "imatrix", "gptq", "block-ap"), rows)


def main() -> None:
    """Write or check the pages."""
    checking = "--check" in sys.argv[1:]
    lessons = [name for name in LESSONS if not (checking and name in NEED_SAMPLE)]
    course, methods = DOCS / "quantization.md", DOCS / "methods.md"
    pages = {
        DOCS / "cli.md": command_line(),
        methods: put(methods.read_text(encoding="utf-8"), "memory", calibration_memory()),
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
