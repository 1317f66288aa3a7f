"""What a run counts at the edges, tells of it, and refuses."""

import json

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import llmq
from llmq.checkpoint.dtypes import NUMPY_DTYPES
from llmq.checkpoint.mapped import MappedCheckpoint
from llmq.checkpoint.source import open_source
from llmq.cli.main import cli
from llmq.errors import InputError, LlmqError
from llmq.methods import METHODS, quantize_tensor
from llmq.methods.protocol import Method
from llmq.pipeline.edges import EdgeCounts, check_scales, count_edges
from llmq.system.progress import NullProgress

UP = "model.layers.1.mlp.up_proj.weight"


def odd_weight(dtype):
    """A weight of 128 rows and 64 columns, in groups of 32, with a few odd groups."""
    weight = np.random.default_rng(0).standard_normal((128, 64)).astype(np.float32)
    weight[0, :32] = 0.0
    weight[0, ::2] *= -1.0
    weight[1] = 0.0
    weight[2, 32:] = 0.125
    weight[3, :32] = [2.0**-24, -(2.0**-24)] * 16 if dtype == "float16" else [1e-39, -1e-39] * 16
    weight[4, 32:] = -3e38 if dtype != "float16" else 1.0
    weight[4, 33] = 3.3e38 if dtype != "float16" else 1.0
    return weight


def counts_of(dtype):
    over = int(dtype != "float16")
    return {
        "groups": 256,
        "zero_groups": 3,
        "constant_groups": 1 if over else 2,
        "scale_underflows": 1,
        "scale_overflows": over,
        "nonfinite_values": 0,
    }


