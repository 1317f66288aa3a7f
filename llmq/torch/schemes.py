"""How each layer of a model is to be quantized."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmq.errors import UnsupportedError, UsageError
from llmq.observers import OBSERVERS
from llmq.spec import QuantScheme, QuantSpec
from llmq.torch.kinds import KINDS, check, label, layer_of
from llmq.torch.modules import modules_by_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

__all__ = ["schemes_of"]


def schemes_of(
    model: nn.Module,
    scheme: QuantScheme | QuantSpec | None,
    overrides: Mapping[str, QuantScheme | QuantSpec | None] | None,
) -> dict[str, QuantScheme]:
    """Schemes by the first name of each layer to quantize, in the order of `named_modules`.

    Parameters
    ----------
    model : nn.Module
    scheme : QuantScheme or QuantSpec, optional
        For every layer that no override names; a QuantSpec is one for weights only.
    overrides : mapping of str to QuantScheme, QuantSpec or None, optional
        By names of modules, for all within; the longest name wins, and None leaves a layer out.

    Raises
    ------
    UsageError
        An override names no module, or nothing to quantize; no scheme; an unknown observer.
    UnsupportedError
        A layer that integer layers cannot stand for, or nothing to quantize at all.
    """
    chosen = _choose(model, QuantScheme() if scheme is None else scheme, overrides or {})
    if not chosen:
        raise UnsupportedError("no layer to quantize", expected=" or ".join(KINDS.values()), found=type(model).__name__)
    modules = modules_by_name(model)
    for name, wanted in chosen.items():
        check(name, layer_of(modules, name))
        for spec in (wanted.weight, wanted.input):
            if spec is not None and spec.observer not in OBSERVERS:
                expected = " or ".join(map(repr, OBSERVERS))
                raise UsageError("unknown observer", tensor=label(name), expected=expected, found=repr(spec.observer))
        if wanted.output is not None:
            raise UnsupportedError(
                "integer outputs cannot go on between torch modules",
                tensor=label(name),
                hint="a scheme without output; llmq.integer.calibrate makes networks in which integers flow",
            )
    return chosen


def _choose(
    model: nn.Module, default: QuantScheme | QuantSpec, overrides: Mapping[str, QuantScheme | QuantSpec | None]
) -> dict[str, QuantScheme]:
    chosen: dict[str, QuantScheme | QuantSpec | None] = {
        name: default for name, module in model.named_modules() if type(module) in KINDS
    }
    firsts = {module: name for name, module in model.named_modules()}
    lengths = dict.fromkeys(chosen, -1)
    unused = set(overrides)
    for name, module in model.named_modules(remove_duplicate=False):
        first = firsts[module]
        for prefix in (p for p in overrides if first in chosen and _is_within(name, p)):
            unused.discard(prefix)
            if len(prefix) > lengths[first]:
                lengths[first], chosen[first] = len(prefix), overrides[prefix]
    if unused:
        name = min(unused)
        what = "has nothing to quantize" if name in modules_by_name(model) else "is no module of the model"
        raise UsageError(f"override {name!r} {what}", hint="names are those of model.named_modules()")
    return {name: _scheme(given) for name, given in chosen.items() if given is not None}


def _is_within(name: str, parent: str) -> bool:
    return parent in ("", name) or name.startswith(f"{parent}.")


def _scheme(given: QuantScheme | QuantSpec) -> QuantScheme:
    if not isinstance(given, QuantScheme | QuantSpec):
        raise UsageError("unknown scheme", expected="QuantScheme or QuantSpec", found=repr(given))
    return QuantScheme(weight=given, input=None) if isinstance(given, QuantSpec) else given
