"""The parsers that read what strangers wrote, each as a function of bytes that says what is wrong."""

from __future__ import annotations

import json
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from safetensors import SafetensorError, deserialize

from llmq.architectures import decoder_config
from llmq.architectures.roles import layer_index, roles
from llmq.checkpoint import json_strict, manifest
from llmq.checkpoint.dtypes import NUMPY_DTYPES
from llmq.checkpoint.header import parse_header
from llmq.checkpoint.index import parse_index
from llmq.checkpoint.sealed import seal
from llmq.checkpoint.stacked import per_expert
from llmq.errors import LlmqError
from llmq.formats import patterns
from llmq.formats.compressed_tensors import decode
from llmq.formats.detect import already_quantized
from llmq.formats.schemes import quantization_config, read_schemes
from llmq.plan import recipe_files
from llmq.spec import QuantSpec
from tortures.attacks import folders, headers, packed
from tortures.attacks.sound import CONFIG

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TARGETS", "Target"]


_DATA: Final = 20
"""Bytes behind a header."""

_MOST: Final = 1 << 16
_NAMES: Final = (
    "lm_head",
    "model.layers.0.mlp.up_proj",
    "model.layers.11.self_attn.q_proj",
    "a" * 40 + "!",
    "model.embed_tokens",
)


@dataclass(frozen=True)
class Target:
    """A parser.

    Parameters
    ----------
    attempt : callable
        Gives the parser some bytes; returns what is wrong, if only disagreement is, else nothing. Errors of llmq are
        how a parser refuses; any other is a crash.
    seeds : callable
        Returns documents to begin with.
    """

    attempt: Callable[[bytes], str]
    seeds: Callable[[], list[bytes]]


def _entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _header_seeds() -> list[bytes]:
    sound = {
        "__metadata__": {"a": "b"}, "x": _entry("F16", [2, 3], 0, 12), "model.layers.0.y.weight": _entry("I64", [], 12,
        20),
        "z": _entry("BOOL", [0, 7], 20, 20),
    }  # fmt: skip
    stack = {"model.layers.0.mlp.experts.gate_up_proj": _entry("U8", [2, 2, 5], 0, 20)}
    handmade = [case[1][8:] for case in headers.handmade()]
    return [json.dumps(found).encode() for found in (sound, stack, {"a": _entry("U8", [20], 0, 20)}, {})] + handmade


def _header(data: bytes) -> str:
    """Differential: nothing may be accepted that the safetensors library refuses, or reads as something else."""
    try:
        found = parse_header(data, file="f", file_size=8 + len(data) + _DATA)
    except LlmqError:
        return ""
    try:
        theirs = dict(
            deserialize(  # type: ignore[no-untyped-call]
                struct.pack("<Q", len(data)) + data + bytes(_DATA)
            )
        )
    except SafetensorError as error:
        return f"accepted, and refused by safetensors: {error}"
    tensors = {info.name: info for info in found.tensors}
    if {name: list(info.shape) for name, info in tensors.items()} != {name: t["shape"] for name, t in theirs.items()}:
        return "read as something else by safetensors"
    for model_type in ("qwen3_moe", "llama"):
        try:
            per_expert(tensors, {"model_type": model_type})
        except LlmqError:
            continue
    roles({name: info.shape for name, info in tensors.items()}, linears=None, known_family=True)
    already_quantized({}, tensors)
    for name in tensors:
        layer_index(name)
    return ""


