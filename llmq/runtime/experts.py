"""MLPs of which a router chooses a few for each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmq.runtime.linear import Linear
    from llmq.runtime.stack import Mlp

__all__ = ["SparseMlp", "choose_experts", "sigmoid"]


@dataclass(frozen=True, eq=False)
class SparseMlp:
    """A block's experts: ``sum(share * expert(x))`` over those a token meets, and a shared one beside them.

    Parameters
    ----------
    router : Linear
        `(n_experts, hidden_size)`.
    experts : tuple of Mlp
    used : int
        How many a token meets.
    normalized : bool
        Whether their shares add up to one.
    shared : Mlp or None
        What every token meets.
    shared_gate : Linear or None
        `(1, hidden_size)`: its share is ``sigmoid(shared_gate(x))``.
    used_next : callable or None
        Told the number of each expert that is about to be used, and of the one after it or None.
    """

    router: Linear
    experts: tuple[Mlp, ...]
    used: int
    normalized: bool
    shared: Mlp | None = None
    shared_gate: Linear | None = None
    used_next: Callable[[int, int | None], None] | None = None

    @property
    def linears(self) -> dict[str, Linear]:
        """All linears by name."""
        found: dict[str, Linear] = {"router": self.router}
        for number, expert in enumerate(self.experts):
            found |= {f"experts.{number}.{name}": linear for name, linear in expert.linears.items()}
        if self.shared is not None and self.shared_gate is not None:
            found |= {f"shared.{name}": linear for name, linear in self.shared.linears.items()}
            found["shared_gate"] = self.shared_gate
        return found

    @property
    def kind(self) -> tuple[object, ...]:
        """What decides which kernels it runs."""
        return "experts", *sorted({str(linear.kind) for linear in self.linears.values()})


def choose_experts(logits: np.ndarray, used: int, *, normalized: bool) -> tuple[np.ndarray, np.ndarray]:
    """Choose the likeliest experts of each token; of equal ones, the first.

    Parameters
    ----------
    logits : float32 (n, n_experts)
    used : int
    normalized : bool
        Whether the shares of each token add up to one; else they are those of the softmax over all experts.

    Returns
    -------
    chosen : int64 (n, used)
    shares : float32 (n, used)

    Examples
    --------
    >>> chosen, shares = choose_experts(np.log(np.array([[1, 4, 3]], np.float32)), 2, normalized=False)
    >>> chosen.tolist(), shares.round(3).tolist()
    ([[1, 2]], [[0.5, 0.375]])
    """
    with np.errstate(invalid="ignore"):  # NaN stays NaN
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        odds /= odds.sum(axis=1, keepdims=True)
    chosen = np.argsort(-odds, axis=1, kind="stable")[:, :used]
    shares: np.ndarray = np.take_along_axis(odds, chosen, axis=1)
    if normalized:
        shares = shares / shares.sum(axis=1, keepdims=True)
    return chosen, shares


def sigmoid(x: np.ndarray) -> np.ndarray:
    """``1 / (1 + exp(-x))``, float32."""
    with np.errstate(over="ignore"):
        found: np.ndarray = 1 / (1 + np.exp(-x))
    return found
