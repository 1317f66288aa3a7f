import contextlib
import re

import pytest
from documents import edited
from hypothesis import given, settings

from llmq.errors import InputError, LlmqError, UnsupportedError
from llmq.formats.schemes import Schemes, quantization_config, read_schemes
from llmq.spec import QuantSpec


def modules(*names, spec=None, kind="Linear"):
    return {name: (spec or QuantSpec(), kind) for name in names}


def targets(config) -> list[list[str]]:
    return [group["targets"] for group in config["config_groups"].values()]


def test_one_scheme_becomes_one_regex_a_projection():
    names = [f"model.layers.{n}.{part}" for n in range(12) for part in ("self_attn.q_proj", "mlp.up_proj")]
    config = quantization_config(modules(*names, "lm_head"), ["x"], {"version": "1"})
    assert targets(config) == [
        [
            r"re:^(?:model\.)?layers\.\d+\.self_attn\.q_proj$",
            r"re:^(?:model\.)?layers\.\d+\.mlp\.up_proj$",
            "lm_head",
        ]
    ]
    assert config["ignore"] == ["x"]
    assert config["llmq"] == {"version": "1"}
    assert all(group["format"] == "pack-quantized" for group in config["config_groups"].values())


def test_layers_that_differ_are_named_one_by_one():
    eight = QuantSpec(bits=8)
    config = quantization_config(
        modules("model.layers.0.a", "model.layers.2.a", "model.layers.0.b", "model.layers.1.b")
        | modules("model.layers.1.a", spec=eight)
        | modules("model.embed_tokens", spec=eight, kind="Embedding"),
        [],
        {},
    )
    assert targets(config) == [
        [r"re:^(?:model\.)?layers\.(?:0|2)\.a$", r"re:^(?:model\.)?layers\.\d+\.b$"],
        [r"re:^(?:model\.)?layers\.1\.a$"],
        ["model.embed_tokens"],
    ]


def test_experts():
    eight = QuantSpec(bits=8)
    name = "model.layers.{}.mlp.experts.{}.up_proj"
    four = modules(*(name.format(layer, expert) for layer in (0, 2) for expert in range(3)))
    config = quantization_config(four | modules(name.format(1, 0), name.format(1, 2), spec=eight), [], {})
    assert targets(config) == [
        [r"re:^(?:model\.)?layers\.(?:0|2)\.mlp\.experts\.(?:0|1|2)\.up_proj$"],
        [r"re:^(?:model\.)?layers\.1\.mlp\.experts\.(?:0|2)\.up_proj$"],
    ]
    config = quantization_config(four | modules(name.format(2, 1), spec=eight), [], {})
    assert targets(config)[0] == [name.format(*pair) for pair in ((0, 0), (0, 1), (0, 2), (2, 0), (2, 2))]


def test_names_are_escaped_and_groups_disjoint():
    specs = [QuantSpec(), QuantSpec(bits=8), QuantSpec(group_size=-1), QuantSpec(symmetric=False), QuantSpec(bits=1)]
    names = [f"model.layers.{n}.{p}" for n in range(3) for p in ("a", "a.b", "xa", "a+", "(a)", "experts.0.a", "a_b")]
    chosen = {name: specs[hash_of(name) % len(specs)] for name in names}
    config = quantization_config({name: (spec, "Linear") for name, spec in chosen.items()}, ["model.layers.0.z"], {})
    for name in names:
        matching = [
            target
            for group in targets(config)
            for target in group
            if (re.match(target[3:], name) if target.startswith("re:") else target == name)
        ]
        assert len(matching) == 1
    schemes = Schemes(config)
    for name, spec in chosen.items():
        found = schemes.scheme(name)
        expected_bits = 2 if spec.bits == 1 else spec.bits
        assert (found.bits, found.group_size, found.symmetric) == (expected_bits, spec.group_size, spec.symmetric)
    assert schemes.find("model.layers.0.z") is None


def hash_of(name: str) -> int:
    return sum(name.replace("0", "1").encode()) % 97


def section(*groups, ignore=(), **more):
    named = {
        f"group_{n}": {
            "targets": names,
            "format": "pack-quantized",
            "weights": {"num_bits": bits, "group_size": 32} | extra,
        }
        for n, (names, bits, extra) in enumerate(groups)
    }
    return {"quant_method": "compressed-tensors", "config_groups": named, "ignore": list(ignore), **more}


