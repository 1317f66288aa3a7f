import json

import pytest

MATMUL = ("bench", "matmul", "--bits", "4,2", "--group-size", 32, "--tokens", "1,2", "--shape", "32x128")
SMALL = ("--working-set", "40K", "-r", 1, "-t", 1)

ROW = {
    "name",
    "bits",
    "group_size",
    "threads",
    "tokens",
    "seconds",
    "bytes_per_second",
    "limit_bytes_per_second",
    "ratio",
    "tokens_per_second",
    "joules_per_token",
}


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    from llmq_kernels.jit import set_threads, threads

    before = threads()
    yield
    set_threads(before)


def test_matmul_as_json(call):
    code, out, err = call(*MATMUL, *SMALL, "--json")
    assert code == 0
    assert "timing matmul: 16 runs" in err
    found = json.loads(out)
    assert (found["schema"], found["benchmark"]) == (1, "matmul")
    assert set(found["machine"]) >= {"cpu", "features", "versions"}
    assert [(row["bits"], row["tokens"]) for row in found["rows"]] == [(4, 1), (4, 2), (2, 1), (2, 2)]
    assert all(set(row) >= ROW for row in found["rows"])


def test_matmul_as_a_table(call):
    code, out, _ = call("-q", *MATMUL, *SMALL, "--asymmetric", "--compute", "float32", "--scale-dtype", "float32")
    assert code == 0
    heading, *lines = out.splitlines()
    assert heading.split()[:5] == ["threads", "tokens", "seconds", "GB/s", "limit"]
    assert lines[0].startswith("4-bit g32 asymmetric")
    assert lines[-1].startswith("llmq ")


def test_generate_quantize_and_memory_as_json(call, tmp_path, write_pico):
    model = write_pico(tmp_path / "m")
    runs = {
        "generate": ("-p", 4, "--context", 16, "-r", 1, "-t", 1),
        "quantize": ("--method", "rtn", "--group-size", 32, "-r", 1, "-t", 1, "--folder", tmp_path),
        "memory": ("-p", 4, "-m", 2, "-t", 1),
    }
    for name, flags in runs.items():
        code, out, _ = call("-q", "bench", name, model, *flags, "--json")
        assert code == 0
        found = json.loads(out)
        assert (found["schema"], found["benchmark"]) == (1, name)
        assert all(set(row) >= ROW for row in found["rows"])
        shown = call("-q", "bench", name, model, *flags)[1]
        assert "threads" in shown.splitlines()[0]


def test_generate_counts_the_bytes_of_a_narrower_cache(call, tmp_path, write_pico):
    model = write_pico(tmp_path / "m")
    read = {}
    for bits in (16, 8, 4):
        flags = ("-p", 4, "--context", 16, "-r", 1, "-t", 1, "--kv-bits", bits, "--json")
        found = json.loads(call("-q", "bench", "generate", model, *flags)[1])
        assert found["settings"]["kv_bits"] == bits
        row = found["rows"][-1]
        read[bits] = row["bytes_per_second"] * row["seconds"]
    assert read[8] < read[16]


def test_quantize_uses_a_folder_that_is_there(call, tmp_path, write_pico):
    code, _, err = call("bench", "quantize", write_pico(tmp_path / "m"), "--folder", tmp_path / "no", "-r", 1)
    assert code == 3
    assert len(err.splitlines()) <= 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("matmul", "--bits", "9"), 2, "invalid value for '--bits'"),
        (("matmul", "--tokens", "1,x"), 2, "invalid value for '--tokens'"),
        (("matmul", "--shape", "4096"), 2, "'4096' is not a shape such as 4096x11008"),
        (("matmul", "--group-size", "48", "--shape", "8x64", "--working-set", "1K"), 2, "does not divide 64 columns"),
        (("matmul", "-t", "100000"), 2, "--threads: threads must be 1 to"),
        (("generate", "/nowhere"), 3, "no such folder"),
        (("memory", "/nowhere"), 3, "no such folder"),
        (("quantize", "/nowhere"), 3, "no such folder"),
        (("nothing",), 2, "no such command"),
    ],
)
def test_errors_are_a_line_and_a_hint(call, arguments, code, message):
    found, out, err = call("-q", "bench", *arguments)
    assert found == code
    assert out == ""
    lines = err.splitlines()
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert len(lines) <= 2


def test_threads_are_one_and_all_unless_asked_for(call):
    from llmq_kernels.jit import threads

    found = json.loads(call("-q", *MATMUL, "--working-set", "40K", "-r", 1, "--json")[1])
    assert {row["threads"] for row in found["rows"]} == {1, threads()}


@pytest.mark.parametrize("name", ["matmul", "generate", "quantize", "memory"])
def test_each_benchmark_has_help(call, name):
    code, out, _ = call("bench", name, "-h")
    assert code == 0
    assert "--json" in out
    assert "--threads" in out
