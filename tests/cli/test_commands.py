"""Each command as users and other programs meet it: on the sample, quantized where it matters."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest

PROMPT = "It was a dark night"


def test_sample_writes_what_its_hints_name(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call("sample", "tiny one")
    assert (code, err) == (0, "")
    hints = [shlex.split(line) for line in out.splitlines() if line.startswith("  llmq")]
    assert [words[1] for words in hints] == ["quantize", "eval", "generate"]
    assert hints[0][2] == "tiny one"
    assert (tmp_path / hints[1][hints[1].index("--text") + 1]).is_file()
    assert json.loads(call("sample", "tiny one", "--json")[1])["text"] == "tiny one/heldout.txt"


def test_sample_refuses_a_folder_with_other_files(call, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = call("sample", tmp_path)
    assert code == 2
    assert err.splitlines()[0].endswith("the folder is not empty: file")


def test_sample_into_the_current_folder(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = call("sample", ".")
    assert code == 0
    assert f"-o {tmp_path}-4bit" in out


def test_inspect(call, sample_model, small_model):
    code, out, err = call("inspect", sample_model)
    assert (code, err) == (0, "")
    assert "6,819,072" in out
    code, out, _ = call("inspect", small_model, "--tensors")
    assert "42 x 4-bit group 64" in out
    assert "model.layers.5.mlp.down_proj.weight" in out
    assert not any(line.endswith(" ") for line in out.splitlines())
    found = json.loads(call("inspect", small_model, "--json")[1])
    assert found["schema"] == 1
    assert found["parameters"] == 6_819_072
    assert {t["bits"] for t in found["tensors"]} == {4, 8, 16}


def test_inspect_needs_no_kernels(environment, small_model):
    import subprocess

    code = (
        "import sys; from llmq.cli.main import status; status(['inspect', sys.argv[1], '--json'])\n"
        "print(sorted({'numba', 'transformers', 'torch'} & set(sys.modules)), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, str(small_model)]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr.strip() == "[]"


def test_compare(call, sample_model, small_model):
    code, out, _ = call("compare", sample_model, small_model)
    assert code == 0
    assert "14 of 57 tensors are unchanged" in out
    found = json.loads(call("-q", "compare", sample_model, small_model, "--json")[1])
    assert set(found) == {"schema", "output", "output_bytes", "bits_per_weight", "nmse", "sqnr_db", "tensors"}
    held = json.loads(call("-q", "inspect", small_model, "--json")[1])
    assert (found["output_bytes"], found["bits_per_weight"]) == (held["total_bytes"], held["bits_per_weight"])
    assert 15 < found["sqnr_db"] < 30
    kept = next(t for t in found["tensors"] if t["unchanged"])
    assert kept["sqnr_db"] is None
    code, out, _ = call("compare", sample_model, small_model, "--worst", 3, "--sort", "saturation")
    assert code == 0
    assert "the 3 worst of 43 tensors that changed" in out
    rows = [line.split() for line in out.splitlines()[1:4]]
    nmse = {t["name"]: t["nmse"] for t in found["tensors"]}
    assert {row[0] for row in rows} == set(sorted(nmse, key=nmse.get)[-3:])
    shares = [float(row[-2]) for row in rows]
    assert shares == sorted(shares, reverse=True)


def test_eval(call, sample_model, small_model):
    text = sample_model / "heldout.txt"
    arguments = ("eval", small_model, "--text", text, "--max-tokens", 700)
    code, out, err = call(*arguments, "--base", sample_model, "--json")
    assert code == 0
    assert "scoring: 700 tokens" in err
    found = json.loads(out)
    assert found["tokens"] == 698
    assert (found["context"], found["compute"]) == (512, "float32")
    assert 0 < found["kl_median"] < found["kl_mean"] < found["kl_p99"] < found["kl_max"]
    assert 0.8 < found["top1_agreement"] < 1
    assert found["bits_per_weight"] == pytest.approx(6.678, abs=0.01)
    alone = json.loads(call("-q", *arguments, "--json")[1])
    assert alone["perplexity"] == found["perplexity"]
    assert "kl_mean" not in alone
    shown = call("-q", *arguments, "--base", sample_model, "--compute", "int8")[1]
    assert f"{found['bits_per_weight']:.3f}" in shown
    assert "non-overlapping windows of 512 tokens" in shown
    assert "int8 activations" in shown


def test_eval_says_what_is_wrong_with_a_text_or_a_base(call, sample_model, small_model, write_pico, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    code, _, err = call("eval", small_model, "--text", tmp_path / "latin.txt")
    assert code == 3
    assert "not UTF-8" in err
    assert call("eval", small_model, "--text", tmp_path / "nothing.txt")[0] == 3
    (tmp_path / "short.txt").write_text("a")
    assert call("eval", small_model, "--text", tmp_path / "short.txt")[0] == 2
    code, _, err = call(
        "eval", small_model, "--text", sample_model / "heldout.txt", "--base", write_pico(tmp_path / "p")
    )
    assert code == 3
    assert "no tokenizer" in err


def test_a_model_carries_what_was_measured(call, sample_model, small_model, tmp_path):
    model = shutil.copytree(small_model, tmp_path / "model")
    text = sample_model / "heldout.txt"
    scored = ("eval", model, "--base", sample_model, "--max-tokens", 600, "--context", 200)
    assert call(*scored)[0] == 0
    assert not (model / "quality.json").exists()
    found = json.loads(call(*scored, "--save", "--json")[1])
    assert call("compare", sample_model, model, "--save")[0] == 0
    assert call(*scored, "--text", text, "--save")[0] == 0  # what is bundled, under its other name
    held = json.loads(call("inspect", model, "--json")[1])["quality"]
    assert [run["text"] for run in held["evaluations"]] == ["heldout.txt"]
    assert held["evaluations"][0]["kl_mean"] == found["kl_mean"]
    assert str(tmp_path) not in (model / "quality.json").read_text()
    assert {"nmse", "saturation", "bits_per_weight"} <= set(held["tensors"][0])
    shown = call("inspect", model)[1]
    assert f"mean KL divergence {found['kl_mean']:.6g} from sample" in shown
    for command in (("eval", sample_model, "--save"), ("compare", model, sample_model, "--save")):
        code, _, err = call(*command)
        assert code == 2
        assert "not a finished output of llmq" in err
    code, _, err = call("compare", model, small_model, "--save")
    assert (code, "was not made from this source" in err) == (2, True)


def test_eval_tells_its_errors(call, small_model, sample_model):
    out = call("-q", "eval", small_model, "--base", sample_model, "--max-tokens", 600, "--context", 200)[1]
    assert "with the 3 windows as clusters" in out
    flags = ("--base", sample_model, "--max-tokens", 600, "--context", 200)
    found = json.loads(call("eval", small_model, *flags, "--json")[1])
    assert f"{found['delta_ln_ppl']:+.6f} +- {found['delta_ln_ppl_se_clustered']:.6f}" in out
    assert f"{found['kl_mean']:.6f} +- {found['kl_mean_se_clustered']:.6f}" in out
    assert "as if positions were independent" in call("-q", "eval", small_model, "--max-tokens", 100)[1]
    code, _, err = call("eval", small_model, "--max-memory", "50MiB")
    assert code == 5
    assert "--max-memory" in err


def test_generate(call, small_model):
    code, out, err = call("generate", small_model, "-p", PROMPT, "-m", 12)
    assert code == 0
    lines = err.splitlines()
    assert lines[-3].startswith("prompt: 5 tokens, ")
    assert lines[-2].startswith("generation: 12 tokens, ")
    assert lines[-1].startswith("peak memory: ")
    code, as_json, _ = call("generate", small_model, "-p", PROMPT, "-m", 12, "--json")
    found = json.loads(as_json)
    assert found["text"] + "\n" == out
    assert (found["prompt_tokens"], found["tokens"], found["stop_reason"]) == (5, 12, "length")
    assert found["peak_rss_bytes"] >= found["peak_anon_bytes"] > 0
    assert found["tokens_per_second"] == pytest.approx(11 / found["seconds"])
    assert found["prompt_seconds"] > 0


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_kv_bits(call, small_model, sample_model, bits):
    code, out, _ = call("generate", small_model, "-p", PROMPT, "-m", 12, "--kv-bits", bits, "--json")
    assert code == 0
    assert json.loads(out)["tokens"] == 12
    text = ("--text", sample_model / "heldout.txt", "--max-tokens", 300)
    code, out, _ = call("eval", sample_model, "--base", sample_model, *text, "--kv-bits", bits, "--json")
    found = json.loads(out)
    assert (code, found["kv_bits"]) == (0, bits)
    assert 0 < found["kl_mean"] < (0.02 if bits == 4 else 1e-3)
    assert call("generate", small_model, "-p", PROMPT, "--kv-bits", "3")[0] == 2


def test_generate_samples_by_seed_and_is_quiet(call, small_model):
    flags = ("-p", PROMPT, "-m", 12, "--temp", 0.9, "--top-k", 50, "--top-p", 0.9, "--min-p", 0.01)
    texts = [call("-q", "generate", small_model, *flags, "--seed", seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0][2] == ""


def test_generate_reads_its_prompt_from_stdin(spawn, small_model):
    prompts = {"input": PROMPT}
    piped = spawn("generate", small_model, "-p", "-", "-m", 4, "--json", **prompts)
    given = spawn("generate", small_model, "-p", PROMPT, "-m", 4, "--json", "--threads", 1)
    assert json.loads(piped.stdout)["text"] == json.loads(given.stdout)["text"]


def test_generate_refuses_what_does_not_fit(call, small_model):
    code, out, err = call("generate", small_model, "-p", PROMPT, "-m", 8, "--max-memory", "6MB")
    assert (code, out) == (5, "")
    assert "does not run in so little memory" in err
    assert "cache of 13 tokens" in err
    assert "hint: --max-memory" in err
    assert call("generate", small_model, "-p", PROMPT, "-m", 2, "--max-memory", "64GiB")[0] == 0


def test_generate_streams_what_does_not_stay(call, sample_model):
    code, plain, err = call("generate", sample_model, "-p", PROMPT, "-m", 40, "--json")
    found = json.loads(plain)
    assert (code, found["streamed_blocks"], found["blocks"]) == (0, 0, 6)
    # What the process takes is unknown here, and a refusal tells the least that does.
    _, _, err = call("generate", sample_model, "-p", PROMPT, "-m", 40, "--max-memory", "1MiB")
    least = int(re.search(r"hint: --max-memory (\d+)MiB", err)[1])
    limit = f"{least + 2}MiB"
    code, out, err = call("generate", sample_model, "-p", PROMPT, "-m", 40, "--max-memory", limit, "--json")
    streamed = json.loads(out)
    assert code == 0, err
    assert streamed["text"] == found["text"]
    assert 0 < streamed["streamed_blocks"] <= 6
    assert streamed["streamed_bytes"] > 0
    assert streamed["accepted"] <= streamed["guessed"]
    assert re.search(r"of 6 blocks stay in memory; .* are read for every pass", err)
    assert re.search(r"peak memory: .* \(predicted .*\)", err)


def test_chat_within_a_limit(spawn, small_model):
    flags = ("--max-memory", "8GiB", "--context", 60, "--json", "--temp", 0, "-m", 500)
    done = spawn("chat", small_model, *flags, input="Who are you?\n")
    assert done.returncode == 0, done.stderr
    (turn,) = json.loads(done.stdout)["turns"]
    assert turn["prompt_tokens"] + turn["tokens"] <= 61
    assert "context of 60 tokens is full" in done.stderr
    again = spawn("chat", small_model, *flags, input="Who are you?\nWhere?\n")
    assert again.returncode == 2
    assert json.loads(again.stdout)["turns"] == [turn]
    assert "longer than the context there is room for" in again.stderr
    assert "hint: a larger --context" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["-p", PROMPT, "--temp", "-1"], 2),
        (["-p", PROMPT, "--top-p", "2"], 2),
        (["-p", PROMPT, "--threads", "100000"], 2),
        (["-p", "word " * 3000], 2),
    ],
)
def test_generate_checks_its_flags(call, small_model, arguments, code):
    assert call("generate", small_model, *arguments)[0] == code


def test_chat_answers_every_line_of_stdin(spawn, small_model):
    done = spawn("chat", small_model, "-m", 5, "--temp", 0, input="Good morning.\n\nHow are you?\n")
    assert done.returncode == 0
    assert done.stderr.count("no chat template") == 1
    as_json = spawn("-q", "chat", small_model, "-m", 5, "--temp", 0, "--json", input="Good morning.\n\nHow are you?\n")
    turns = json.loads(as_json.stdout)["turns"]
    assert [turn["prompt"] for turn in turns] == ["Good morning.", "How are you?"]
    assert done.stdout == "".join(turn["text"] + "\n" for turn in turns)


def test_chat_keeps_its_cache(spawn, small_model):
    lines = "The first thing that I have to say to you is this.\nAnd?\n"
    turns = json.loads(spawn("-q", "chat", small_model, "-m", 3, "--temp", 0, "--json", input=lines).stdout)["turns"]
    assert turns[1]["prompt_tokens"] < turns[0]["prompt_tokens"]


def test_doctor(call):
    code, out, _ = call("doctor")
    assert code == 0
    assert "threading" not in out
    assert "numba" in out
    code, out, _ = call("doctor", "--json")
    found = json.loads(out)
    assert set(found) >= {"versions", "cpu", "threads", "cache", "memory", "disk", "environment", "problems"}
    assert found["memory"]["total"] >= found["memory"]["available"] > 0
    assert found["threads"]["layer"] in ("omp", "tbb", "workqueue")


WARM = """
from llmq.cli.main import status
from llmq_kernels import workers
code = status(["-q", "doctor", "--warm", "--json"])
print(*sorted({function.__name__ for function, *_ in workers._workers}))
raise SystemExit(code)
"""


def test_doctor_warms_the_kernels(environment):
    done = subprocess.run([sys.executable, "-c", WARM], env=environment, capture_output=True, text=True, check=True)
    found, _, ready = done.stdout.strip().rpartition("\n")
    assert json.loads(found)["warm_seconds"] > 0
    # What runs models, and not only what quantizes them.
    assert set(ready.split()) >= {"attend", "decode_rows", "dense_rows", "encode_rows", "prefill_rows"}


def test_models_do_not_run_without_the_jit(spawn, environment, sample_model):
    done = spawn("generate", sample_model, "-p", PROMPT, "-m", 1, env=environment | {"NUMBA_DISABLE_JIT": "1"})
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.splitlines()[-2:] == [
        "error: models run in compiled kernels only",
        "hint: unset NUMBA_DISABLE_JIT",
    ]


def test_doctor_finds_name_clashes(monkeypatch, tmp_path):
    from llmq.cli import examination

    monkeypatch.setattr(examination.metadata, "packages_distributions", lambda: {"llmq": ["llmq", "numba-llmq"]})
    monkeypatch.setattr(examination, "_version", lambda name: "1.0" if name == "kernels" else None)
    (tmp_path / "kernels").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    clashes = examination._name_clashes()
    assert clashes[0] == "another distribution installs a package called llmq: llmq"
    assert clashes[1].startswith("a folder hides the package `kernels`")


def test_doctor_finds_spinning_threads_and_missing_libraries(monkeypatch):
    from llmq.cli import examination

    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    problems = examination._thread_problems("workqueue")
    assert any("spin" in problem for problem in problems)
    assert any("no OpenMP" in problem for problem in problems)


def test_compiling_is_announced_once(spawn, environment, sample_model, small_model, tmp_path):
    fresh = environment | {"LLMQ_CACHE_DIR": str(tmp_path)}
    done = spawn("compare", sample_model, small_model, env=fresh)
    assert done.stderr.count("compiling kernels for this machine (once; kept in ") == 1
    assert str(tmp_path) in done.stderr


@pytest.mark.parametrize("command", ["generate {} -p - <&-", "chat {} <&-"])
def test_a_closed_stdin_is_a_usage_error(small_model, command):
    program = f"{shlex.quote(sys.executable)} -m llmq {command.format(shlex.quote(str(small_model)))}"
    run = subprocess.run(program, shell=True, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "error: standard input is closed" in run.stderr


def test_a_closed_stdout_is_no_surprise(small_model):
    program = f"{shlex.quote(sys.executable)} -m llmq generate {shlex.quote(str(small_model))} -p a -m 2 >&-"
    run = subprocess.run(program, shell=True, capture_output=True, text=True, check=False)
    assert "should not happen" not in run.stderr
