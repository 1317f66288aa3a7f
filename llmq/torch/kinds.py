"""Which torch modules become integer layers, and what about them cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from torch import nn

from llmq.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmq.integer.convolution import Geometry

__all__ = ["KINDS", "Layer", "check", "geometry", "kind_of", "label", "layer_of"]

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Embedding

KINDS: Final[dict[type[nn.Module], str]] = {
    nn.Linear: "Linear",
    nn.Conv1d: "Conv1d",
    nn.Conv2d: "Conv2d",
    nn.Embedding: "Embedding",
}
"""Names of the integer layers; subclasses stay float, for what they compute is not known."""


def label(name: str) -> str:
    """A module's name in messages; the model itself has none."""
    return name or "(the model itself)"


def layer_of(modules: Mapping[str, nn.Module], name: str) -> Layer:
    """The module of this name, known to be one of `KINDS`."""
    module = modules[name]
    assert isinstance(module, Layer)
    return module


def check(name: str, module: Layer) -> None:
    """Refuse what integer layers do not do.

    Raises
    ------
    UnsupportedError
        Padding that is not zeros or not the same on both sides, an embedding that changes its rows when it is used,
        or a weight that is not made of floats in memory.
    """
    weight = module.weight
    hint = f"overrides={{{name!r}: None}} keeps it in float"
    where = label(name)
    if not weight.is_floating_point() or weight.is_meta:
        kind = "on the meta device" if weight.is_meta else f"of {weight.dtype}"
        raise UnsupportedError(f"a weight {kind} cannot be quantized", tensor=where, hint=hint)
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        raise UnsupportedError("max_norm changes the rows of the table as they are used", tensor=where, hint=hint)
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        if module.padding_mode != "zeros":
            raise UnsupportedError(
                "cannot pad so",
                tensor=where,
                expected="padding_mode 'zeros'",
                found=repr(module.padding_mode),
                hint=hint,
            )
        if module.padding == "same" and any(_spread(module, axis) % 2 for axis in range(len(module.kernel_size))):
            raise UnsupportedError(
                "padding 'same' pads one side more than the other here",
                tensor=where,
                expected="an odd kernel size or an even dilation",
                found=module.kernel_size,
                hint=hint,
            )


def kind_of(module: nn.Module) -> str:
    """The name of the layer that a module is, or is in training; empty for others."""
    return next((KINDS[base] for base in type(module).__mro__ if base in KINDS), "")


def geometry(module: nn.Conv1d | nn.Conv2d) -> Geometry:
    """Where the filters of a module meet their input, for one that `check` has passed."""
    sizes: Geometry = {"stride": module.stride, "padding": _padding(module), "dilation": module.dilation}
    return {**sizes, "groups": module.groups}


def _padding(module: nn.Conv1d | nn.Conv2d) -> tuple[int, ...]:
    """Zeros put on each side along each axis."""
    if module.padding == "same":
        return tuple(_spread(module, axis) // 2 for axis in range(len(module.kernel_size)))
    if module.padding == "valid":
        return (0,) * len(module.kernel_size)
    return tuple(int(zeros) for zeros in module.padding)


def _spread(module: nn.Conv1d | nn.Conv2d, axis: int) -> int:
    """Outputs that an unpadded convolution would lose along an axis."""
    return int(module.dilation[axis] * (module.kernel_size[axis] - 1))
