import json

import numpy as np
import pytest

from llmq.checkpoint.source import open_source
from llmq.errors import InputError, ResourceError, UnsupportedError, UsageError
from llmq.plan import build_plan
from llmq.plan.recipes import make_recipe


def plan(folder, *, max_memory=None, max_shard_size=5_000_000_000, keep=(), **flags):
    with open_source(folder) as source:
        return build_plan(source, make_recipe(**flags), max_memory=max_memory, max_shard_size=max_shard_size, keep=keep)


@pytest.fixture(scope="module")
def pico(tmp_path_factory, write_pico):
    return write_pico(tmp_path_factory.mktemp("pico"))


def by_name(p):
    return {t.name: t for t in p.tensors}


def test_linears_are_quantized_and_the_rest_says_why_not(pico):
    tensors = by_name(plan(pico, group_size=32))
    linears = [t for name, t in tensors.items() if "_proj" in name and t.parameters >= 4096]
    assert linears
    assert all(t.spec.bits == 4 and t.spec.group_size == 32 and t.spec.scale_dtype == "bfloat16" for t in linears)
    assert tensors["lm_head.weight"].spec.bits == 8
    assert tensors["model.embed_tokens.weight"].reason == "embedding table"
    assert tensors["model.norm.weight"].reason == "norm"
    assert all(bool(t.spec) != bool(t.reason) for t in tensors.values())


def test_tensors_stand_in_execution_order(pico):
    order = [t.name for t in plan(pico).tensors]
    assert order[0] == "model.embed_tokens.weight"
    assert order[-1] == "lm_head.weight"
    assert order[-2] == "model.norm.weight"
    layers = [int(n.split(".")[2]) for n in order if ".layers." in n]
    assert layers == sorted(layers)


def test_within_a_block_codes_come_before_scales_before_shapes(pico):
    names = [t.name for shard in plan(pico).shards for t in shard.tensors if ".layers.1." in t.name]
    kinds = [("weight_packed", "weight_scale", "weight", "weight_shape").index(n.rsplit(".", 1)[-1]) for n in names]
    assert kinds == sorted(kinds)


def test_sizes_add_up_to_what_the_shards_hold(pico):
    p = plan(pico, embeddings=4)
    assert p.output_bytes == sum(t.nbytes for shard in p.shards for t in shard.tensors)
    assert p.parameters == sum(np.prod(t.info.shape) for t in p.tensors)
    assert p.bits_per_weight == pytest.approx(8 * p.output_bytes / p.parameters)


def test_shards_keep_under_the_size_asked_for(pico):
    shards = plan(pico, max_shard_size=20_000).shards
    assert len(shards) > 2
    assert all(sum(t.nbytes for t in s.tensors) <= 20_000 or len(s.tensors) == 1 for s in shards)


def test_ignore_and_set(pico):
    tensors = by_name(
        plan(pico, ignore=["down_proj"], overrides=["layers\\.1\\..*up_proj=bits:8,group:16", "lm_head=bits:3"])
    )
    assert tensors["model.layers.0.mlp.down_proj.weight"].reason == "--ignore"
    up = tensors["model.layers.1.mlp.up_proj.weight"].spec
    assert (up.bits, up.group_size) == (8, 16)
    assert tensors["model.layers.0.mlp.up_proj.weight"].spec.bits == 4
    assert tensors["lm_head.weight"].spec.bits == 3


def test_a_pattern_that_matches_nothing_is_pointed_out(pico):
    warnings = plan(pico, ignore=["nowhere"], overrides=["nothing=bits:8"]).warnings
    assert sum("matches no tensor" in w for w in warnings) == 2


def test_a_group_size_that_divides_some_rows_keeps_the_others(tmp_path, write_pico):
    tensors = by_name(plan(write_pico(tmp_path, intermediate_size=96), group_size=64))
    assert "does not divide rows of 96" in tensors["model.layers.0.mlp.down_proj.weight"].reason
    assert tensors["model.layers.0.mlp.up_proj.weight"].spec


def test_a_group_size_that_divides_nothing_is_refused_with_one_that_does(pico):
    with pytest.raises(UsageError, match="does not divide") as caught:
        plan(pico, group_size=48)
    assert caught.value.hint == "--group-size 64"


def test_a_tied_head_is_left_alone(tmp_path, write_pico):
    p = plan(write_pico(tmp_path, tie_word_embeddings=True), embeddings=8)
    assert "lm_head" in p.config["quantization_config"]["ignore"]
    assert by_name(p)["model.embed_tokens.weight"].spec.bits == 8


def test_a_head_stored_beside_its_tied_table_is_kept(tmp_path, write_pico):
    head = np.zeros((96, 64), np.float32)
    folder = write_pico(tmp_path, tie_word_embeddings=True, edit={"lm_head.weight": head})
    assert "tied" in by_name(plan(folder))["lm_head.weight"].reason


def test_dtypes_decide_the_scales(tmp_path, write_pico):
    for dtype, scale in [("float16", "float16"), ("float32", "float32"), ("float64", "float32")]:
        p = plan(write_pico(tmp_path / dtype, dtype=dtype))
        assert {t.spec.scale_dtype for t in p.quantized} == {scale}


def test_two_bits_and_large_tables_are_remarked_on(pico):
    p = plan(pico, bits=2)
    assert any("floor, not a recommendation" in w for w in p.warnings)
    assert not any("floor" in w for w in plan(pico, bits=2, method="gptq").warnings)
    assert any("--embeddings 8" in h for h in p.hints)
    assert not plan(pico, target="transformers").hints


