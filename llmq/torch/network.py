"""A converted torch module as a network of `llmq.integer`, which can be saved and exported without torch."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import fx, nn
from torch.nn import functional

from llmq import integer
from llmq.errors import UnsupportedError, first_line
from llmq.torch.fold import Absorbed
from llmq.torch.integer_module import IntegerModule
from llmq.torch.layers import FUNCTIONS, HINT, PASSING, module_layers
from llmq.torch.modules import modules_by_name

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["to_integer"]


def to_integer(converted: nn.Module) -> integer.Sequential:
    """Read the layers of a converted module, one after the other, with sums of two branches as residual blocks.

    Parameters
    ----------
    converted : nn.Module
        From `convert`: one input, one output, and between them integer layers, linears and convolutions that stayed
        float, ReLUs, pooling, flattening, dropout (which does nothing), and sums of branches of these; modules and
        functions alike.

    Returns
    -------
    llmq.integer.Sequential
        Computes what the module computes on float32 inputs.

    Raises
    ------
    UnsupportedError
        What else a module computes, by its name; or a module that torch.fx cannot trace.
    """
    if isinstance(converted, IntegerModule):
        return integer.Sequential(tuple(module_layers("", converted)))
    try:
        graph = _Tracer().trace(converted)
    except Exception as error:  # tracing runs the module's code on stand-ins, which may fail in any way
        raise UnsupportedError(
            f"torch.fx cannot trace it: {first_line(error)}",
            tensor=type(converted).__name__,
            expected="a chain of layers",
        ) from error
    return _Chain(modules_by_name(converted), graph).read()


class _Tracer(fx.Tracer):
    """Traces into modules of the user's own, and no deeper."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is called as it is."""
        return isinstance(m, IntegerModule | Absorbed) or super().is_leaf_module(m, module_qualified_name)


class _Chain:
    """Nodes of a trace from the output back to the input."""

    def __init__(self, modules: dict[str, nn.Module], graph: fx.Graph) -> None:
        self._modules = modules
        self._graph = graph
        self._forks: dict[fx.Node, fx.Node] = {}

    def read(self) -> integer.Sequential:
        """Layers between the input and the output."""
        inputs = [node for node in self._graph.nodes if node.op == "placeholder" and node.users]
        (output,) = (node.args[0] for node in self._graph.nodes if node.op == "output")
        if len(inputs) != 1 or not isinstance(output, fx.Node):
            raise UnsupportedError("not a chain of layers", expected="one tensor in, one tensor out")
        return self._between(inputs[0], output)

    def _between(self, start: fx.Node, end: fx.Node) -> integer.Sequential:
        """Layers behind one node up to another."""
        layers: list[Any] = []
        while end is not start:
            self._check_in_place(end)
            if _is_sum(end):
                layers.append(self._residual(end))
            else:
                layers += reversed(self._layers(end))
            end = self._before(end)
        return integer.Sequential(tuple(reversed(layers)))

    def _residual(self, total: fx.Node) -> integer.Residual:
        fork = self._before(total)
        first, second = _terms(total)
        body, shortcut = (second, first) if first is fork else (first, second)
        return integer.Residual(self._between(fork, body), None if shortcut is fork else self._between(fork, shortcut))

    def _check_in_place(self, node: fx.Node) -> None:
        """Refuse what overwrites a tensor that something else reads: layers have results of their own."""
        module = self._modules.get(str(node.target)) if node.op == "call_module" else None
        in_place = node.target in _IN_PLACE or node.kwargs.get("inplace") or getattr(module, "inplace", False)
        found: Any = node.args[0] if in_place else None
        while isinstance(found, fx.Node):
            if sum(not _is_size(user) for user in found.users) > 1:
                raise UnsupportedError("overwrites in place what is read elsewhere", tensor=node.name)
            # What only passes a tensor on, or shows it in another shape, shares its memory.
            found = found.args[0] if self._shares_memory(found) else None

    def _shares_memory(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self._modules[str(node.target)], PASSING)
        return node.target in _VIEWS and node.op in ("call_function", "call_method")

    def _before(self, node: fx.Node) -> fx.Node:
        """What a node is computed from; of a sum of branches, where these part."""
        if not _is_sum(node):
            if node.op not in ("call_module", "call_function", "call_method"):
                raise UnsupportedError("not a layer", tensor=str(node.target), expected="one tensor in")
            found = node.args[0] if node.args else node.kwargs.get("input")
            if not isinstance(found, fx.Node):
                raise _unsupported(node)
            return found
        if node not in self._forks:
            first, second = _terms(node)
            trail = set(self._trail(first))
            fork = next((other for other in self._trail(second) if other in trail), None)
            if fork is None:
                raise UnsupportedError("the branches of a sum share no input", tensor=node.name)
            self._forks[node] = fork
        return self._forks[node]

    def _trail(self, node: fx.Node) -> Iterator[fx.Node]:
        yield node
        while node.op not in ("placeholder", "get_attr"):
            node = self._before(node)
            yield node

    def _layers(self, node: fx.Node) -> list[Any]:
        if node.op == "call_module":
            return module_layers(str(node.target), self._modules[str(node.target)])
        if node.op == "call_method" and node.target in ("view", "reshape"):
            sizes = node.args[1:]
            if len(sizes) == 2 and sizes[1] == -1 and _is_batch_size(sizes[0]):
                return [integer.Flatten()]
        make = FUNCTIONS.get(node.target)
        if make is None:
            raise _unsupported(node)
        try:
            return make(*node.args[1:], **{name: value for name, value in node.kwargs.items() if name != "input"})
        except (TypeError, ValueError) as error:
            raise UnsupportedError(str(error), tensor=node.name) from error


def _unsupported(node: fx.Node) -> UnsupportedError:
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return UnsupportedError(f"{target} has no integer layer", tensor=node.name, hint=HINT)


def _is_sum(node: fx.Node) -> bool:
    return node.target in _SUMS and node.op in ("call_function", "call_method")


_SUMS: Final = (operator.add, operator.iadd, torch.add, "add", "add_")
_IN_PLACE: Final = (operator.iadd, "add_", "relu_")
_VIEWS: Final = (torch.flatten, "flatten", "view", "reshape", functional.dropout)


def _terms(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Both terms of a sum."""
    if len(node.args) != 2 or node.kwargs or not all(isinstance(term, fx.Node) for term in node.args):
        raise UnsupportedError("only two branches can be added", tensor=node.name)
    first, second = node.args
    assert isinstance(first, fx.Node)
    assert isinstance(second, fx.Node)
    return first, second


def _is_batch_size(size: Any) -> bool:
    """Whether a node is `x.size(0)` or `x.shape[0]`."""
    if not isinstance(size, fx.Node):
        return False
    if size.op == "call_method" and size.target == "size":
        return size.args[1:] == (0,)
    if size.target is not operator.getitem or size.args[1] != 0 or not isinstance(size.args[0], fx.Node):
        return False
    return _is_size(size.args[0])


def _is_size(node: fx.Node) -> bool:
    """Whether a node reads nothing of a tensor but its sizes."""
    return (node.op == "call_method" and node.target == "size") or (node.target is getattr and node.args[1] == "shape")
