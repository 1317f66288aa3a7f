"""`llmq quantize` as users and other programs meet it."""

import hashlib
import json
import signal
import subprocess
import sys

import pytest

CONTRACT = {
    "schema", "output", "source_bytes", "output_bytes", "bits_per_weight", "bits_per_weight_quantized", "seconds",
    "peak_anon_bytes", "predicted_peak_bytes", "tensors",
}  # fmt: skip


@pytest.fixture(scope="module")
def pico(tmp_path_factory, write_pico):
    return write_pico(tmp_path_factory.mktemp("pico"))


def test_the_summary_tells_sizes_widths_reasons_and_memory(call, pico, tmp_path):
    code, out, err = call("quantize", pico, "-o", tmp_path / "out")
    assert code == 0
    assert "bits per weight" in out
    assert "10 tensors to 4 bits, group 64" in out
    assert "1 tensors to 8 bits, group 64" in out
    assert "kept: norm" in out
    assert "anonymous" in out
    assert "quantizing" in err
    code, out, _ = call("quantize", pico, "-o", tmp_path / "out")
    assert (code, out.split(":")[0]) == (0, "already complete")


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_json_is_one_object_with_the_keys_of_the_contract(call, pico, tmp_path, flags):
    code, out, _ = call("quantize", pico, "-o", tmp_path / "out", "--json", "--bits", 2, *flags)
    found = json.loads(out)
    assert code == 0
    assert found.keys() >= CONTRACT
    assert {"name", "bits", "reason"} <= found["tensors"][0].keys()
    assert (tmp_path / "out").exists() == (not flags)


def test_a_dry_run_lists_what_becomes_of_each_kind_of_tensor(call, pico, tmp_path):
    code, out, _ = call("quantize", pico, "-o", tmp_path / "out", "--dry-run", "--ignore", "o_proj")
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert code == 0
    assert "4 bits, group 64" in lines["model.layers.*.mlp.up_proj.weight"]
    assert "kept: --ignore" in lines["model.layers.*.self_attn.o_proj.weight"]
    assert "kept: norm" in lines["model.norm.weight"]
    assert "peak memory about" in out


@pytest.mark.parametrize(
    ("flags", "code", "word"),
    [
        (["--bits", 9], 2, "--bits"),
        (["--group-size", "many"], 2, "--group-size"),
        (["--group-size", 48], 2, "nothing to quantize"),
        (["--method", "magic"], 2, "--method"),
        (["--set", "x"], 2, "--set"),
        (["--ignore", "("], 2, "regular expression"),
        (["--for", "vllm", "--bits", 3], 2, "not readable by vllm"),
        (["--for", "transformers", "--asymmetric"], 2, "not readable by transformers"),
        (["--max-memory", "10MiB"], 5, "memory limit"),
        (["--max-memory", "lots"], 2, "--max-memory"),
        (["--threads", 100_000], 2, "--threads"),
        (["--target-bpw", 1], 2, "at least 2.2"),
        (["--target-bpw", 3, "--target-size", "1MB"], 2, "cannot both be kept to"),
        (["--target-bpw", 3, "--bits", 3], 2, "--bits fixes"),
        (["--ram", "1GiB"], 2, "belong together"),
        (["--lm-head", "auto"], 2, "auto needs"),
        (["--recipe", "nowhere.json"], 3, "no recipe there"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(call, pico, tmp_path, flags, code, word):
    found, out, err = call("quantize", pico, "-o", tmp_path / "out", *flags)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (found, out, len(errors)) == (code, "", 1)
    assert word in errors[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="signals differ")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_stopped_run_says_so_and_goes_on(environment, write_pico, tmp_path, number):
    source = write_pico(tmp_path / "in", hidden_size=256, vocab_size=200_000, num_hidden_layers=1)
    program = [sys.executable, "-m", "llmq", "quantize", str(source), "--embeddings", "4", "--threads", "1"]
    program += ["--max-memory", "195MiB"]  # small blocks, so that the run is stopped between two
    subprocess.run([*program, "-o", tmp_path / "whole"], env=environment, check=True, capture_output=True)
    with subprocess.Popen(
        [*program, "-o", tmp_path / "out"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not process.stderr.readline().startswith("quantizing"):
            assert process.poll() is None
        process.send_signal(getattr(signal, number))
        assert process.wait(60) == 75
        assert process.stderr.read().splitlines()[-2:] == [
            f"error: {tmp_path / 'out'}: stopped",
            "hint: the same command goes on from here",
        ]
    assert not (tmp_path / "out" / "llmq.json").exists()
    subprocess.run([*program, "-o", tmp_path / "out"], env=environment, check=True, capture_output=True)
    assert not (tmp_path / "out" / ".llmq").exists()
    one, other = (hashlib.sha256((tmp_path / f / "model.safetensors").read_bytes()) for f in ("whole", "out"))
    assert one.digest() == other.digest()


def test_widths_by_budget_are_shown_before_and_after(call, pico, tmp_path):
    flags = ["--target-bpw", 3.5, "--importance", "priors", "--embeddings", "auto"]
    code, planned, _ = call("quantize", pico, "-o", tmp_path / "out", "--dry-run", *flags)
    assert code == 0
    assert "3 bits, group 64" in planned
    assert "% of the weights #" in planned
    assert "3.4" in planned.split(" bits per weight of these")[0].splitlines()[-1]
    code, made, _ = call("quantize", pico, "-o", tmp_path / "out", *flags)
    assert code == 0
    assert [line for line in made.splitlines() if "of the weights" in line] == [
        line for line in planned.splitlines() if "of the weights" in line
    ]
    code, out, _ = call("quantize", pico, "-o", tmp_path / "again", "--recipe", tmp_path / "out", "--json")
    found = json.loads(out)
    assert (code, found["goal"]) == (0, None)
    assert {t["bits"] for t in found["tensors"] if t["name"] == "model.embed_tokens.weight"} != {None}
