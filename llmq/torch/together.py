"""Check that modules which become one layer are called together, in every call of their model."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from llmq.errors import UnsupportedError
from llmq.torch.kinds import label
from llmq.torch.modules import modules_by_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from llmq.torch.chains import Chain

__all__ = ["Count", "Together", "check_calls"]


class Count:
    """A forward pre-hook that counts."""

    def __init__(self, calls: Counter[str], name: str) -> None:
        self._calls = calls
        self._name = name

    def __call__(self, _module: nn.Module, _args: tuple[Any, ...]) -> None:
        """Count one call."""
        self._calls[self._name] += 1


class Together:
    """Watches a model while it trains: forward hooks on it, and on what its layers take over.

    Training that is interrupted, or parts that are called alone, leave no trace: every call of the model counts anew.

    Parameters
    ----------
    chains : sequence of Chain
        To watch; none after `stop`.
    """

    def __init__(self, chains: Sequence[Chain]) -> None:
        self.chains = tuple(chain for chain in chains if len(chain.modules) > 1)
        self._calls: Counter[str] = Counter()

    @classmethod
    def watch(cls, model: nn.Module, chains: Sequence[Chain]) -> None:
        """Hook onto a model and the modules of its chains."""
        together = cls(chains)
        if not together.chains:
            return
        modules = modules_by_name(model)
        for name in (name for chain in together.chains for name in chain.modules):
            modules[name].register_forward_pre_hook(Count(together._calls, name))
        model.register_forward_pre_hook(together._begin)
        model.register_forward_hook(together._end)
        model.llmq_together = together  # type: ignore[assignment]  # modules keep any attribute

    @classmethod
    def stop(cls, model: nn.Module) -> None:
        """Watch no more, for the chains have become one module each."""
        together = getattr(model, "llmq_together", None)
        if isinstance(together, cls):
            together.chains = ()

    def _begin(self, _model: nn.Module, _args: Any) -> None:
        self._calls.clear()

    def _end(self, _model: nn.Module, _args: Any, _output: Any) -> None:
        for chain in self.chains:
            check_calls(chain, self._calls)


def check_calls(chain: Chain, calls: Mapping[str, int]) -> None:
    """Check that what a layer takes over was called as often as it.

    Raises
    ------
    UnsupportedError
        It was not.
    """
    for part in chain.modules[1:]:
        if calls[part] != calls[chain.layer]:
            raise UnsupportedError(
                f"called {calls[chain.layer]} times, but {part}, which it takes over, {calls[part]} times",
                tensor=label(chain.layer),
                hint=f"overrides={{{chain.layer!r}: None}} keeps it in float",
            )
