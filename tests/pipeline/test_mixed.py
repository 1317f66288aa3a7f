"""Widths by budget, from flags to files."""

import hashlib
import logging

import ml_dtypes
import numpy as np
import pytest

import llmq
from llmq.checkpoint.manifest import read_manifest
from llmq.checkpoint.source import open_source
from llmq.errors import InputError, ResourceError, UsageError
from llmq.methods import METHODS
from llmq.pipeline.errors_by_option import measure_errors, sampled_rows
from llmq.pipeline.mixed import available_bytes
from llmq.plan import build_plan
from llmq.plan.goals import RUN_BYTES, make_goal
from llmq.plan.recipes import make_recipe
from llmq.system.progress import NullProgress


class Stages(NullProgress):
    """Remembers what stages there were; stops in the one called `stop`."""

    def __init__(self, stop=None):
        self.titles = []
        self.stop = stop

    def start(self, title, total, unit="bytes"):
        self.titles.append(title)

    def advance(self, count):
        if self.titles[-1] == self.stop:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def pico(tmp_path_factory, write_pico):
    return write_pico(tmp_path_factory.mktemp("pico"), hidden_size=128)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory, write_pico, add_letters):
    """A model with a tokenizer of letters."""
    return add_letters(write_pico(tmp_path_factory.mktemp("spoken")))