def _index_seeds() -> list[bytes]:
    sound = {"metadata": {"total_size": 5}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    hostile = [{"weight_map": {"a": target}} for target in folders.TARGETS]
    return [json.dumps(found).encode() for found in (sound, *hostile)]


def _index(data: bytes) -> str:
    try:
        found = parse_index(data)
    except LlmqError:
        return ""
    for shard in found.values():
        if Path(shard).name != shard or not shard.endswith(".safetensors") or set(shard) & set("/\\:\0\n "):
            return f"{shard!r} passes for a plain name"
    return "" if json.loads(data)["weight_map"] == found else "read as something else by json"


def _json_seeds() -> list[bytes]:
    return [
        *_index_seeds()[:3],
        *_scheme_seeds(),
        b'["\\ud83d\\ude00", 1e5, -0, 1.5e-300, null]',
        b'{"a": {"b": [{"c": 1}]}}',
    ]


def _json(data: bytes) -> str:
    try:
        found = json_strict.loads(data, "f")
    except LlmqError:
        return ""
    if json.loads(data) != found:
        return "read as something else by json"
    return "" if json_strict.loads(json_strict.dumps(found), "f") == found else "written as something else"


_FOLDER: Final = tempfile.TemporaryDirectory(prefix="llmq-fuzz-")
_PLACE: Final = Path(_FOLDER.name)


def _give(module: Any, data: bytes) -> None:
    """Have a module read these bytes as its file: writing one takes longer than parsing it."""
    assert callable(module.read_small)
    module.read_small = lambda _path, _roots: data


def _manifest_seeds() -> list[bytes]:
    (_PLACE / "config.json").write_bytes(b"{}")
    (_PLACE / "llmq.json").write_bytes(b"")
    entry = {"size": 2, "sha256": "0" * 64}
    sound = {
        "schema": 1,
        "llmq_version": "1",
        "files": {"config.json": entry},
        "tensors": {},
        "settings": {},
        "source": {},
    }
    listed = [sound | {"files": {name: entry}} for name in ("../x", "/etc/passwd", "README.md", "a\\b", "C:x", "..")]
    return [json.dumps(found).encode() for found in (sound, *listed)]


def _manifest(data: bytes) -> str:
    _give(manifest, _sealed(data))
    try:
        found = manifest.read_manifest(_PLACE)
    except LlmqError:
        return ""
    if found is None:
        return "not there"
    wrong = [name for name in found["files"] if name not in ("config.json", "llmq.json") and not _is_card(name)]
    return f"lists {wrong[0]!r}, which is not there" if wrong else ""


def _sealed(data: bytes) -> bytes:
    """A manifest with the right checksum of itself, or one of two inputs would never get past that."""
    try:
        value = json.loads(data)
        value.pop("sha256", None)
        return seal(value)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return data


def _is_card(name: str) -> bool:
    return name == "README.md" or name.startswith(("LICENSE", "LICENCE", "NOTICE", "USE_POLICY"))


def _recipe_seeds() -> list[bytes]:
    (_PLACE / "recipe.json").write_bytes(b"")
    spec = {"bits": 4, "group_size": 32, "symmetric": True}
    sound = {
        "schema": 1, "llmq_version": "1", "method": "rtn", "for": "llmq", "range": "full", "signed_scale": True,
        "goal": None,
        "tensors": {"a": spec, "b": None},
    }  # fmt: skip
    return [json.dumps(sound).encode(), json.dumps(sound | {"range": "narrow", "for": "vllm"}).encode()]


def _recipe(data: bytes) -> str:
    _give(recipe_files, data)
    try:
        found = recipe_files.read_recipe(_PLACE / "recipe.json")
    except LlmqError:
        return ""
    return "" if all(a.bits is None or 1 <= a.bits <= 8 for a in found.assigned) else "bits out of range"


def _scheme_seeds() -> list[bytes]:
    spec = QuantSpec(bits=4, group_size=32)
    section = quantization_config({"model.layers.0.mlp.up_proj": (spec, "Linear")}, ["lm_head"], {})
    other = section | {"ignore": ["re:.*lm_head"]}
    evil = [section | {"ignore": [pattern]} for pattern in packed.EVIL]
    return [json.dumps(found).encode() for found in (section, other, *evil)]


def _schemes(data: bytes) -> str:
    value = _loaded(data)
    setattr(patterns, "_SECONDS", 0.01)  # noqa: B010  (that the bound holds is tested elsewhere)
    try:
        found = read_schemes({"quantization_config": value})
        if found is not None:
            for name in _NAMES:
                found.find(name)
    except LlmqError:
        pass
    return ""


def _config_seeds() -> list[bytes]:
    moe = {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    ropes = (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        {"type": "dynamic", "factor": 2.0},
    )
    found = [
        CONFIG,
        CONFIG | moe,
        CONFIG | {"model_type": "mixtral", "num_local_experts": 8},
        CONFIG | {"model_type": "mistral"},
    ]
    found += [CONFIG | {"rope_scaling": rope, "model_type": "qwen2"} for rope in ropes]
    return [json.dumps(config).encode() for config in found]


def _config(data: bytes) -> str:
    value = _loaded(data)
    if not isinstance(value, dict):
        return ""
    try:
        found = decoder_config(value)
        already_quantized(value, ())
    except LlmqError:
        return ""
    sound = (
        found.n_heads % found.n_kv_heads == 0
        and len(found.sliding_window) == found.n_layers
        and found.head_dim % 2 == 0
    )
    return "" if sound else "sizes that do not fit each other"


def _loaded(data: bytes) -> Any:
    try:
        return json_strict.loads(data, "f")
    except LlmqError:
        return None


def _packed_seeds() -> list[bytes]:
    symmetric = {
        "spec": [4, 32, True], "shape": [128, 64],
        "parts": {"weight_packed": ["I32", [128, 8]], "weight_scale": ["BF16", [128, 2]], "weight_shape": ["I64", [2]]},
    }  # fmt: skip
    points = {"weight_zero_point": ["I32", [16, 2]], "weight_g_idx": ["I32", [64]]}
    asymmetric = symmetric | {"spec": [4, 32, False], "parts": symmetric["parts"] | points}  # type: ignore[operator]
    three = {
        "spec": [3, -1, True], "shape": [5, 40],
        "parts": {"weight_packed": ["I32", [5, 4]], "weight_scale": ["F32", [5, 1]], "weight_shape": ["I64", [2]]},
    }  # fmt: skip
    return [json.dumps(found).encode() for found in (symmetric, asymmetric, three)]


def _packed(data: bytes) -> str:
    """Arrays of the dtypes and shapes that a description has, decoded by its scheme."""
    value = _loaded(data)
    try:
        bits, group_size, symmetric = value["spec"]
        scheme = QuantSpec(bits=bits, group_size=group_size, symmetric=symmetric)
        arrays = {suffix: _array(*part) for suffix, part in value["parts"].items()}
        if arrays["weight_shape"].dtype == np.int64 and arrays["weight_shape"].shape == (2,):
            arrays["weight_shape"] = np.array(value["shape"], np.int64)
    except (TypeError, ValueError, KeyError, OverflowError, AttributeError):
        return ""  # no description
    try:
        found = decode(arrays, scheme, "m")
    except LlmqError:
        return ""
    try:
        matrix = found.matrix
    except (TypeError, ValueError):
        return ""
    wide = found.dequantize()
    return "" if wide.shape == found.shape and matrix.columns == found.shape[1] else "decoded to another shape"


def _array(code: str, shape: list[int]) -> np.ndarray:
    if not all(type(size) is int and size >= 0 for size in shape) or int(np.prod(shape, dtype=np.float64)) > _MOST:
        raise ValueError("too large")
    dtype = NUMPY_DTYPES[code]
    count = int(np.prod(shape)) * dtype.itemsize
    return np.resize(np.arange(256, dtype=np.uint8), count).view(dtype).reshape(shape)


TARGETS: Final[dict[str, Target]] = {
    "header": Target(_header, _header_seeds),
    "index": Target(_index, _index_seeds),
    "json": Target(_json, _json_seeds),
    "manifest": Target(_manifest, _manifest_seeds),
    "recipe": Target(_recipe, _recipe_seeds),
    "schemes": Target(_schemes, _scheme_seeds),
    "config": Target(_config, _config_seeds),
    "packed": Target(_packed, _packed_seeds),
}
"""By name."""
