import io
import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner

SMALL = ("--bits", "4", "--group-sizes", "64", "--shape", "32,128", "--working-set", "30K", "-t", "1", "-r", "1")


@pytest.fixture
def peers(script, monkeypatch):
    """The script, and the path that its processes find this checkout by."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    return script("bench_peers")


def test_matmul_beside_what_is_installed(peers):
    done = CliRunner().invoke(peers.main, ["matmul", "--tokens", "1,3", *SMALL, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["schema"] == 1
    assert set(found["peers"]) == set(peers.DISTRIBUTIONS)
    ours = [result for result in found["results"] if result["contestant"] == "llmq"]
    assert [(result["task"], result["times_ours"]) for result in ours] == [
        ("4-bit g64, 1 token", 1.0),
        ("4-bit g64, 3 tokens", 1.0),
    ]
    absent = peers.missing()
    named = {result["contestant"] for result in found["results"]}
    assert named == {"llmq", "plain read of our bytes", *({"torch", "ONNX Runtime"} - set(absent))}
    assert all(f"not installed: {peer}" in done.stderr for peer in absent)


def test_the_table_can_be_read_as_it_is(peers):
    result = peers.Result("generate", "decode at 64", "llmq", 2, 0.5, 1_000_000, 8)
    peers.compared([result])
    lines = peers.table(peers.HEADINGS, [peers.cells(result)]).splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells == ["decode at 64", "2", "llmq", "0.500 s", "16.00", "1.0 MB", "0.02", "1.00"]


def test_the_better_of_spinning_and_not_counts(peers):
    seconds = {"llmq": 1.0, "ONNX Runtime": 2.0, "ONNX Runtime spinning": 1.5}
    assert peers.best_of_spinning(seconds) == {"llmq": 1.0, "ONNX Runtime": 1.5}
    assert peers.best_of_spinning({"ONNX Runtime spinning": 3.0}) == {"ONNX Runtime": 3.0}


def test_one_that_fails_is_left_out_and_the_rest_goes_on(peers, capsys):
    def fail():
        raise peers.ContestantError("no such width")

    assert peers.alternate({"a": fail, "b": lambda: 2.0}, 2) == {"b": 2.0}
    assert capsys.readouterr().err == "left out: a: no such width\n"


def test_without_llama_cpp_nothing_is_made(peers, tmp_path):
    options = peers.Options(models=peers.Models(tmp_path))
    assert list(peers.bench_generate(options, {"llama.cpp": "llama_cpp"})) == []
    assert list(tmp_path.iterdir()) == []


def test_quantizing_beside_nothing(peers, tmp_path, write_pico):
    model = write_pico(tmp_path / "m", hidden_size=128, head_dim=32)
    options = peers.Options(models=peers.Models(tmp_path, model), runs=1, threads=(1,))
    results = list(peers.bench_quantize(options, {"llama.cpp": "llama_cpp"}))
    assert [(result.contestant, result.times_ours is not None) for result in results] == [
        ("llmq rtn", True),
        ("llmq mse", True),
    ]


def test_a_model_of_ours_as_a_contestant(peers, tmp_path, write_pico):
    from llmq_kernels.jit import set_threads, threads
    from peer_llmq import LlmqModel

    before = threads()
    contestant = LlmqModel(str(write_pico(tmp_path / "m")), 1)
    assert contestant.streamed_bytes() > 0
    assert contestant.prefill(4) > 0
    assert contestant.decode(16, 4) > 0
    set_threads(before)


def test_objects_of_other_processes(peers):
    with peers.Child("json", "JSONDecoder") as child:
        assert child.call("decode", s="[1, 2]") == [1, 2]
        with pytest.raises(peers.ContestantError, match="JSONDecodeError"):
            child.call("decode", s="[1")
        assert child.call("decode", s="3") == 3
    with pytest.raises(peers.ContestantError, match="ModuleNotFoundError"):
        peers.Child("nosuchmodule", "Nothing")


def test_a_process_that_ends_is_told(peers):
    child = peers.Child("json", "JSONDecoder")
    child._process.kill()
    with pytest.raises(peers.ContestantError, match="ended with -9"):
        child.call("decode", s="1")
    child.close()


def test_serving_ends_with_the_questions(script):
    child = script("peer_child")
    answers = io.StringIO()
    questions = io.StringIO('{"real": 3, "imag": 4}\n{"method": "conjugate", "arguments": {}}\n')
    child.serve("builtins", "complex", questions, answers)
    first, second = map(json.loads, answers.getvalue().splitlines())
    assert first == {"result": None}
    assert second["error"].startswith("TypeError")


def test_runs_use_few_matrices_where_one_takes_long(script):
    count = script("peer_matmul").matrices_of
    assert count((4096, 11008), 4, 1, 400_000_000) == 17
    assert count((4096, 11008), 4, 512, 400_000_000) == 4
    assert count((4096, 11008), 8, 1, 1) == 1


def test_names_and_rows_of_gguf(script):
    llama = script("peer_llama")
    assert llama.gguf_name("model.embed_tokens.weight") == "token_embd.weight"
    assert llama.gguf_name("model.layers.7.mlp.down_proj.weight") == "blk.7.ffn_down.weight"
    halves = np.arange(8)[:, None]
    assert llama.interleave(halves, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
