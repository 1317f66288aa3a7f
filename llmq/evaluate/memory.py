"""What an evaluation takes of memory, known beforehand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llmq.errors import ResourceError
from llmq.plan.budget import PROCESS_BYTES
from llmq.plan.calibrated import HIDDEN_BYTES
from llmq.runtime.cache import kv_bytes
from llmq.runtime.linear import DenseLinear, PackedLinear
from llmq.runtime.residency import working_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmq.evaluate.blocks import LanguageModel
    from llmq.runtime.linear import Linear

__all__ = ["logit_rows", "states_budget"]

_LOGIT_BYTES: Final = 32 << 20
"""Logits held at a time, of each model."""

_TABLES: Final = 16
"""Arrays as large as a piece of the logits that comparing two models has at once, as float32: both logits, both
logarithms, and what a divergence is summed from, in float64."""


def logit_rows(vocab_size: int) -> int:
    """Positions whose logits are made at once, so that a large vocabulary takes little memory."""
    return max(16, min(256, _LOGIT_BYTES // (4 * vocab_size)))


def states_budget(models: Sequence[LanguageModel], context: int, max_memory: int | None) -> int:
    """Bytes that the hidden states of each model may take in memory, of a limit on the whole process.

    Counted are anonymous memory and the mapped weights that are in use: the largest block, or all heads. The hidden
    states of what does not fit go to a file, so that any text fits where one window does.

    Parameters
    ----------
    models : sequence of Model
    context : int
        Tokens of the longest window.
    max_memory : int or None
        Bytes; None gives `HIDDEN_BYTES` to all hidden states together, and sets no limit.

    Raises
    ------
    ResourceError
        The limit is too small without any hidden states.
    """
    if max_memory is None:
        return HIDDEN_BYTES // len(models)
    heads = sum(_bytes(m.decoder.head) for m in models) + 4 * _TABLES * _logits(models[0])
    need = PROCESS_BYTES + sum(_zero_points(m) for m in models) + max(heads, *(_block(m, context) for m in models))
    if need > max_memory:
        least = -(-need >> 20)
        raise ResourceError(
            "memory limit too small to evaluate",
            expected=f"{least} MiB",
            found=f"{max_memory >> 20} MiB",
            hint=f"--max-memory {least}MiB, or a smaller --context",
        )
    return (max_memory - need) // len(models)


def _logits(model: LanguageModel) -> int:
    return logit_rows(model.config.vocab_size) * model.config.vocab_size


def _block(model: LanguageModel, context: int) -> int:
    """Bytes of the largest block with what it works in for a window."""
    config = model.config
    cache = kv_bytes(config, context, model.kv_bits) // config.n_layers
    return (
        working_bytes(config, context)
        + cache
        + max(sum(_bytes(linear) for linear in block.linears.values()) for block in model.decoder.blocks)
    )


def _bytes(linear: Linear) -> int:
    if isinstance(linear, PackedLinear):
        return int(linear.weight.packed.nbytes + linear.weight.scale.nbytes)
    assert isinstance(linear, DenseLinear)
    return int(linear.weight.nbytes)


def _zero_points(model: LanguageModel) -> int:
    """Bytes of what is unpacked when a model is loaded, and stays."""
    linears = [model.decoder.head, *(linear for block in model.decoder.blocks for linear in block.linears.values())]
    packed = [linear.weight.zero_point for linear in linears if isinstance(linear, PackedLinear)]
    return sum(int(points.nbytes) for points in packed if points is not None)
