"""Configurations that make no sense: ``config.json``, ``generation_config.json``, those of quantized checkpoints."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from tortures.attacks.case import MODEL, READERS, Case, append, edit_json, read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["cases"]

CONFIG: Final = "config.json"
_DEEP: Final = 100_000
_RUN: Final = {"quantize": 3, "inspect": -1, "generate": 3}
"""What a value that no model can have comes to: inspecting shows what can be shown."""

_ABSURD: Final[dict[str, Any]] = {
    "a string": "x", "a list": [64], "an object": {"a": 1}, "zero": 0, "negative": -1, "a float": 64.5, "true": True,
    "400 digits": 10**399, "2**31": 1 << 31,
}  # fmt: skip
"""What no size is."""

_SIZES: Final = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "vocab_size", "max_position_embeddings",
)  # fmt: skip


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _texts()
    yield from _sizes()
    yield from _other_fields()
    yield from _ropes()
    yield from _experts()
    yield from _generation_configs()
    yield from _quantized_already()


def text(name: str, content: str | bytes | Callable[[], str]) -> Callable[[Path], object]:
    """Give a file other content; a large one is made when it is needed."""

    def change(folder: Path) -> None:
        made = content() if callable(content) else content
        (folder / name).write_bytes(made if isinstance(made, bytes) else made.encode())

    return change


def malformed(name: str) -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Every way in which a JSON file is no JSON object."""
    texts: dict[str, str | bytes | Callable[[], str]] = {
        "empty": "", "null": "null", "a list": "[]", "a string": '"x"', "a number": "7", "cut": '{"a": [1, 2',
        "NaN": '{"a": NaN}', "minus infinity": '{"a": -Infinity}', "1e999": '{"a": 1e999}',
        "duplicate key": '{"a":1,"a":1}',
        "duplicate key deep inside": '{"a": {"b": [{"c": 1, "c": 2}]}}', "not UTF-8": b'{"a": "\xff\xfe"}',
        "half a surrogate pair": '{"a": "\\udfff"}', "lists 100,000 deep": '{"a": ' + "[" * _DEEP,
        "objects 100,000 deep": '{"a":' * _DEEP + "1" + "}" * _DEEP,
        "lists 900 deep": '{"a": ' + "[" * 900 + "]" * 900 + "}",
        "lists 300 deep": '{"a": ' + "[" * 300 + "]" * 300 + "}", "5000 digits": '{"a": ' + "9" * 5000 + "}",
        "a byte-order mark": b"\xef\xbb\xbf{}", "UTF-16": '{"a": 1}'.encode("utf-16"), "zeros": bytes(1000),
        "a web page": "<!DOCTYPE html><html>", "an LFS pointer": "version https://git-lfs.github.com/spec/v1",
        "30 million empty lists": lambda: '{"a": [' + "[]," * 30_000_000 + "[]]}",
        "30 million empty objects": lambda: '{"a": [' + "{}," * 30_000_000 + "{}]}",
        "trailing text": "{} {}", "comments": "{} // sound", "single quotes": "{'a': 1}",
    }  # fmt: skip
    for what, content in texts.items():
        yield what, text(name, content)


def _texts() -> Iterator[Case]:
    everywhere = dict.fromkeys(READERS, 3)
    for what, change in malformed(CONFIG):
        yield Case(f"config: {what}", change, everywhere, (CONFIG,))
    yield Case("config: of a size without end", _endless, everywhere, (CONFIG, "too long"))
    missing = {"quantize": 0, "inspect": 0, "generate": 3}
    yield Case("config: missing", lambda folder: (folder / CONFIG).unlink(), missing, ())


def _endless(folder: Path) -> None:
    import os

    os.truncate(folder / CONFIG, 1 << 40)


