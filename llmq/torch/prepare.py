"""Copy a model, fold its batch norms, and watch what its layers are given."""

from __future__ import annotations

import copy
from collections import Counter
from typing import TYPE_CHECKING, Any

from torch import nn

from llmq.errors import InputError, UsageError
from llmq.observers import observer_class
from llmq.torch.fake_layers import fake_layers
from llmq.torch.fold import fold_chains
from llmq.torch.kinds import label
from llmq.torch.modules import keep_threads, keep_to_modules, modules_by_name, to_numpy
from llmq.torch.schemes import schemes_of
from llmq.torch.together import Count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.utils.hooks import RemovableHandle

    from llmq.observers import Observer
    from llmq.spec import QuantScheme, QuantSpec
    from llmq.torch.chains import Chain

__all__ = ["Calibration", "calibrations", "prepare"]


class Calibration:
    """What one layer of a prepared model has been given: the forward pre-hook of its modules.

    Parameters
    ----------
    chain : Chain
        Names of the layer, and of the batch norm and ReLU that it takes over.
    scheme : QuantScheme
        How it is to be quantized.

    Attributes
    ----------
    observer : Observer or None
        Sees every input; None where no static input range is needed.
    calls : Counter of str
        How often each module of the chain was called.
    """

    def __init__(self, chain: Chain, scheme: QuantScheme) -> None:
        self.chain = chain
        self.scheme = scheme
        self.observer: Observer | None = None
        self.calls: Counter[str] = Counter()
        self._hooks: list[RemovableHandle] = []

    def watch(self, modules: Mapping[str, nn.Module]) -> None:
        """Hook onto the modules of the chain."""
        layer, spec = modules[self.chain.layer], self.scheme.input
        if spec is not None and not spec.dynamic and not isinstance(layer, nn.Embedding):
            self.observer = observer_class(spec)(spec)
        self._hooks = [layer.register_forward_pre_hook(self._observe, with_kwargs=True)]
        for name in self.chain.modules[1:]:
            self._hooks.append(modules[name].register_forward_pre_hook(Count(self.calls, name)))
        layer.llmq_calibration = self  # type: ignore[assignment]  # modules keep any attribute

    def leave(self, modules: Mapping[str, nn.Module]) -> None:
        """Watch no more."""
        for hook in self._hooks:
            hook.remove()
        del modules[self.chain.layer].llmq_calibration

    @keep_threads()
    def _observe(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls[self.chain.layer] += 1
        if self.observer is not None:
            x = args[0] if args else kwargs["input"]
            try:
                self.observer.observe(to_numpy(x))
            except (TypeError, ValueError) as error:
                raise InputError(str(error), tensor=label(self.chain.layer)) from error


def calibrations(prepared: nn.Module) -> dict[str, Calibration]:
    """The calibration of each layer of a prepared model, by the layer's name, in the order of `named_modules`."""
    modules = prepared.named_modules()
    return {
        name: m.llmq_calibration for name, m in modules if isinstance(getattr(m, "llmq_calibration", None), Calibration)
    }


def prepare(
    model: nn.Module,
    scheme: QuantScheme | QuantSpec | None = None,
    *,
    example_inputs: Any = None,
    overrides: Mapping[str, QuantScheme | QuantSpec | None] | None = None,
) -> nn.Module:
    """Copy a model for calibration: run data through the copy, then `convert` it.

    The copy is in eval mode, and its batch norms are folded into the convolutions before them; it computes what the
    model computes in eval mode, and its layers see their inputs. The model itself is left as it is.

    Parameters
    ----------
    model : nn.Module
        Its `nn.Linear`, `nn.Conv1d`, `nn.Conv2d` and `nn.Embedding` modules are quantized, wherever they are; what else
        it computes stays in float.
    scheme : QuantScheme or QuantSpec, optional
        For every layer that no override names; by default 8-bit weights for each channel and static 8-bit inputs. A
        QuantSpec quantizes weights only.
    example_inputs : tuple, dict or tensor, optional
        Arguments of one call; they serve models that torch.fx cannot trace, whose batch norms are folded only within
        modules that can be, and that this call calls as a whole.
    overrides : mapping of str to QuantScheme, QuantSpec or None
        For the named modules and all within; the longest name wins, and None keeps a module in float.

    Raises
    ------
    UsageError
        The model is a prepared one or trains, or an override names no module of it, or nothing that could be quantized.
    UnsupportedError
        A layer that integer layers cannot stand for, or nothing left to quantize.
    """
    if calibrations(model) or fake_layers(model):
        raise UsageError("prepared already", hint="prepare takes the float model")
    copied = copy.deepcopy(model).eval()
    keep_to_modules(copied)
    schemes = schemes_of(copied, scheme, overrides)
    chains = fold_chains(copied, schemes, example_inputs)
    for name, wanted in schemes.items():
        Calibration(chains[name], wanted).watch(modules_by_name(copied))
    return copied
