"""What the process of a run takes besides rows: much less where its kernels are compiled already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llmq.plan.budget import REMOTE_BYTES, TENSOR_BYTES, process_bytes
from llmq_kernels.jit import has_run, note_run

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmq.plan.plan import TensorPlan

__all__ = ["expected_process_bytes", "remember_kernels"]

_WARM_BYTES: Final = 68 << 20
"""Interpreter, NumPy, Numba without its compiler, and kernels."""


def expected_process_bytes(tensors: Iterable[TensorPlan], method: str, *, remote: bool) -> int:
    """Anonymous memory of the process at the peak, without rows: a measurement, where budgets keep to a bound.

    Parameters
    ----------
    tensors : iterable of TensorPlan
    method : str
    remote : bool
        Whether the source is read over a network.
    """
    tensors = list(tensors)
    if not all(map(has_run, _variants(tensors, method))):
        return process_bytes(len(tensors), remote=remote)
    return _WARM_BYTES + remote * REMOTE_BYTES + len(tensors) * TENSOR_BYTES


def remember_kernels(tensors: Iterable[TensorPlan], method: str) -> None:
    """Note that the kernels of a finished run are compiled."""
    for variant in _variants(tensors, method):
        note_run(variant)


def _variants(tensors: Iterable[TensorPlan], method: str) -> set[str]:
    """Tell apart the kernels that a run compiles."""
    found = set()
    for tensor in tensors:
        spec = tensor.spec
        made = "" if spec is None else f"{method} {spec}"
        found.add(f"quantize {tensor.info.dtype} {made}")
    return found