def test_precedence_is_that_of_the_library():
    schemes = Schemes(
        section(
            (["Linear"], 2, {}),
            (["re:.*b.proj", "re:.*proj"], 3, {}),
            (["re:.*a.proj"], 4, {}),
            (["x.a.proj"], 8, {}),
            ignore=["lm_head", "re:.*skip"],
        )
    )
    bits = {name: schemes.scheme(name).bits for name in ("x.a.proj", "y.a.proj", "y.b.proj", "y.proj", "y.other")}
    assert bits == {"x.a.proj": 8, "y.a.proj": 4, "y.b.proj": 3, "y.proj": 3, "y.other": 2}
    for name in ("lm_head", "x.skipped"):
        assert schemes.find(name) is None
        with pytest.raises(InputError, match=f"{name}: packed, but no group"):
            schemes.scheme(name)
    with pytest.raises(InputError):
        Schemes(section((["x"], 4, {}))).scheme("y")


def test_strategies():
    for weights, expected in (
        ({"strategy": "channel", "group_size": None}, (8, -1, True)),
        ({"strategy": "group", "group_size": 128, "symmetric": False}, (8, 128, False)),
        ({"group_size": -1}, (8, -1, True)),
        ({"strategy": "group", "actorder": "weight"}, (8, 32, True)),
    ):
        spec = Schemes(section((["Linear"], 8, weights))).scheme("x")
        assert (spec.bits, spec.group_size, spec.symmetric) == expected


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "gptq"}},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"quantization_config": {"quant_method": "fp8"}},
        {"quantization_config": {"bits": 4}},
        {"quantization": {"bits": 4}},
        {"quantization_config": section((["Linear"], 8, {"type": "float"}))},
        {"quantization_config": section((["Linear"], 8, {"strategy": "tensor"}))},
        {"quantization_config": section((["Linear"], 8, {"strategy": "block"}))},
        {"quantization_config": section((["Linear"], 8, {"actorder": "group"}))},
        {"quantization_config": section((["Linear"], 8, {"dynamic": True}))},
        {"quantization_config": section((["Linear"], 8, {}), transform_config={"config_groups": {"R1": {}}})},
        {"quantization_config": section((["Linear"], 8, {}), sparsity_config={"format": "sparse-24-bitmask"})},
    ],
)
def test_unsupported(config):
    with pytest.raises(UnsupportedError):
        read_schemes(config)


def test_one_bit_that_is_no_sign_grid_is_refused():
    with pytest.raises(UnsupportedError, match="one bit"):
        Schemes(section((["Linear"], 1, {})))


@pytest.mark.parametrize(
    "name", ["int-quantized", "naive-quantized", "marlin-24", "float-quantized", "nvfp4-pack-quantized"]
)
def test_other_formats_are_refused_by_name(name):
    config = section((["Linear"], 8, {}))
    config["config_groups"]["group_0"]["format"] = name
    with pytest.raises(UnsupportedError, match=f"format '{name}' of group_0"):
        Schemes(config)
    del config["config_groups"]["group_0"]["format"]
    with pytest.raises(UnsupportedError, match=name):
        Schemes(config | {"format": name})


@pytest.mark.parametrize(
    "broken",
    [
        {"config_groups": []},
        {"config_groups": {"g": {"targets": "Linear", "weights": {"num_bits": 4, "group_size": 32}}}},
        {"ignore": "lm_head"},
        section((["re:("], 4, {})),
        section((["x"], 4, {}), ignore=["re:["]),
        section((["x"], 4.0, {})),
        section((["x"], 9, {})),
        section((["x"], True, {})),
        section((["x"], 4, {"group_size": 0, "strategy": "group"})),
        section((["x"], 4, {"group_size": "32", "strategy": "group"})),
        section((["x"], 4, {"symmetric": 1})),
    ],
)
def test_malformed(broken):
    with pytest.raises(InputError):
        read_schemes({"quantization_config": {"quant_method": "compressed-tensors"} | broken})
    with pytest.raises(InputError):
        read_schemes({"quantization_config": "x"})


def test_dense_checkpoints_have_no_schemes():
    assert read_schemes({"model_type": "llama"}) is None
    assert read_schemes({"quantization_config": section((["x"], 4, {}))}).scheme("x").bits == 4


SOUND = quantization_config(modules("model.layers.0.a", "lm_head", spec=QuantSpec(bits=4, group_size=32)), ["x"], {})


@settings(max_examples=300, deadline=None)
@given(edited(SOUND))
def test_any_section_is_read_or_refused(section):
    with contextlib.suppress(LlmqError):
        found = read_schemes({"quantization_config": section})
        if found is not None:
            assert found.find("model.layers.0.a") is None or 1 <= found.find("model.layers.0.a").bits <= 8


@pytest.mark.parametrize(
    "field", [{"strategy": []}, {"strategy": 5}, {"actorder": "group"}, {"actorder": "dynamic"}, {"actorder": 7}]
)
def test_orders_and_strategies_that_are_not_known(field):
    section = quantization_config(modules("a"), [], {})
    section["config_groups"]["group_0"]["weights"] |= field
    with pytest.raises(UnsupportedError):
        Schemes(section)
