"""One decoder block of a checkpoint in torch, built by transformers from `config.json`: what gradients go through."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TorchBlock"]


class TorchBlock:
    """The decoder block at one place of a model, in float32.

    The module, its causal mask and its rotary positions are those of transformers: whatever family it knows, its own
    code runs. Calls change nothing, so that several threads may make them at once.

    Parameters
    ----------
    config : mapping
        `config.json` of a dense decoder.
    layer : int
        Where the block stands.
    context : int
        Tokens of the windows that will be run, each from its beginning.
    weights : mapping of float32 tensors
        All parameters, by what follows `model.layers.N.` in their names; taken as they are, not copied.

    Attributes
    ----------
    parameters : dict of nn.Parameter
        The same tensors.

    Raises
    ------
    RuntimeError
        Parameters that the block has not, or has in another shape, or that are missing.
    """

    def __init__(
        self, config: Mapping[str, Any], layer: int, context: int, *, weights: Mapping[str, torch.Tensor]
    ) -> None:
        model, hidden = _model_of_one(config, layer)
        self._block: nn.Module = model.layers[0]
        # What the model gives its blocks beside hidden states: mask, positions, their rotations.
        recorder = _Recorder()
        model.layers[0] = recorder
        with torch.no_grad():
            model(inputs_embeds=torch.zeros(1, context, hidden), use_cache=False)
        self._arguments = recorder.arguments
        self._block.load_state_dict(dict(weights), assign=True)
        self.parameters = dict(self._block.named_parameters())

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Run windows of hidden states, float32 (windows, context, hidden_size), through the block."""
        made = self._block(x, **self._arguments)
        found: torch.Tensor = made[0] if isinstance(made, tuple) else made
        return found


class _Recorder(nn.Module):
    """Stands where a block stood, and remembers what it is called with."""

    arguments: dict[str, Any]

    def forward(self, x: torch.Tensor, **arguments: Any) -> torch.Tensor:
        self.arguments = arguments
        return x


def _model_of_one(config: Mapping[str, Any], layer: int) -> tuple[Any, int]:
    """A decoder with the one block of a place, its weights on no device; and its width."""
    whole = AutoConfig.for_model(**config)
    one = copy.deepcopy(whole)
    one.num_hidden_layers = 1
    if getattr(whole, "layer_types", None):
        one.layer_types = [whole.layer_types[layer]]
    with torch.device("meta"):
        model = AutoModel.from_config(one, attn_implementation="sdpa", dtype=torch.float32)
    model.rotary_emb = type(model.rotary_emb)(config=one)  # frequencies are computed, not read
    model.norm = nn.Identity()
    return model.eval(), one.hidden_size
