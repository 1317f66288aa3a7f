"""The ``quantization_config`` of compressed-tensors: which modules are quantized, and how."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, Final

from llmq.errors import InputError, UnsupportedError
from llmq.formats.patterns import Patterns
from llmq.spec import QuantSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["PACKED", "QUANT_METHOD", "SECTIONS", "Schemes", "quantization_config", "read_schemes", "stored_bits"]

PACKED: Final = "pack-quantized"
QUANT_METHOD: Final = "compressed-tensors"

_Key = tuple[str, int, bool, int]
"""Kind, bits as stored, symmetric, group size."""

_Shape = tuple[str | None, ...]
"""The parts of a module's name, without a leading ``model.`` and with None for numbers."""

_CLASS_NAME: Final = re.compile(r"[A-Z][A-Za-z0-9_]*")
SECTIONS: Final = ("quantization_config", "compression_config")
"""Keys of ``config.json`` that tell how a checkpoint is quantized."""


def stored_bits(spec: QuantSpec) -> int:
    """Width of a code in the file: the sign grid takes 2 bits."""
    return 2 if spec.bits == 1 and spec.symmetric else spec.bits


def quantization_config(
    modules: Mapping[str, tuple[QuantSpec, str]], ignore: Sequence[str], extra: dict[str, Any]
) -> dict[str, Any]:
    r"""Build ``quantization_config``. Its groups are disjoint, and every one names its format.

    Parameters
    ----------
    modules : mapping
        Spec and kind (``"Linear"`` or ``"Embedding"``) by name of each quantized module. A group size of -1 is
        written as one scale per channel. Modules that differ only in numbers are named by one anchored regex, with
        or without a leading ``model.``, which loaders add or drop: any number where all share a scheme.
    ignore : sequence of str
        Modules that are linears or embeddings but dense; a tied head always.
    extra : dict
        What llmq wants to remember; kept under ``"llmq"``.

    >>> config = quantization_config({"model.layers.0.mlp.up_proj": (QuantSpec(), "Linear")}, ["lm_head"], {})
    >>> config["config_groups"]["group_0"]["targets"]
    ['re:^(?:model\\.)?layers\\.\\d+\\.mlp\\.up_proj$']
    """
    groups: defaultdict[_Key, defaultdict[_Shape, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, (spec, kind) in modules.items():
        groups[_key(spec, kind)][_shape_of(name)].append(name)
    shared = Counter(shape for shapes in groups.values() for shape in shapes)
    targets = {
        key: [target for shape, names in shapes.items() for target in _targets(shape, names, alone=shared[shape] == 1)]
        for key, shapes in groups.items()
    }
    return {
        "quant_method": QUANT_METHOD,
        "format": PACKED,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": list(ignore),
        "config_groups": {f"group_{n}": _group(key, names) for n, (key, names) in enumerate(targets.items())},
        "llmq": extra,
    }


def _key(spec: QuantSpec, kind: str) -> _Key:
    return kind, stored_bits(spec), spec.symmetric, spec.group_size


def _shape_of(name: str) -> _Shape:
    parts = name.removeprefix("model.").split(".")
    return tuple(None if part.isdecimal() and part.isascii() else part for part in parts)


def _one_of(numbers: set[str]) -> str:
    ordered = sorted(numbers, key=int)
    return ordered[0] if len(ordered) == 1 else f"(?:{'|'.join(ordered)})"


def _targets(shape: _Shape, names: list[str], *, alone: bool) -> list[str]:
    """Name modules that differ only in numbers, `alone` if no other scheme has modules of that shape."""
    if None not in shape:
        return names
    found = [name.removeprefix("model.").split(".") for name in names]
    numbers = [{parts[slot] for parts in found} for slot, part in enumerate(shape) if part is None]
    if not alone and math.prod(map(len, numbers)) != len(names):
        return names
    slots = (r"\d+" if alone else _one_of(choices) for choices in numbers)
    body = r"\.".join(next(slots) if part is None else re.escape(part) for part in shape)
    return [rf"re:^(?:model\.)?{body}$"]


def _group(key: _Key, targets: list[str]) -> dict[str, Any]:
    _, bits, symmetric, group_size = key
    grouping = {"strategy": "channel"} if group_size == -1 else {"strategy": "group", "group_size": group_size}
    return {
        "targets": targets,
        "format": PACKED,
        "weights": {"num_bits": bits, "type": "int", "symmetric": symmetric, **grouping, "dynamic": False},
        "input_activations": None,
        "output_activations": None,
    }


def read_schemes(config: Mapping[str, Any]) -> Schemes | None:
    """Parse the quantization section of a ``config.json``; None where it has none.

    Raises
    ------
    UnsupportedError
        Quantized in any way but weights packed by compressed-tensors.
    InputError
        A malformed section.
    """
    section = quantization_section(config)
    if section is None:
        if isinstance(config.get("quantization"), dict):
            raise UnsupportedError("quantized by mlx, which llmq does not read", file="config.json")
        return None
    method = section.get("quant_method", QUANT_METHOD if "config_groups" in section else None)
    if method != QUANT_METHOD:
        raise UnsupportedError(f"quantized by {method}, which llmq does not read", file="config.json")
    return Schemes(section)


def quantization_section(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Find the quantization section of a ``config.json``, of its text model too; None where there is none."""
    text = config.get("text_config")
    for holder in (config, text if isinstance(text, dict) else {}):
        for key in SECTIONS:
            section = holder.get(key)
            if section is not None and not isinstance(section, dict):
                raise InputError(f"{key} is not an object", file="config.json")
            if section:
                return dict(section)
    return None


class Schemes:
    """How the modules of a compressed-tensors checkpoint are quantized.

    Parameters
    ----------
    section : mapping
        ``quantization_config``.

    Raises
    ------
    UnsupportedError
        A group in another format than packed integer weights.
    InputError
        A malformed section.
    """

    def __init__(self, section: Mapping[str, Any]) -> None:
        groups = section.get("config_groups")
        ignore = section.get("ignore") or []
        if not isinstance(groups, dict) or not isinstance(ignore, list):
            raise InputError("quantization_config has no config_groups, or a malformed ignore", file="config.json")
        for key in ("transform_config", "sparsity_config"):
            value = section.get(key)
            if isinstance(value, dict) and (value.get("config_groups") or value.get("format", "dense") != "dense"):
                raise UnsupportedError(f"{key} is not supported", file="config.json")
        self._ignore = [str(name) for name in ignore]
        self._targets: dict[str, QuantSpec] = {}
        for name, group in groups.items():
            spec = _spec(group, section.get("format"), name)
            for target in _strings(group.get("targets"), name):
                self._targets[target] = spec
        self._regexes = sorted(target for target in self._targets if target.startswith("re:"))
        self._classes = sorted(target for target in self._targets if _CLASS_NAME.fullmatch(target))
        patterns = {name[3:] for name in (*self._ignore, *self._targets) if name.startswith("re:")}
        self._patterns = Patterns(sorted(patterns))

    def find(self, module: str) -> QuantSpec | None:
        """Return the scheme of a module as compressed-tensors would choose it; None for a dense one.

        Exact names go before regexes, and these, sorted, before class names, which are taken to mean any module.
        """
        if any(self._names(pattern, module) for pattern in self._ignore):
            return None
        if module in self._targets:
            return self._targets[module]
        named = (target for target in self._regexes if self._names(target, module))
        return next((self._targets[target] for target in (*named, *self._classes)), None)

    def scheme(self, module: str) -> QuantSpec:
        """Return the scheme of a module whose tensors are packed; InputError where no group targets it."""
        found = self.find(module)
        if found is None:
            raise InputError("packed, but no group of quantization_config targets it", tensor=module)
        return found

    def _names(self, pattern: str, module: str) -> bool:
        return self._patterns.match(pattern[3:], module) if pattern.startswith("re:") else pattern == module


def _strings(value: Any, group: str) -> Iterable[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f"{group} has no list of targets", file="config.json")
    return value


def _spec(group: Any, top_format: Any, name: str) -> QuantSpec:
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise UnsupportedError(f"{name} does not quantize weights", file="config.json")
    stored = group.get("format") or top_format or PACKED
    if stored not in (PACKED, "mixed-precision"):
        raise UnsupportedError(f"format {stored!r} of {name} is not supported", file="config.json", expected=PACKED)
    if weights.get("type", "int") != "int" or weights.get("dynamic"):
        raise UnsupportedError(f"{name} holds no static integer weights", file="config.json")
    size = weights.get("group_size")
    strategy = weights.get("strategy")
    if strategy is None:
        strategy = "group" if isinstance(size, int) and size > 0 else "channel"
    if strategy not in ("group", "channel"):
        raise UnsupportedError(f"strategy {strategy!r} of {name} is not supported", file="config.json")
    if weights.get("actorder") not in (None, False, "weight", "static"):
        raise UnsupportedError(f"{name} has its columns in activation order", file="config.json")
    bits, symmetric = weights.get("num_bits", 8), weights.get("symmetric", True)
    group_size = size if strategy == "group" else -1
    if type(bits) is not int or type(group_size) is not int or type(symmetric) is not bool:
        raise InputError(f"malformed weights of {name}", file="config.json")
    if bits == 1 and symmetric:  # its codes stand for -s and 0, which are no sign grid; ours are stored as 2-bit codes
        raise UnsupportedError(f"{name} is symmetric with one bit", file="config.json")
    try:
        return QuantSpec(bits=bits, group_size=group_size, symmetric=symmetric)
    except ValueError as error:
        raise InputError(f"{name}: {error}", file="config.json") from None
