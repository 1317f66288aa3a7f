"""Which batch norms and ReLUs follow which convolution, and nothing else sees what lies between.

Models are copied and their modules exchanged, so `forward` stays the user's own code. What may be folded is read from a
trace by torch.fx; where a model cannot be traced, from traces of its modules one by one, if a call shows that they are
called as a whole.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from torch import fx, nn

from llmq.torch.kinds import KINDS
from llmq.torch.modules import call, skeleton

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Chain", "find_chains"]

_NORMS: Final[dict[type[nn.Module], type[nn.Module]]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
}


@dataclass(frozen=True)
class Chain:
    """A layer and what it takes over; names of modules.

    Parameters
    ----------
    layer : str
        A linear or a convolution.
    norm, relu : str or None
        What its output goes to, in this order, and nowhere else.
    """

    layer: str
    norm: str | None = None
    relu: str | None = None

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the layer and of what it takes over."""
        return tuple(name for name in (self.layer, self.norm, self.relu) if name is not None)

    @property
    def last(self) -> str:
        """Whose output is the output of the chain."""
        return self.modules[-1]


def find_chains(model: nn.Module, example_inputs: Any = None) -> dict[str, Chain]:
    """Chains of a model in eval mode, by the name of their layer.

    Parameters
    ----------
    model : nn.Module
        It is not changed: what runs is a copy that shares its tensors.
    example_inputs : tuple, dict or tensor, optional
        Arguments of one call, needed for models that cannot be traced: nothing of them is folded without.
    """
    try:
        graph = fx.Tracer().trace(skeleton(model))
    except Exception:  # tracing runs the model's code on stand-ins, which may fail in any way
        return {} if example_inputs is None else _chains_called(model, example_inputs)
    return _chains_traced(dict(model.named_modules()), graph)


def _chains_traced(modules: Mapping[str, nn.Module], graph: fx.Graph) -> dict[str, Chain]:
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}

    def follower(node: fx.Node) -> fx.Node | None:
        """The call of a module that alone sees a node's output, if nothing else calls it."""
        if len(node.users) != 1:
            return None
        (user,) = node.users
        once = user.op == "call_module" and calls[user.target] == 1 and user.args == (node,) and not user.kwargs
        return user if once else None

    chains: dict[str, Chain] = {}
    for node in graph.nodes:
        if node.op != "call_module" or calls[node.target] != 1 or node.target in read:
            continue
        names = [str(node.target)]
        after = follower(node)
        while after is not None and str(after.target) not in read and len(names) < 3:  # layer, norm, ReLU
            names.append(str(after.target))
            after = follower(after)
        _add(chains, names, modules)
    return chains


class _OneModule(fx.Tracer):
    """Traces the forward of one module, and no module within."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002  what torch hands over
        """Every module within is called as it is."""
        return True


def _chains_called(model: nn.Module, example_inputs: Any) -> dict[str, Chain]:
    """Chains within modules that can be traced, and whose own call is the only one that their parts get."""
    calls, registered = _count_calls(model, example_inputs)
    modules = dict(model.named_modules())
    chains: dict[str, Chain] = {}
    for scope, module in skeleton(model).named_modules():
        names = {name: f"{scope}.{name}" if scope else name for name, _ in module.named_modules() if name}
        if not calls[scope] or not names:
            continue
        try:
            graph = _OneModule().trace(module)
        except Exception:  # noqa: S112  as above; what lies deeper may still be traced
            continue
        parts = {name: modules[whole] for name, whole in names.items() if whole in modules}
        for chain in _chains_traced(parts, graph).values():
            whole = Chain(names[chain.layer], names.get(chain.norm or ""), names.get(chain.relu or ""))
            if all(registered[name] == 1 and calls[name] == calls[scope] for name in whole.modules):
                chains[whole.layer] = whole
    return chains


def _count_calls(model: nn.Module, example_inputs: Any) -> tuple[Counter[str], Counter[str]]:
    """How often one call of a model calls each module, and in how many places each is registered, by first names."""
    running = skeleton(model)
    first = {module: name for name, module in running.named_modules()}
    registered = Counter(first[module] for _, module in running.named_modules(remove_duplicate=False))
    calls: Counter[str] = Counter()

    def count(module: nn.Module, _inputs: Any) -> None:
        calls[first[module]] += 1

    for module in first:
        module.register_forward_pre_hook(count)
    call(running, example_inputs)
    return calls, registered


def _add(chains: dict[str, Chain], names: Sequence[str], modules: Mapping[str, nn.Module]) -> None:
    """Keep the chain that the first of some consecutive modules begins, if it takes anything over."""
    layer, *rest = names
    if type(modules[layer]) not in KINDS or _hooked(modules[layer]):
        return
    norm = rest.pop(0) if rest and _foldable(modules[layer], modules[rest[0]]) else None
    relu = rest.pop(0) if rest and type(modules[rest[0]]) is nn.ReLU and not _hooked(modules[rest[0]]) else None
    if norm or relu:
        chains[layer] = Chain(layer, norm, relu)


def _foldable(layer: nn.Module, norm: nn.Module) -> bool:
    """Whether a batch norm only scales and shifts the output of this layer."""
    return (
        type(norm) is _NORMS.get(type(layer))
        and norm.running_mean is not None
        and norm.running_var is not None
        and norm.num_features == layer.out_channels
        and not _hooked(norm)
    )


def _hooked(module: nn.Module) -> bool:
    """Whether somebody watches what a module takes or gives."""
    return bool(module._forward_hooks or module._forward_pre_hooks)  # noqa: SLF001  torch has no public question for it
