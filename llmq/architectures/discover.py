"""Which modules of an architecture unknown to llmq are `nn.Linear`: asked of transformers, on the meta device."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_log = logging.getLogger("llmq")

__all__ = ["Discovery", "discover"]


@dataclass(frozen=True)
class Discovery:
    """What instantiating an architecture without weights told.

    Parameters
    ----------
    linears : frozenset of str
        Names of `nn.Linear` modules as the checkpoint spells them.
    transposed : bool
        Whether the architecture has `Conv1D` modules, which store `(in_features, out_features)`.
    """

    linears: frozenset[str]
    transposed: bool


def discover(config: Mapping[str, Any], tensor_names: Iterable[str]) -> Discovery | None:
    """Instantiate the architecture on the meta device and list its linears; None where that is not possible.

    Needs torch (the `hf` extra). No code of the checkpoint is ever run.
    """
    model_type = config.get("model_type")
    if not model_type or importlib.util.find_spec("torch") is None:
        return None
    import torch
    import transformers

    try:
        parsed = transformers.AutoConfig.for_model(**{k: v for k, v in config.items() if k != "auto_map"})
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(parsed, trust_remote_code=False)
    # Whatever a stranger's config makes transformers raise, the conservative rules take over.
    except Exception as error:
        _log.info("transformers cannot instantiate model type %r: %s", model_type, str(error).splitlines()[0])
        return None
    modules = dict(model.named_modules())
    exact = {name for name, module in modules.items() if isinstance(module, torch.nn.Linear)}
    prefix = model.base_model_prefix + "."
    spelled = exact | {name.removeprefix(prefix) for name in exact}
    stems = {name.removesuffix(".weight") for name in tensor_names}
    transposed = any(type(module).__name__ == "Conv1D" for module in modules.values())
    return Discovery(frozenset(spelled & stems), transposed)
