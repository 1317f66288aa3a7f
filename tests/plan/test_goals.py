from dataclasses import replace

import pytest

from llmq.checkpoint.source import open_source
from llmq.errors import UsageError
from llmq.plan import build_plan
from llmq.plan.goals import assign, counted, make_goal, units
from llmq.plan.recipes import make_recipe


def planned(folder, *, assigned=(), target="llmq", group_size=None, flags=None, **goal):
    made = make_goal(target=target, group_size=group_size, **goal)
    recipe = make_recipe(goal=made, target=target, group_size=group_size, **(flags or {}))
    with open_source(folder) as source:
        return build_plan(source, replace(recipe, assigned=assigned))


def chosen(folder, costs=None, **how):
    """The plan with widths chosen by `costs`, or as if errors fell by 4 for each bit."""
    plan = planned(folder, **how)
    found = costs or {t.name: [4.0 ** -(s.bits + 8 / s.group_size) for s in t.options] for t in plan.tensors}
    return assign(plan, found, how.get("target_size"), lambda assigned: planned(folder, assigned=assigned, **how))


def bits_per_weight(plan):
    return 8 * sum(t.output_bytes for t in counted(plan)) / sum(t.parameters for t in counted(plan))


@pytest.fixture(scope="module")
def pico(tmp_path_factory, write_pico):
    return write_pico(tmp_path_factory.mktemp("pico"), hidden_size=128, intermediate_size=256, num_key_value_heads=4)


@pytest.mark.parametrize("asked", [2.6, 3.0, 3.25, 4.25, 5.0, 7.5])
def test_bits_per_weight_are_met_and_never_exceeded(pico, asked):
    assert 0.99 * asked <= bits_per_weight(chosen(pico, target_bpw=asked)) <= asked


@pytest.mark.parametrize("asked", [115_000, 140_001, 180_000])
def test_the_size_of_files_is_met_and_never_exceeded(pico, asked):
    plan = chosen(pico, target_size=asked)
    assert 0.99 * asked <= plan.file_bytes <= asked
    assert plan.file_bytes > plan.output_bytes


def test_head_and_table_count_only_where_they_are_chosen(pico):
    apart = chosen(pico, target_bpw=3.0)
    with_both = chosen(pico, target_bpw=3.0, flags={"lm_head": "auto", "embeddings": "auto"})
    assert {str(t.role) for t in counted(apart)} == {"linear"}
    assert {str(t.role) for t in counted(with_both)} == {"linear", "head", "embedding"}
    assert 2.97 <= bits_per_weight(with_both) <= 3.0


def test_weights_that_cost_more_get_more_bits(pico):
    plan = planned(pico, target_bpw=3.0)
    costs = {t.name: [4.0**-s.bits * (100 if "v_proj" in t.name else 1) for s in t.options] for t in plan.tensors}
    widths = {t.name: t.spec.bits for t in counted(chosen(pico, costs, target_bpw=3.0))}
    assert min(b for n, b in widths.items() if "v_proj" in n) > max(b for n, b in widths.items() if "v_proj" not in n)


def test_what_vllm_fuses_shares_one_option(pico):
    plan = chosen(pico, target="vllm", target_bpw=6.0)
    by_name = {t.name: t.spec for t in plan.quantized}
    for layer in range(2):
        fused = {by_name[f"model.layers.{layer}.self_attn.{p}_proj.weight"] for p in "qkv"}
        assert len(fused) == 1
    assert {s.bits for s in by_name.values()} == {4, 8}
    assert {s.group_size for s in by_name.values()} == {128}
    assert len(units(planned(pico, target="vllm", target_bpw=6.0))) == 6


def test_what_is_set_stays_as_set(pico):
    flags = {"overrides": ["o_proj=bits:7,group:16", "up_proj=group:32"], "ignore": ["down_proj"]}
    tensors = {t.name: t for t in chosen(pico, target_bpw=4.0, flags=flags).tensors}
    o, up = tensors["model.layers.0.self_attn.o_proj.weight"].spec, tensors["model.layers.1.mlp.up_proj.weight"].spec
    assert (o.bits, o.group_size, up.group_size) == (7, 16, 32)
    assert tensors["model.layers.0.mlp.down_proj.weight"].reason == "--ignore"
    sizes = {t.spec.group_size for t in chosen(pico, target_bpw=4.0, group_size=32).quantized}
    assert sizes == {32}


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        ({"target_bpw": 2.0}, "too small.*at least 2.1"),
        ({"target_bpw": 9.0}, "widest options.*at most 8.5"),
        ({"target_size": 1000}, "too small.*at least [0-9]+ bytes"),
        ({"target_size": 10_000_000}, "widest options.*at most [0-9]+ bytes"),
    ],
)
def test_what_is_out_of_reach_is_refused_with_what_is_not(pico, goal, words):
    with pytest.raises(UsageError, match=words):
        chosen(pico, **goal)


def test_the_least_and_the_most_that_errors_name_can_be_had(pico):
    with pytest.raises(UsageError) as caught:
        chosen(pico, target_size=1000)
    assert "--embeddings auto" in caught.value.hint
    least = int(str(caught.value).split("at least ")[1].split()[0])
    assert chosen(pico, target_size=least).file_bytes == least


@pytest.mark.parametrize(
    "flags",
    [
        {"target_size": 1, "target_bpw": 3.0},
        {"target_bpw": -1.0},
        {"target_bpw": float("nan")},
        {"target_bpw": float("inf")},
        {"ram": 1 << 30},
        {"context": 5},
        {"target_bpw": 3.0, "context": 5},
        {"ram": 1 << 30, "context": 0},
        {"ram": 1 << 30, "context": 5, "kv_bits": 7},
        {"kv_bits": 8},
    ],
)
def test_budgets_that_make_no_sense_are_refused(flags):
    with pytest.raises(UsageError):
        make_goal(**flags)


def test_no_budget_is_no_goal_and_auto_needs_one():
    assert make_goal() is None
    for flag in ("lm_head", "embeddings"):
        with pytest.raises(UsageError, match="auto needs"):
            make_recipe(**{flag: "auto"})
    with pytest.raises(UsageError, match="--bits"):
        make_recipe(bits=3, goal=make_goal(target_bpw=3.0))