@pytest.mark.parametrize("method", ["rtn", "mse", "hqq"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_odd_groups_are_counted(tmp_path, write_pico, dtype, method):
    weight = odd_weight(dtype).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    source = write_pico(tmp_path / "in", dtype=dtype, edit={UP: weight})
    found = llmq.quantize(source, tmp_path / "out", group_size=32, method=method).to_json()
    by_name = {t["name"]: t for t in found["tensors"]}
    expected = counts_of(dtype)
    if method != "rtn":  # a search may find better than the largest scale
        expected["scale_overflows"] = by_name[UP]["edges"]["scale_overflows"]
    assert by_name[UP]["edges"] == expected
    assert by_name["model.norm.weight"]["edges"] is None
    quantized = [t for t in found["tensors"] if t["bits"]]
    assert all(t["edges"]["groups"] == t["shape"][0] * t["shape"][1] // 32 for t in quantized)
    whole = found["edges"]
    assert (whole["quantized_tensors"], whole["nonfinite_tensors"]) == (len(quantized), 0)
    assert whole["groups"] == sum(t["edges"]["groups"] for t in quantized)
    assert {key: whole[key] for key in expected if key != "groups"} == {
        k: v for k, v in expected.items() if k != "groups"
    }


def test_blocks_of_rows_add_up(tmp_path, write_pico):
    source = write_pico(tmp_path / "in", dtype="float32", edit={UP: odd_weight("float32")})
    whole = llmq.quantize(source, tmp_path / "whole", group_size=32, method="rtn").edges
    parts = {}

    def watch(name, rows, q):
        parts[name] = parts.get(name, EdgeCounts()) + sum(
            (
                count_edges(rows[i : i + 1], quantize_tensor(rows[i : i + 1], 4, 32, method="rtn"))
                for i in range(len(rows))
            ),
            EdgeCounts(),
        )

    llmq.quantize(source, tmp_path / "parts", group_size=32, method="rtn", watch=watch, lm_head="keep")
    assert parts == {name: whole[name] for name in parts}


def test_the_summary_has_a_line_for_each_kind(tmp_path, write_pico):
    norm = np.ones(64, np.float32)
    norm[3] = np.inf
    edit = {UP: odd_weight("float32"), "model.norm.weight": norm}
    source = write_pico(tmp_path / "in", dtype="float32", edit=edit)
    flags = ["--group-size", "32", "--method", "rtn", "--nonfinite", "keep"]
    arguments = ["quantize", str(source), "-o", str(tmp_path / "out"), *flags, "--report", str(tmp_path / "page.html")]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    for line in (
        "  3 groups of zeros\n",
        "  1 groups of one number\n",
        "  1 groups with the least scale there is\n",
        "  1 groups with the largest scale there is: their largest weights may be clipped\n",
        "  1 tensors copied with NaN or infinity\n",
    ):
        assert line in done.stdout
    assert "groups of one number" in (tmp_path / "page.html").read_text()
    plain = write_pico(tmp_path / "plain")
    done = CliRunner().invoke(cli, ["quantize", str(plain), "-o", str(tmp_path / "out2")], catch_exceptions=False)
    assert "groups" not in done.stdout.replace("group 64", "")


def test_a_continued_run_tells_what_it_wrote_itself(tmp_path, write_pico):
    source = write_pico(tmp_path / "in", shards=2)

    class Stop(NullProgress):
        left = 60_000

        def advance(self, amount):
            self.left -= amount
            if self.left < 0:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        llmq.quantize(source, tmp_path / "out", progress=Stop(), max_shard_size=30_000)
    report = llmq.quantize(source, tmp_path / "out", max_shard_size=30_000)
    found = report.to_json()
    counted = [t for t in found["tensors"] if t["edges"]]
    assert 0 < len(counted) == found["edges"]["quantized_tensors"] < len(report.plan.quantized)
    assert llmq.quantize(source, tmp_path / "out", max_shard_size=30_000).to_json()["edges"]["quantized_tensors"] == 0


def test_calibrated_blocks_are_counted_too(tmp_path, sample_model):
    report = llmq.quantize(sample_model, tmp_path / "out", method="imatrix", calibrate_tokens=64)
    assert {t.name for t in report.plan.quantized} == set(report.edges)
    assert all(counts.groups for counts in report.edges.values())


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
@pytest.mark.parametrize("name", [UP, "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight"])
def test_kept_tensors_are_the_sources_bytes_and_counted(tmp_path, write_pico, name, dtype):
    names = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
    shape = {UP: (128, 64), "model.embed_tokens.weight": (96, 64)}.get(name, (64,))
    values = np.linspace(-1, 1, np.prod(shape)).reshape(shape).astype(NUMPY_DTYPES[dtype])
    values.flat[5], values.flat[-1], values.flat[17] = np.nan, -np.inf, np.inf
    source = write_pico(tmp_path / "in", dtype=names[dtype], edit={name: values})
    for flags in ({}, {"embeddings": 8}):
        with pytest.raises(InputError, match="1 NaN and 2 infinite") as caught:
            llmq.quantize(source, tmp_path / "refused", **flags)
        assert name in str(caught.value)
        assert "--nonfinite keep" in caught.value.hint
        assert not (tmp_path / "refused").exists()
    report = llmq.quantize(source, tmp_path / "out", nonfinite="keep", embeddings=8)
    found = report.to_json()
    assert {t["name"]: t["edges"]["nonfinite_values"] for t in found["tensors"] if t["edges"]}[name] == 3
    assert (found["edges"]["nonfinite_tensors"], found["edges"]["nonfinite_values"]) == (1, 3)
    with open_source(tmp_path / "out") as opened:
        kept = MappedCheckpoint(opened).tensor(name)
        assert kept.tobytes() == values.tobytes()


def test_a_float64_beyond_float32_is_refused_or_kept(tmp_path, write_pico):
    weight = np.ones((128, 64))
    weight[7, 9] = 1e300
    source = write_pico(tmp_path / "in", dtype="float64", edit={UP: weight})
    with pytest.raises(InputError, match="1 infinite in float32"):
        llmq.quantize(source, tmp_path / "out")
    report = llmq.quantize(source, tmp_path / "out", nonfinite="keep")
    assert next(t for t in report.plan.tensors if t.name == UP).spec is None
    assert report.edges_json()["nonfinite_values"] == 0


def test_calibration_names_the_block_that_nan_spoils(tmp_path, write_pico):
    norm = np.ones(64, np.float32)
    norm[3] = np.nan
    source = write_pico(tmp_path / "in", dtype="float32", edit={"model.layers.1.input_layernorm.weight": norm})
    (tmp_path / "text").write_text("abc")
    with pytest.raises(LlmqError) as caught:
        llmq.quantize(source, tmp_path / "out", method="gptq", nonfinite="keep")
    assert str(caught.value)
    assert not list(tmp_path.glob("out/*.safetensors"))


def broken(value):
    method = METHODS["mse"]

    def quantize(weight, spec, statistics=None):
        q = method.quantize(weight, spec)
        q.scale[-1, -1] = value
        return q

    return Method(quantize)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, -0.0])
def test_scales_that_stand_for_nothing_are_never_written(tmp_path, write_pico, monkeypatch, value):
    monkeypatch.setitem(METHODS, "mse", broken(value))
    with pytest.raises(LlmqError, match=r"zero or not finite \(found 1 of") as caught:
        llmq.quantize(write_pico(tmp_path / "in"), tmp_path / "out")
    assert ".weight: " in str(caught.value)
    assert not list(tmp_path.glob("out/*.safetensors"))
    assert not (tmp_path / "out" / "llmq.json").exists()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_scales_are_checked_in_every_dtype(dtype):
    scale = np.ones((3, 4), dtype)
    check_scales("a", scale)
    check_scales("a", scale[:0])
    for value in (np.nan, np.inf, -np.inf, 0.0):
        wrong = scale.copy()
        wrong[1, 2] = value
        with pytest.raises(LlmqError, match=r"^a: "):
            check_scales("a", wrong)


def test_the_least_scale_of_one_bit_is_not_halved_to_zero(tmp_path, write_pico):
    weight = np.zeros((128, 64), np.float16)
    weight[5, 6] = 2.0**-24
    source = write_pico(tmp_path / "in", dtype="float16", edit={UP: weight})
    llmq.quantize(source, tmp_path / "out", bits=1)
    with open_source(tmp_path / "out") as opened:
        scale = MappedCheckpoint(opened).tensor(UP.replace("weight", "weight_scale"))
        assert (scale > 0).all()


@pytest.mark.parametrize(
    ("code", "scale", "found"),
    [(0x7F, 1.0, (1, 0)), (0x38, np.nan, (8192, 0)), (0x38, np.inf, (0, 8192)), (0x00, -np.inf, (8192, 0))],
)
def test_nan_in_8_bit_floats_and_in_their_scales(tmp_path, write_pico, code, scale, found):
    source = write_pico(tmp_path / "in")
    tensors = load_file(source / "model.safetensors")
    codes = np.full((128, 64), 0x38 if code == 0x7F else code, np.uint8)
    codes[3, 5] = code
    tensors[UP] = codes.view(ml_dtypes.float8_e4m3fn)
    tensors[f"{UP}_scale_inv"] = np.full((1, 1), scale, np.float32)
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(InputError, match=f"{found[0]} NaN and {found[1]} infinite") as caught:
        llmq.quantize(source, tmp_path / "out")
    assert UP in str(caught.value)
    report = llmq.quantize(source, tmp_path / "out", nonfinite="keep")
    assert report.edges[UP].nonfinite_values == sum(found)
    with open_source(tmp_path / "out") as opened:
        kept = MappedCheckpoint(opened).tensor(UP)
        assert kept.dtype == ml_dtypes.bfloat16
        assert int((~np.isfinite(kept.astype(np.float32))).sum()) == sum(found)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_one_of_many_experts(tmp_path, write_pico, value):
    experts = {
        f"model.layers.0.block_sparse_moe.experts.{n}.{part}.weight": np.ones((64, 64), np.float32)
        for n in range(4)
        for part in ("w1", "w2", "w3")
    }
    hurt = "model.layers.0.block_sparse_moe.experts.2.w3.weight"
    experts[hurt][5, 6] = value
    source = write_pico(tmp_path / "in", dtype="float32", edit=experts, model_type="mixtral", num_local_experts=4)
    with pytest.raises(InputError, match="not finite") as caught:
        llmq.quantize(source, tmp_path / "out")
    assert hurt in str(caught.value)
    report = llmq.quantize(source, tmp_path / "out", nonfinite="keep")
    assert report.edges[hurt].nonfinite_values == 1
    assert report.edges_json()["nonfinite_tensors"] == 1
    assert report.edges[hurt.replace("2.w3", "3.w3")].constant_groups == 64


def test_json_has_the_counts(tmp_path, write_pico):
    source = write_pico(tmp_path / "in")
    done = CliRunner().invoke(
        cli, ["quantize", str(source), "-o", str(tmp_path / "out"), "--json"], catch_exceptions=False
    )
    found = json.loads(done.stdout)
    assert found["edges"]["groups"] == sum(t["edges"]["groups"] for t in found["tensors"] if t["edges"])
