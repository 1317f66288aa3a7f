"""What calibrating takes: the memory of one block with the statistics of its inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from llmq.architectures import decoder_config
from llmq.architectures.roles import layer_index
from llmq.errors import ResourceError, UnsupportedError
from llmq.methods import METHODS
from llmq.plan.budget import PROCESS_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmq.architectures import DecoderConfig
    from llmq.methods.protocol import Needs
    from llmq.plan.plan import Plan

__all__ = [
    "CALIBRATION_TOKENS",
    "HIDDEN_BYTES",
    "SHARE_TOKENS",
    "TOKENIZER_BYTES",
    "TOKENS",
    "WINDOW",
    "WINDOWS_AT_ONCE",
    "calibration_bytes",
    "forward_bytes",
    "shares_bytes",
    "with_calibration",
]

CALIBRATION_TOKENS: Final = 8192
"""Tokens of the text by default: a thousand give most of what weighing by energies has to give; second moments want
about as many as the widest layer has inputs."""

SHARE_TOKENS: Final = 2048
"""Tokens that tell how much each weight matters."""

HIDDEN_BYTES: Final = 256 << 20
"""Hidden states of more bytes are kept in a file."""

WINDOW: Final = 512
"""Tokens that are read from the beginning."""

TOKENS: Final = 512
"""Tokens that go through a block at a time."""

TOKENIZER_BYTES: Final = 128 << 20
"""Transformers, and a tokenizer that it makes."""

_PANEL_BYTES: Final = 80 << 20
"""Working memory of feeding errors back: some rows as floats, three times, and as codes."""

_PASS_BYTES: Final = 128 << 20
"""Rows of weights as floats in a pass of the text, and what the allocator keeps of passes: measured on blocks of 7 B,
where peaks were 142 MB above what is counted here."""


_TORCH_BYTES: Final = 160 << 20
"""Torch and a model of transformers: measured."""

WINDOWS_AT_ONCE: Final = 2
"""Windows of a step of training: the gradients of each take as much memory as the block in float32."""

_TRAINED_BYTES: Final = 4 * (4 + WINDOWS_AT_ONCE)
"""Of each trained weight: as it is learned and as it is rounded, the two means of Adam, and its gradients."""


def calibration_bytes(config: DecoderConfig, block: tuple[int, int], tokens: int, *, needs: Needs) -> int:
    """Anonymous memory of calibrating one block, beside the process itself.

    Parameters
    ----------
    config : DecoderConfig
    block : (int, int)
        Bytes of the largest block in the source, and of what it becomes.
    tokens : int
        Of the text.
    needs : str
        What the method needs of the inputs; see `Method`.
    """
    hidden, inner, heads = config.hidden_size, config.intermediate_size, config.n_heads * config.head_dim
    states = 4 * tokens * hidden * (2 if needs == "block" else 1)
    window = 4 * max(TOKENS, WINDOW) * (4 * hidden + 2 * inner + 4 * heads)
    # Second moments of the four inputs of a block: the first weights to need them need a copy.
    moments = 4 * (2 * hidden**2 + heads**2 + inner**2 + max(hidden, heads) ** 2) + _PANEL_BYTES
    working = window + (_PASS_BYTES if needs == "energy" else moments)
    if needs == "block":
        working = _TORCH_BYTES + max(working, window + _training_bytes(config))
    return sum(block) + min(states, HIDDEN_BYTES) + states // 4 + working


def _training_bytes(config: DecoderConfig) -> int:
    """Bytes of training a block, beside its states and what it is stored in."""
    hidden, inner, heads = config.hidden_size, config.intermediate_size, config.n_heads * config.head_dim
    weights = 2 * hidden * (heads + config.n_kv_heads * config.head_dim) + 3 * hidden * inner
    # What is kept of a window for its gradients: the residual stream and norms, queries and the like, and the MLP.
    activations = 4 * WINDOW * (12 * hidden + 6 * heads + 6 * inner)
    return _TRAINED_BYTES * weights + 4 * hidden * max(inner, heads) + WINDOWS_AT_ONCE * activations


def forward_bytes(plan: Plan, decoder: DecoderConfig, tokens: int, *, needs: Needs = "energy") -> int:
    """Peak memory of a process that takes a text through the blocks of a plan's source; see `calibration_bytes`."""
    blocks: dict[int, tuple[int, int]] = {}
    for tensor in plan.tensors:
        layer = layer_index(tensor.name)
        if layer is not None:
            before, after = blocks.get(layer, (0, 0))
            blocks[layer] = before + tensor.info.nbytes, after + tensor.output_bytes
    largest = max(blocks.values(), default=(0, 0))
    return PROCESS_BYTES + TOKENIZER_BYTES + calibration_bytes(decoder, largest, tokens, needs=needs)


def shares_bytes(plan: Plan, decoder: DecoderConfig, tokens: int) -> int:
    """Peak memory of measuring how much weights matter: watched activations and their squares are copies."""
    _refuse_experts(decoder)
    copies = 4 * TOKENS * (8 * decoder.hidden_size + 2 * decoder.intermediate_size)
    return forward_bytes(plan, decoder, tokens) + copies


def _refuse_experts(decoder: DecoderConfig) -> None:
    if decoder.experts is not None:
        raise UnsupportedError("mixtures of experts cannot be calibrated", hint="--method mse needs no data")


def with_calibration(plan: Plan, config: Mapping[str, Any], tokens: int, max_memory: int | None) -> Plan:
    """Return a plan with the peak memory of a calibrated run.

    Raises
    ------
    UnsupportedError
        An architecture that llmq cannot run, so that it cannot calibrate it.
    ResourceError
        It does not fit into `max_memory`.
    """
    try:
        decoder = decoder_config(config)
    except UnsupportedError as error:
        raise UnsupportedError(f"cannot be calibrated: {error}", hint="--method mse needs no data") from None
    _refuse_experts(decoder)
    need = forward_bytes(plan, decoder, tokens, needs=METHODS[plan.recipe.method].needs)
    if max_memory is not None and need > max_memory:
        least = -(-need >> 20)
        lighter = "gptq, imatrix or mse" if METHODS[plan.recipe.method].needs == "block" else "imatrix or mse"
        raise ResourceError(
            f"memory limit too small to calibrate {plan.recipe.method}",
            expected=f"{least} MiB",
            found=f"{max_memory >> 20} MiB",
            hint=f"--max-memory {least}MiB, or --method {lighter}, which take less",
        )
    return replace(plan, predicted_peak_bytes=max(plan.predicted_peak_bytes, need))