def test_config_groups_are_disjoint_and_every_group_names_its_format(pico):
    config = plan(pico, overrides=["up_proj=bits:8"]).config["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert all(group["format"] == "pack-quantized" for group in config["config_groups"].values())
    targets = [t for group in config["config_groups"].values() for t in group["targets"]]
    assert len(targets) == len(set(targets))


def test_already_quantized_and_transposed_checkpoints_are_refused(tmp_path, write_pico):
    gptq = write_pico(tmp_path / "gptq", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UnsupportedError, match="already quantized"):
        plan(gptq)
    with pytest.raises(UnsupportedError, match="transposed"):
        plan(write_pico(tmp_path / "gpt2", model_type="gpt2"))


def test_an_unknown_architecture_is_planned_with_a_warning(tmp_path, write_pico):
    p = plan(write_pico(tmp_path, model_type="nobody_knows_this"))
    assert any("unknown to llmq" in w for w in p.warnings)
    assert by_name(p)["model.layers.0.mlp.up_proj.weight"].spec


def test_an_architecture_only_transformers_knows_is_checked_on_the_meta_device(tmp_path, write_pico):
    p = plan(write_pico(tmp_path, model_type="olmo2"))
    assert any("checked against transformers" in w for w in p.warnings)
    assert by_name(p)["model.layers.0.mlp.up_proj.weight"].spec


def test_the_memory_limit_bounds_the_rows_of_a_block(tmp_path, write_pico):
    folder = write_pico(tmp_path, vocab_size=60_000, hidden_size=256)
    wide = plan(folder, max_memory=1 << 30)
    tight = plan(folder, max_memory=200 << 20)
    assert tight.predicted_peak_bytes < wide.predicted_peak_bytes - (20 << 20)
    assert tight.predicted_peak_bytes <= 200 << 20
    assert all(a.rows_per_block <= b.rows_per_block for a, b in zip(tight.tensors, wide.tensors, strict=True))
    with pytest.raises(ResourceError, match="too small") as caught:
        plan(folder, max_memory=10 << 20)
    assert "--max-memory" in caught.value.hint


@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_too_wide_for_the_limit_are_cut_to_few_or_refused(tmp_path, write_pico, symmetric):
    wide = np.zeros((64, 1_000_000), np.float32)
    folder = write_pico(tmp_path, edit={"model.layers.0.mlp.up_proj.weight": wide})
    limit = 220 << 20
    if symmetric:
        assert plan(folder, max_memory=limit, group_size=32).predicted_peak_bytes <= limit
        return
    with pytest.raises(ResourceError) as caught:
        plan(folder, max_memory=limit, group_size=32, symmetric=False)
    least = int(caught.value.hint.removeprefix("--max-memory ").removesuffix("MiB")) << 20
    assert plan(folder, max_memory=least, group_size=32, symmetric=False).predicted_peak_bytes <= least


@pytest.mark.parametrize(
    "flags",
    [
        {"range": "narrow", "overrides": ["q_proj=symmetric:false"]},
        {"range": "narrow", "overrides": ["q_proj=bits:1"]},
        {"range": "narrow", "lm_head": 1},
    ],
)
def test_settings_that_make_no_sense_together_are_refused_by_tensor(pico, flags):
    with pytest.raises(UsageError, match=r"narrow range.*2 bits"):
        plan(pico, **flags)


@pytest.mark.parametrize("suffix", ["weight_shape", "weight_zero_point", "weight_g_idx"])
def test_names_that_quantizing_would_give_are_refused(tmp_path, write_pico, suffix):
    module = "model.layers.0.mlp.up_proj"
    folder = write_pico(tmp_path, edit={f"{module}.{suffix}": np.zeros(2, np.int64)})
    with pytest.raises(UnsupportedError, match=suffix) as caught:
        plan(folder)
    pattern = caught.value.hint.removeprefix("--ignore '").removesuffix("'")
    assert by_name(plan(folder, ignore=[pattern]))[f"{module}.weight"].reason == "--ignore"


def test_the_head_of_a_model_inside_another_is_a_head(tmp_path, write_pico):
    head = np.ones((96, 64), np.float32)
    edit = {"lm_head.weight": None, "language_model.lm_head.weight": head}
    p = plan(write_pico(tmp_path, edit=edit, text_config={"tie_word_embeddings": False}))
    assert p.tensors[-1].name == "language_model.lm_head.weight"
    assert p.tensors[-1].spec.bits == 8


def test_tensors_found_not_finite_can_be_kept(pico):
    name = "model.layers.0.mlp.up_proj.weight"
    assert "NaN" in by_name(plan(pico, keep={name}))[name].reason


def test_a_plan_is_a_value(pico):
    p = plan(pico)
    assert p == plan(pico)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", "x"),
        ("num_hidden_layers", 10**9),
        ("rope_theta", -1),
        ("model_type", 5),
        ("model_type", ["llama"]),
    ],
)
def test_a_configuration_that_makes_no_sense(tmp_path, write_pico, field, value):
    folder = write_pico(tmp_path, rope_parameters=None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(InputError, match=rf"^config\.json: {field} makes no sense"):
        plan(folder)


def test_a_feature_that_llmq_does_not_run_is_quantized_all_the_same(tmp_path, write_pico):
    assert plan(write_pico(tmp_path, attn_logit_softcapping=50.0)).quantized