def _sizes() -> Iterator[Case]:
    for key in _SIZES:
        for what, value in _ABSURD.items():
            yield Case(f"config: {key} is {what}", edit_json(CONFIG, **{key: value}), _RUN, (CONFIG, key))
    for key in ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size", "num_attention_heads"):
        codes = {"quantize": 0, "inspect": 0, "generate": 3}
        yield Case(f"config: {key} is missing", edit_json(CONFIG, **{key: ...}), codes, (CONFIG, key))
    # Sizes that a model may have, but not this one: noticed when its weights are taken.
    for key, value in {
        "hidden_size": 128, "intermediate_size": 96, "vocab_size": 299, "num_hidden_layers": 3, "head_dim": 32,
        "num_attention_heads": 8, "num_key_value_heads": 4,
    }.items():  # fmt: skip
        yield Case(f"config: {key} of another model", edit_json(CONFIG, **{key: value}), {"inspect": 0, "generate": 3})
    huge = edit_json(CONFIG, num_hidden_layers=10_000)
    yield Case("config: 10,000 layers", huge, {"inspect": 0, "generate": 3}, ("model.layers.2.",))
    many = edit_json(CONFIG, num_hidden_layers=10**9)
    yield Case("config: 10**9 layers", many, _RUN, (CONFIG, "num_hidden_layers"))


def _other_fields() -> Iterator[Case]:
    for what, value in {"a number": 5, "a list": ["llama"], "an object": {"a": 1}, "true": True}.items():
        codes = {"quantize": 3, "inspect": -1, "generate": 3}
        yield Case(f"config: model_type is {what}", edit_json(CONFIG, model_type=value), codes, (CONFIG, "model_type"))
    odd = {"empty": "", "a path": "../../x", "an escape sequence": "\x1b[31mx\n", "100 kB": "x" * 100_000}
    for what, value in odd.items():
        change = edit_json(CONFIG, model_type=value)
        yield Case(f"config: model_type is {what}", change, {"quantize": -1, "inspect": 0, "generate": 4})
    gpt2 = edit_json(CONFIG, model_type="gpt2")
    yield Case("config: model_type gpt2", gpt2, {"quantize": 4}, ("gpt2",), "nn.Linear")
    yield from _of_other_types()
    yield from _other_features()
    for what, value in {"a string": "x", "a list": [[1]], "a float": 1.5, "an object": {"a": 1}, "true": True}.items():
        change = edit_json(CONFIG, eos_token_id=value)
        yield Case(f"config: eos_token_id is {what}", change, {"inspect": 0, "generate": 3}, (CONFIG, "eos_token_id"))
    for what, value in {"negative": -1, "of no token": 10**6, "400 digits": 10**399}.items():
        yield Case(f"config: eos_token_id is {what}", edit_json(CONFIG, eos_token_id=value), {"generate": -1})
    code = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "other/repo--evil.Model"}
    maps: dict[str, Any] = {"an object": code, "a list": [1], "a string": "x"}
    for what, found in maps.items():
        yield Case(f"code: auto_map is {what}", edit_json(CONFIG, auto_map=found), dict.fromkeys(READERS, 0))
    for key in ("text_config", "quantization_config", "vision_config"):
        for what, section in {"a list": [1], "a string": "x", "a number": 3}.items():
            yield Case(f"config: {key} is {what}", edit_json(CONFIG, **{key: section}), dict.fromkeys(READERS, -1))
    yield Case("config: 200 kB of keys", _many_keys, dict.fromkeys(READERS, 0))
    yield from _unknown()


def _of_other_types() -> Iterator[Case]:
    fields: dict[str, dict[str, Any]] = {
        "rms_norm_eps": {"a string": "x", "zero": 0, "negative": -1e-5, "a list": [], "400 digits": 10**399,
        "1e301": 1e301},
        "tie_word_embeddings": {"a string": "yes", "a number": 1, "a list": []},
        "attention_bias": {"a string": "yes", "a number": 1}, "mlp_bias": {"a list": [], "a number": 0.5},
    }  # fmt: skip
    for key, values in fields.items():
        for what, value in values.items():
            yield Case(f"config: {key} is {what}", edit_json(CONFIG, **{key: value}), _RUN, (CONFIG, key))


def _other_features() -> Iterator[Case]:
    refused: dict[str, tuple[Any, ...]] = {
        "hidden_act": ("gelu", 5, [], {"a": 1}), "sliding_window": (4, "x", []), "layer_types": (5, ["x"], {"a": 1}),
        "attn_logit_softcapping": (50.0, "x"), "partial_rotary_factor": (0.5, [1]), "use_mrope": (True, "x"),
    }  # fmt: skip
    for key, values in refused.items():
        for value in values:
            change = edit_json(CONFIG, **{key: value})
            yield Case(f"config: {key} is {value!r}", change, {"inspect": 0, "generate": 4}, (CONFIG, key))