def weights_of(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.safetensors"))}


def widths(report):
    return {t.name: (t.spec.bits, t.spec.group_size) for t in report.plan.quantized}


@pytest.mark.parametrize("asked", [2.75, 3.5, 5.0])
def test_bits_per_weight_come_out_as_asked(pico, tmp_path, asked):
    report = llmq.quantize(pico, tmp_path / "out", target_bpw=asked)
    reached = report.to_json()["goal"]["reached"]["bits_per_weight"]
    assert 0.99 * asked <= reached <= asked
    assert len(set(widths(report).values())) > 2
    llmq.load(tmp_path / "out")([1, 2, 3])


def test_the_files_have_the_size_asked_for(pico, tmp_path):
    llmq.quantize(pico, tmp_path / "out", target_size=100_000, max_shard_size=40_000)
    size = sum(p.stat().st_size for p in (tmp_path / "out").glob("*.safetensors"))
    assert 99_000 <= size <= 100_000


def test_a_dry_run_plans_what_a_run_does_and_a_recipe_repeats_it(pico, tmp_path):
    flags = {"target_bpw": 3.3, "lm_head": "auto", "embeddings": "auto"}
    planned = llmq.quantize(pico, tmp_path / "a", dry_run=True, **flags)
    assert not (tmp_path / "a").exists()
    made = llmq.quantize(pico, tmp_path / "a", threads=1, max_memory=240 << 20, **flags)
    assert widths(planned) == widths(made)
    for number, recipe in enumerate([tmp_path / "a", tmp_path / "a" / "recipe.json"]):
        again = llmq.quantize(pico, tmp_path / f"b{number}", recipe=recipe)
        assert widths(again) == widths(made)
        assert weights_of(tmp_path / f"b{number}") == weights_of(tmp_path / "a")
    assert "recipe.json" in read_manifest(tmp_path / "a")["files"]
    assert read_manifest(tmp_path / "a")["settings"]["goal"]["bits_per_weight"] == 3.3


@pytest.mark.parametrize("stop", ["measuring errors", "quantizing"])
def test_an_interrupted_run_goes_on_with_its_widths(pico, tmp_path, stop):
    flags = {"target_bpw": 3.3, "max_shard_size": 20_000}
    with pytest.raises(KeyboardInterrupt):
        llmq.quantize(pico, tmp_path / "out", progress=Stages(stop), **flags)
    stages = Stages()
    made = llmq.quantize(pico, tmp_path / "out", progress=stages, **flags)
    assert stages.titles == ["measuring errors"] * (stop == "measuring errors") + ["quantizing"]
    whole = llmq.quantize(pico, tmp_path / "whole", **flags)
    assert weights_of(tmp_path / "out") == weights_of(tmp_path / "whole")
    stages = Stages()
    again = llmq.quantize(pico, tmp_path / "out", progress=stages, **flags)
    assert (again.state, stages.titles) == ("already complete", [])
    assert widths(again) == widths(made) == widths(whole)


def test_another_target_is_another_run(pico, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        llmq.quantize(pico, tmp_path / "out", target_bpw=3.3, progress=Stages("quantizing"))
    with pytest.raises(UsageError, match=r"settings\.goal"):
        llmq.quantize(pico, tmp_path / "out", target_bpw=3.4)


def test_a_tied_table_is_chosen_once_and_serves_both_ends(tmp_path, write_pico):
    source = write_pico(tmp_path / "in", tie_word_embeddings=True, vocab_size=512)
    report = llmq.quantize(source, tmp_path / "out", target_bpw=5.0, embeddings="auto")
    assert "model.embed_tokens.weight" in widths(report)
    assert not any("lm_head" in o.name for t in report.plan.tensors for o in t.outputs)
    model = llmq.load(tmp_path / "out", compute="float32")
    found, exact = model([1, 2, 3]), llmq.load(source, compute="float32")([1, 2, 3])
    assert found.shape == (3, 512)
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.9


def test_shares_are_measured_where_a_text_can_be_read(spoken, tmp_path, caplog):
    text = tmp_path / "text.txt"
    text.write_text("it is a truth universally acknowledged " * 20)
    stages = Stages()
    flags = {"target_bpw": 3.3, "method": "mse", "calibrate": text}
    measured = llmq.quantize(spoken, tmp_path / "a", progress=stages, **flags)
    assert stages.titles == ["measuring shares", "measuring errors", "quantizing"]
    assert read_manifest(tmp_path / "a")["settings"]["importance"]["tokens"] == [6, 128]
    fixed = llmq.quantize(spoken, tmp_path / "b", target_bpw=3.3, importance="priors")
    assert widths(measured) != widths(fixed)
    calibrated = llmq.quantize(spoken, tmp_path / "c", target_bpw=3.3, calibrate=text)
    assert calibrated.plan.recipe.method == "gptq"
    assert 3.267 <= calibrated.goal()["reached"]["bits_per_weight"] <= 3.3


def test_priors_stand_in_with_a_notice_unless_measuring_was_asked_for(pico, spoken, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="llmq"):
        llmq.quantize(pico, tmp_path / "a", target_bpw=3.3)
        llmq.quantize(spoken, tmp_path / "b", target_bpw=3.3, max_memory=250 << 20)
    assert sum("no tokenizer" in m for m in caplog.messages) == 1
    assert sum("memory limit" in m for m in caplog.messages) == 1
    with pytest.raises(InputError, match="no tokenizer"):
        llmq.quantize(pico, tmp_path / "c", target_bpw=3.3, importance="measured")
    with pytest.raises(ResourceError, match="text through the model"):
        llmq.quantize(spoken, tmp_path / "c", target_bpw=3.3, importance="measured", max_memory=250 << 20)


def test_memory_while_running_leaves_room_for_cache_and_process(pico, tmp_path):
    with open_source(pico) as source:
        cache = 2 * 2 * 2 * 100 * 16 * 2  # keys and values, layers, heads, tokens, width, bytes
        goal = make_goal(ram=1 << 30, context=100)
        assert available_bytes(goal, source) == (1 << 30) - RUN_BYTES - cache
        smaller = make_goal(ram=1 << 30, context=100, kv_bits=8)
        assert available_bytes(smaller, source) > available_bytes(goal, source)
        with pytest.raises(UsageError, match="longer than the model"):
            available_bytes(make_goal(ram=1 << 30, context=10_000), source)
        with pytest.raises(UsageError, match="--ram is too small"):
            available_bytes(make_goal(ram=1000, context=100), source)
    plenty = llmq.quantize(pico, tmp_path / "out", ram=8 << 30, context=100, dry_run=True)
    assert {bits for bits, _ in widths(plenty).values()} == {8}
    room = RUN_BYTES + cache + 100_000
    tight = llmq.quantize(pico, tmp_path / "out", ram=room, context=100, dry_run=True)
    assert 99_000 <= tight.plan.file_bytes <= 100_000


def test_options_too_coarse_for_a_target_are_told(pico, tmp_path, caplog):
    flags = {"target": "vllm", "target_bpw": 6.0, "ignore": ["layers.1", "down_proj", "self_attn"]}
    with caplog.at_level(logging.WARNING, logger="llmq"):
        report = llmq.quantize(pico, tmp_path / "out", dry_run=True, **flags)
    assert {bits for bits, _ in widths(report).values()} == {4}
    # 4 bits, scales of 16 bits for 128 weights, and the 16 bytes of a shape for 16,384 of them.
    assert any(f"{100 * (4 + 1 / 8 + 128 / 16384) / 6:.1f} % of it" in message for message in caplog.messages)


@pytest.mark.parametrize(
    "flags",
    [
        {"bits": 4}, {"group_size": 32}, {"symmetric": False}, {"range": "narrow"}, {"lm_head": "keep"},
        {"embeddings": 8}, {"ignore": ["x"]}, {"overrides": ["x=bits:3"]}, {"target": "vllm"}, {"target_bpw": 3.0},
    ],
)  # fmt: skip
def test_a_recipe_leaves_nothing_else_to_say(pico, tmp_path, flags):
    with pytest.raises(UsageError, match="--recipe says that already"):
        llmq.quantize(pico, tmp_path / "out", recipe=tmp_path, **flags)


@pytest.mark.parametrize(
    "flags",
    [
        {"importance": "priors"},
        {"importance": "guessed", "target_bpw": 3.0},
        {"importance": "priors", "target_bpw": 3.0, "calibrate": "x", "method": "mse"},
        {"target_bpw": 3.0, "calibrate_tokens": 0},
    ],
)
def test_flags_that_nothing_uses_are_refused(pico, tmp_path, flags):
    with pytest.raises(UsageError):
        llmq.quantize(pico, tmp_path / "out", **flags)


def test_nan_stops_the_pass_or_is_kept_and_counted(tmp_path, write_pico):
    bad = np.full((128, 64), np.nan, ml_dtypes.bfloat16)
    source = write_pico(tmp_path / "in", edit={"model.layers.0.mlp.up_proj.weight": bad})
    with pytest.raises(InputError, match="not finite"):
        llmq.quantize(source, tmp_path / "out", target_size=100_000)
    report = llmq.quantize(source, tmp_path / "out", target_size=100_000, nonfinite="keep")
    assert "model.layers.0.mlp.up_proj.weight" not in widths(report)
    assert 99_000 <= report.plan.file_bytes <= 100_000


def test_errors_of_all_rows_are_those_of_the_method(pico):
    goal = make_goal(target_bpw=3.0)
    energy = np.linspace(0.1, 2, 128, dtype=np.float32)
    name = "model.layers.0.mlp.up_proj.weight"
    with open_source(pico) as source:
        plan = build_plan(source, make_recipe(goal=goal))
        tensors = [t for t in plan.tensors if t.name == name]
        weight = np.empty((128, 128), ml_dtypes.bfloat16)
        source.read_into(tensors[0].info, 0, weight.view(np.uint8).reshape(-1).data)
        found = {
            limit: measure_errors(tensors, source, NullProgress(), method="mse", energies=energies, max_memory=limit)
            for limit, energies in ((None, {name: energy}), (1, {name: energy}))
        }
    assert found[None] == found[1]
    exact = weight.astype(np.float64)
    for spec, error in zip(tensors[0].options, found[None][name], strict=True):
        off = exact - METHODS["mse"].quantize(weight, spec).dequantize()
        assert error == pytest.approx((off**2 * energy).sum() / (exact**2 * energy).sum(), rel=1e-5)


def test_rows_are_spread_over_the_tensor():
    assert sampled_rows(10, 64).tolist() == list(range(10))
    for rows, columns, count in ((100_000, 64, 256), (4096, 8192, 64), (4096, 2048, 128)):
        numbers = sampled_rows(rows, columns)
        assert len(numbers) == count
        assert np.ptp(np.diff(numbers)) <= 1
        assert numbers[0] < rows / count
        assert rows - rows / count <= numbers[-1] < rows
