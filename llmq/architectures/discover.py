"""Which modules of an architecture unknown to llmq are `nn.Linear`: asked of transformers, on the meta device.

It is asked in a process of its own, so that torch takes no memory where weights are streamed, and no installation of
torch, however broken, can end a run.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Discovery", "discover"]

_log = logging.getLogger("llmq")

_SECONDS: Final = 120
_MEMORY: Final = 2 << 30
_NAMES_CODE: Final = re.compile(r"^auto_map$|_implementation|^use_kernels$|pretrained_backbone")


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
    if not isinstance(config.get("model_type"), str) or importlib.util.find_spec("torch") is None:
        return None
    stems = {name.removesuffix(".weight") for name in tensor_names}
    if any("layer" in key and isinstance(value, int) and value > len(stems) for key, value in config.items()):
        _log.info("config.json counts more layers than there are tensors")
        return None
    told = json.dumps(_without_code(config))
    child = [sys.executable, "-P", "-m", __name__]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    try:
        run = subprocess.run(  # noqa: S603
            child, input=told, capture_output=True, text=True, timeout=_SECONDS, check=True, env=offline
        )
        found = json.loads(run.stdout)
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
        _log.info("transformers cannot instantiate model type %r: %s", config["model_type"], lines[-1][:300])
        return None
    prefix = found["prefix"] + "."
    spelled = {spelling for name in found["linears"] for spelling in (name, name.removeprefix(prefix))}
    return Discovery(frozenset(spelled & stems), found["transposed"])


def _without_code(config: Any) -> Any:
    """A config without the fields by which it could make transformers fetch code: kernels of the Hub, classes."""
    if isinstance(config, list):
        return [_without_code(item) for item in config]
    if not isinstance(config, dict):
        return config
    kept = {key: value for key, value in config.items() if not _NAMES_CODE.search(key)}
    return {key: _without_code(value) for key, value in kept.items()}


def _instantiate(config: dict[str, Any]) -> dict[str, Any]:
    """Names of the linears of an architecture, in a process that has torch."""
    import torch
    import transformers

    parsed = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(parsed, trust_remote_code=False)
    modules = list(model.named_modules())
    return {
        "linears": [name for name, module in modules if isinstance(module, torch.nn.Linear)],
        "prefix": model.base_model_prefix,
        "transposed": any(type(module).__name__ == "Conv1D" for _, module in modules),
    }


def _bound() -> None:
    """Bound memory and time, where the system can: a config can ask for a list of a billion layers."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for name, most in (("RLIMIT_DATA", _MEMORY), ("RLIMIT_CPU", _SECONDS)):
        _, hard = resource.getrlimit(getattr(resource, name))
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(getattr(resource, name), (bound, hard))


if __name__ == "__main__":
    _bound()
    sys.stdout.write(json.dumps(_instantiate(json.load(sys.stdin))))
