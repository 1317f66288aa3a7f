"""Pictures of what bits cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lesson_costs import PARAMETERS, WIDTHS, gigabytes
from lesson_layers import error
from picture import BLUE, GREEN, GREY, ORANGE, PALE, RED, canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lesson_sample import Sample

__all__ = ["draw_costs", "draw_sizes"]


def draw_costs(sample: Sample) -> Figure:
    """Error against bits per weight, by who shares a scale and how it is chosen."""
    weights = list(sample.weights.values())
    flat = [weight.reshape(1, -1) for weight in weights]
    figure, (axes,) = canvas(3.4)
    kinds = (
        ("groups of 64, scale of least squared error", weights, 64, "mse", GREEN),
        ("groups of 64, scale from the extremes", weights, 64, "rtn", BLUE),
        ("one scale for a whole weight, from the extremes", flat, -1, "rtn", RED),
    )
    for name, chosen, group_size, method, color in kinds:
        found = [error(chosen, bits, group_size, method) for bits in WIDTHS]
        x, y = [stored for _, stored in found], [noise for noise, _ in found]
        axes.plot(x, y, "o-", color=color, label=name, markersize=4)
    axes.set(xlabel="bits per weight, scales included", ylabel="SQNR, dB", xlim=(0.8, 8.5))
    axes.grid(visible=True, color=PALE, linewidth=0.6)
    axes.legend(loc="lower right")
    return figure


def draw_sizes(_sample: Sample) -> Figure:
    """70 billion parameters in gigabytes."""
    figure, (axes,) = canvas(2.2)
    widths = (32, 16, 8, 4, 2)
    for line, bits in enumerate(widths):
        codes = gigabytes(PARAMETERS, bits)
        scales = gigabytes(PARAMETERS, 16.0 / 64) if bits <= 8 else 0.0
        axes.barh(line, codes, color=BLUE if bits <= 8 else GREY)
        axes.barh(line, scales, left=codes, color=ORANGE)
        axes.text(codes + scales + 3, line, f"{codes + scales:.1f} GB", va="center")
    axes.text(60, 4, "of it scales, one for 64 weights", va="center", color=ORANGE)
    axes.set(xlim=(0, 320), yticks=range(len(widths)), yticklabels=[f"{bits} bits" for bits in widths])
    axes.invert_yaxis()
    axes.set_xlabel("70 billion parameters, in GB")
    return figure
