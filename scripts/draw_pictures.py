"""Draw the pictures of docs/quantization.md from the lessons' own numbers.

python scripts/draw_pictures.py [NAME]... [--folder demo] [--png FOLDER]
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from lesson_sample import Sample
from picture import style, svg
from picture_costs import draw_costs, draw_sizes
from picture_layers import draw_channels, draw_dynamic, draw_layer
from picture_numbers import draw_complement, draw_floats, draw_spacing
from picture_ranges import draw_clipping, draw_staircase, draw_ten
from picture_training import draw_gradients, draw_training

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

FOLDER: Final = Path(__file__).parents[1] / "docs" / "pictures"

PICTURES: Final[dict[str, Callable[[Sample], Figure]]] = {
    "complement": draw_complement,
    "floats": draw_floats,
    "spacing": draw_spacing,
    "ten": draw_ten,
    "staircase": draw_staircase,
    "clipping": draw_clipping,
    "channels": draw_channels,
    "dynamic": draw_dynamic,
    "layer": draw_layer,
    "costs": draw_costs,
    "sizes": draw_sizes,
    "gradients": draw_gradients,
    "training": draw_training,
}
"""What draws each picture, by the name of its file."""


def draw(name: str, sample: Sample, png: Path | None = None) -> str:
    """Draw one picture, and a PNG file of it where a folder for it is given."""
    with style():
        figure = PICTURES[name](sample)
        if png is not None:
            png.mkdir(parents=True, exist_ok=True)
            figure.savefig(png / f"{name}.png", dpi=110)
        return svg(figure)


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, type=click.Choice(list(PICTURES)))
@click.option("--folder", type=click.Path(path_type=Path), default="demo", help="Where the sample model goes.")
@click.option("--output", type=click.Path(path_type=Path), default=FOLDER, help="Where pictures go.")
@click.option("--png", type=click.Path(path_type=Path), help="Draw PNG files here too, to look at.")
def main(names: tuple[str, ...], folder: Path, output: Path, png: Path | None) -> None:
    """Draw NAMES, all pictures by default."""
    sample = Sample(folder / "sample")
    output.mkdir(parents=True, exist_ok=True)
    for name in names or PICTURES:
        (output / f"{name}.svg").write_text(draw(name, sample, png), encoding="utf-8")
        click.echo(f"drawn: {name}", err=True)


if __name__ == "__main__":
    main()
