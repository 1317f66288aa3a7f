"""What the process of a run takes besides rows: much less where its kernels are compiled already."""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Final

from llmq.plan.budget import REMOTE_BYTES, TENSOR_BYTES, process_bytes
from llmq_kernels.jit import cache_folder

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

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
    folder = cache_folder()
    compiled = folder is not None and all(path.exists() for path in _marks(folder, tensors, method))
    if not compiled:
        return process_bytes(len(tensors), remote=remote)
    return _WARM_BYTES + remote * REMOTE_BYTES + len(tensors) * TENSOR_BYTES


def remember_kernels(tensors: Iterable[TensorPlan], method: str) -> None:
    """Note beside the compiled kernels that those of a finished run are among them."""
    folder = cache_folder()
    if folder is None:
        return
    with contextlib.suppress(OSError):
        for path in _marks(folder, tensors, method):
            path.touch()


def _marks(folder: Path, tensors: Iterable[TensorPlan], method: str) -> set[Path]:
    """Name a file for each variant of kernels that a run compiles."""
    marks = set()
    for tensor in tensors:
        spec = tensor.spec
        made = "" if spec is None else f"{method} {spec.bits} {spec.symmetric} {spec.range} {spec.scale_dtype}"
        marks.add(folder / f"ran-{hashlib.sha256(f'{tensor.info.dtype} {made}'.encode()).hexdigest()[:16]}")
    return marks