def _unknown() -> Iterator[Case]:
    unknown: dict[str, dict[str, Any]] = {
        "sizes of 10**9": {"n_embd": 10**9, "n_inner": 10**9, "hidden_size": 10**9, "vocab_size": 10**9},
        "10**9 layers": {"num_hidden_layers": 10**9, "n_layer": 10**9}, "code": {"auto_map": {"AutoConfig": "a.B"}},
        "strings": dict.fromkeys(("hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads"), "x"),
    }  # fmt: skip
    layers = {"model_type": "gpt_neo", "attention_types": [[["global"], 10**9]], "num_layers": 2}
    endless = edit_json(CONFIG, **layers)
    yield Case("unknown: gpt_neo with a list that it multiplies", endless, {"quantize": -1, "generate": 4})
    for what, values in unknown.items():
        for kind in ("gptj", "qwen2_vl", "no_such_model"):
            change = edit_json(CONFIG, **{"model_type": kind} | values)
            yield Case(f"unknown: {kind} with {what}", change, {"quantize": -1, "inspect": 0, "generate": 4})


def _many_keys(folder: Path) -> None:
    found = read_json(folder / CONFIG)
    write_json(folder / CONFIG, found | {f"key {number}": number for number in range(10_000)})


def _ropes() -> Iterator[Case]:
    scaled: Final = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    wrong: dict[str, Any] = {
        "a string": "x", "a list": [1], "a number": 4.0, "of an unknown type": {"rope_type": "x", "factor": 2.0},
        "type a number": {"rope_type": 5}, "type a list": {"rope_type": []}, "no factor": {"rope_type": "linear"},
        "factor zero": {"rope_type": "linear", "factor": 0}, "factor negative": {"rope_type": "linear", "factor": -2.0},
        "factor a string": {"rope_type": "linear", "factor": "x"}, "factor 1e300": {"rope_type": "linear",
        "factor": 1e300},
        "factor of 400 digits": {"rope_type": "linear", "factor": 10**399},
        "llama3 with bands that cross": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0,
            "original_max_position_embeddings": 32,
        },
        "original context zero": scaled | {"original_max_position_embeddings": 0},
        "original context negative": scaled | {"original_max_position_embeddings": -5},
        "beta_fast a string": scaled | {"beta_fast": "x"},
        "attention_factor negative": scaled | {"attention_factor": -1.0},
        "truncate a number": scaled | {"truncate": 3}, "longrope": {"rope_type": "longrope", "factor": 2.0},
        "per layer": {"full_attention": {"rope_type": "default"}},
    }  # fmt: skip
    for key in ("rope_scaling", "rope_parameters"):
        for what, value in wrong.items():
            codes = {"inspect": 0, "generate": -3}
            yield Case(f"rope: {key} is {what}", edit_json(CONFIG, **{key: value}), codes, (CONFIG,))
    thetas = {"a string": "x", "zero": 0, "negative": -1.0, "a list": [1], "400 digits": 10**399}
    for what, value in thetas.items():
        codes = {"quantize": 3, "inspect": 0, "generate": 3}
        yield Case(f"rope: rope_theta is {what}", edit_json(CONFIG, rope_theta=value), codes, (CONFIG, "rope_theta"))
    for what, value in {"1e-300": 1e-300, "1e299": 1e299, "one": 1.0, "below one": 0.5}.items():
        yield Case(f"rope: rope_theta is {what}", edit_json(CONFIG, rope_theta=value), {"generate": -1})
    for what, factor in {"1e-300": 1e-300, "1e299": 1e299}.items():
        for kind in ("linear", "dynamic", "yarn"):
            value = scaled | {"rope_type": kind, "factor": factor, "beta_fast": 1e299, "beta_slow": 1e-299}
            yield Case(f"rope: {kind} by {what}", edit_json(CONFIG, rope_scaling=value), {"generate": -1})


