"""A walk through quantization that prints its numbers: every notion of docs/quantization.md, computed as you watch.

python scripts/tour.py [SECTION]... [--list]
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from lesson import WIDTH
from lesson_clipping import clipping_lesson
from lesson_costs import sizes_lesson, widths_lesson
from lesson_layers import channels_lesson, dynamic_lesson, integer_lesson
from lesson_numbers import bits_lesson, complement_lesson, floats_lesson, precision_lesson
from lesson_ranges import symmetric_lesson, ten_lesson
from lesson_sample import Sample
from lesson_workflow import workflow_lesson

if TYPE_CHECKING:
    from collections.abc import Callable

    from lesson import Lesson

LESSONS: Final[dict[str, Callable[[Sample], Lesson]]] = {
    "bits": bits_lesson,
    "complement": complement_lesson,
    "floats": floats_lesson,
    "precision": precision_lesson,
    "ten": ten_lesson,
    "symmetric": symmetric_lesson,
    "clipping": clipping_lesson,
    "channels": channels_lesson,
    "dynamic": dynamic_lesson,
    "integer": integer_lesson,
    "workflow": workflow_lesson,
    "widths": widths_lesson,
    "sizes": sizes_lesson,
}
"""Sections in their order, by name."""

NEED_SAMPLE: Final = frozenset({"channels", "dynamic", "widths", "workflow"})
"""Those that look at the sample model, which takes some seconds."""

MEASURED: Final = frozenset({"dynamic", "workflow"})
"""Those whose last digits may depend on the machine, for they run the model in float32."""


def chosen(words: tuple[str, ...]) -> list[str]:
    """Names of the sections that words mean, numbers from 1 included; all of them if there are no words.

    Raises
    ------
    click.BadParameter
        A word that means none.
    """
    names = list(LESSONS)
    by_word = dict(zip(names, names, strict=True)) | {str(i): name for i, name in enumerate(names, 1)}
    for word in words:
        if word not in by_word:
            raise click.BadParameter(f"no section {word!r}: choose from {', '.join(names)}, or 1 to {len(names)}")
    return [by_word[word] for word in words] or names


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.argument("sections", nargs=-1)
@click.option("--list", "listing", is_flag=True, help="Name the sections, and stop.")
@click.option("--folder", type=click.Path(path_type=Path), default="demo", help="Where the sample model goes.")
def main(sections: tuple[str, ...], listing: bool, folder: Path) -> None:
    """Print SECTIONS, by name or number, all by default."""
    names = chosen(sections)
    if listing:
        click.echo("\n".join(f"{i:2}  {name}" for i, name in enumerate(LESSONS, 1) if name in names))
        return
    began = time.perf_counter()
    sample = Sample(folder / "sample")
    for name in names:
        lesson = LESSONS[name](sample)
        heading = f"{list(LESSONS).index(name) + 1}. {lesson.title}  [{name}]"
        click.echo(f"{heading}\n{'=' * min(len(heading), WIDTH)}\n\n{lesson.text()}\n\n")
    click.echo(f"This took {time.perf_counter() - began:.0f} s. More, with pictures: docs/quantization.md")


if __name__ == "__main__":
    main()