def _experts() -> Iterator[Case]:
    base: Final = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    for kind, key in (("qwen3_moe", "num_experts"), ("qwen2_moe", "num_experts"), ("mixtral", "num_local_experts")):
        for what, value in {"a string": "x", "zero": 0, "10**9": 10**9, "a list": [8], "negative": -1}.items():
            change = edit_json(CONFIG, **{"model_type": kind} | base | {key: value})
            yield Case(f"experts: {kind} {key} is {what}", change, {"inspect": 0, "generate": 3}, (CONFIG, key))
        more = edit_json(CONFIG, **{"model_type": kind, key: 8, "num_experts_per_tok": 9})
        yield Case(f"experts: {kind} uses more than there are", more, {"generate": 3}, (CONFIG, "num_experts_per_tok"))
    odd = {
        "mlp_only_layers": ("x", 5, ["a"], {"a": 1}),
        "decoder_sparse_step": (0, "x", 10**10),
        "norm_topk_prob": ("x", 1),
    }
    for key, values in odd.items():
        for value in values:
            change = edit_json(CONFIG, **{"model_type": "qwen3_moe"} | base | {key: value})
            yield Case(f"experts: {key} is {value!r}", change, {"inspect": 0, "generate": 3}, (CONFIG, key))
    for name, shape in {"flat": [128, 64], "of odd rows": [2, 3, 64], "empty": [0, 2, 64]}.items():
        change = _stack(name, shape)
        yield Case(f"experts: a stack that is {name}", change, dict.fromkeys(READERS, -1))


def _stack(_: str, shape: list[int]) -> Callable[[Path], object]:
    count = 2
    for size in shape:
        count *= size

    def change(folder: Path) -> None:
        edit_json(CONFIG, model_type="qwen3_moe")(folder)
        append({"model.layers.0.mlp.experts.gate_up_proj": ("BF16", shape, bytes(count))})(folder)

    return change


def _generation_configs() -> Iterator[Case]:
    name: Final = "generation_config.json"
    for what, change in malformed(name):
        yield Case(f"generation_config: {what}", change, {"generate": 3}, (name,))
    for what, value in {"a string": "x", "nested": [[1]], "a float": 1.5, "an object": {"a": 1}, "true": True}.items():
        change = edit_json(name, eos_token_id=value)
        yield Case(f"generation_config: eos_token_id is {what}", change, {"generate": 3}, (name, "eos_token_id"))
    yield Case(
        "generation_config: a million ids", edit_json(name, eos_token_id=list(range(2, 1_000_002))), {"generate": -1}
    )


def _quantized_already() -> Iterator[Case]:
    codes: Final = {"quantize": 4, "generate": 4}
    methods = (
        "gptq", "awq", "bitsandbytes", "compressed-tensors", "fp8", "quark", "hqq", "aqlm", "eetq", "torchao", "mxfp4",
        "exl2", "quanto", "x\x1b[31m\n",
    )  # fmt: skip
    for method in methods:
        change = edit_json(CONFIG, quantization_config={"quant_method": method, "bits": 4, "config_groups": {}})
        # An empty list of groups is sound, and no tensor here is packed.
        found = {"quantize": 4} if method == "compressed-tensors" else codes
        yield Case(f"quantized: {json.dumps(method)}", change, found, (), "")
    for key in ("compression_config", "quantization"):
        change = edit_json(CONFIG, **{key: {"quant_method": "x", "group_size": 64, "bits": 4}})
        yield Case(f"quantized: {key}", change, codes)
    text_model = edit_json(CONFIG, text_config={"quantization_config": {"quant_method": "gptq"}})
    yield Case("quantized: in text_config", text_model, codes, ("gptq",))
    module = "model.layers.0.mlp.up_proj"
    for suffix, dtype in {
        "weight_packed": "I32", "qweight": "I32", "weight.quant_state.bitsandbytes__nf4": "U8",
        "weight.quant_state.bitsandbytes__fp4": "U8", "SCB": "F32", "weight_scale_inv": "F32", "weight_scale": "F32",
    }.items():  # fmt: skip
        change = append({f"{module}.{suffix}": (dtype, [4], bytes(16 if dtype != "U8" else 4))})
        yield Case(f"quantized: a tensor {suffix}", change, {"quantize": 4}, ("already quantized",), "original")
        yield Case(f"quantized: a tensor {suffix}, run", change, {"generate": -3})
    for names, what in (((".scales", ".biases"), "mlx"), (("_blocks", "_scales"), "mxfp4")):
        tensors = {f"{module}{name}": ("BF16", [2], bytes(4)) for name in names}
        yield Case(f"quantized: tensors of {what}", append(tensors), codes, (what,), "")
    part = append({f"{module}.weight_shape": ("I64", [2], bytes(16))})
    yield Case(
        "quantized: a name that llmq gives", part, {"quantize": 4}, (MODEL, f"{module}.weight_shape"), "--ignore"
    )
