"""A pico model through the benchmarks that run models."""

import json

import pytest

import llmq
from llmq.benchmarks.child import llmq as run_llmq
from llmq.benchmarks.generate import GenerateSettings, Session, bench_generate
from llmq.benchmarks.memory import MemorySettings, bench_memory
from llmq.benchmarks.plot import FORMATS, check_plot, draw_memory, save_memory
from llmq.benchmarks.quantize import QuantizeSettings, bench_quantize
from llmq.errors import InputError, UsageError
from llmq_kernels.jit import set_threads, threads


@pytest.fixture(scope="module")
def pico(tmp_path_factory, write_pico):
    folder = tmp_path_factory.mktemp("bench")
    source = write_pico(folder / "source")
    return source, llmq.quantize(source, folder / "4bit", group_size=32).output


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    before = threads()
    yield
    set_threads(before)


def test_generate(pico, caplog):
    settings = GenerateSettings(prompts=(4, 999), contexts=(3, 20, 128), threads=(1,), runs=1)
    table = bench_generate(pico[1], settings)
    assert [(row.name, row.tokens) for row in table.rows] == [
        ("prefill 4", 4),
        ("decode at 20", 1),
        ("decode at 128", 1),
    ]
    assert all((row.bits, row.group_size) == (4, 32) for row in table.rows)
    prefill, decode, _ = table.rows
    assert prefill.tokens_per_second == pytest.approx(4 / prefill.seconds)
    assert decode.tokens_per_second == pytest.approx(1 / decode.seconds)
    assert prefill.ratio is None
    assert decode.ratio > 0
    assert sorted(record.args[1] for record in caplog.records) == [3, 999]


def test_generate_with_nothing_that_fits(pico):
    with pytest.raises(UsageError, match="nothing to measure"):
        bench_generate(pico[1], GenerateSettings(prompts=(999,), contexts=(9999,), runs=1))


def test_starts_are_timed_cold_and_warm(pico):
    table = bench_generate(pico[1], GenerateSettings(prompts=(2,), contexts=(), threads=(1,), runs=1, start=True))
    seconds = {row.name: row.seconds for row in table.rows}
    for kind in ("cold", "warm"):
        assert 0 < seconds[f"{kind} start to first matmul"] < seconds[f"{kind} start to first token"]


def test_a_session_fills_its_cache_to_the_context(pico):
    session = Session(pico[1])
    session.decode(40, 3)
    assert session.fill(40, 0).length == 40
    session.decode(30, 3)
    assert session.fill(30, 0).length == 30
    assert session.cache_bytes == session.fill(30, 0).nbytes / session.fill(30, 0).capacity


def test_a_session_reads_each_context_once(pico):
    session = Session(pico[1])
    session.decode(40, 3)
    session.decode(30, 3)
    read = []
    session.fill(40, 36, read.append)
    assert read == []


def test_quantize(pico, tmp_path):
    settings = QuantizeSettings(threads=(1,), group_size=32, runs=1, folder=str(tmp_path))
    table = bench_quantize(pico[0], settings)
    assert [row.name for row in table.rows] == ["rtn 4-bit g32", "mse 4-bit g32"]
    assert all(row.seconds > 0 and row.peak_anon_bytes > 0 for row in table.rows)
    assert list(tmp_path.iterdir()) == []


def test_quantize_into_no_folder(pico, tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        bench_quantize(pico[0], QuantizeSettings(folder=str(tmp_path / "nowhere")))


RUNNING = ["Python and kernels", "loading", "prompt", "making tokens"]


def test_memory_of_running(pico):
    table = bench_memory(pico[1], MemorySettings(prompt=5, tokens=4, threads=(1,)))
    assert [row.name for row in table.rows] == RUNNING
    assert all(row.peak_rss_bytes >= row.peak_anon_bytes > 0 for row in table.rows)
    assert table.rows[-1].predicted_peak_bytes > table.rows[-1].peak_anon_bytes
    (course,) = table.timelines
    assert [name for _, name in course.stages] == RUNNING
    began = [at for at, _ in course.stages]
    assert began == sorted(began)
    assert began[-1] <= course.samples[-1][0]
    assert max(anon + file for _, anon, file in course.samples) <= max(row.peak_rss_bytes for row in table.rows) * 1.1


def test_memory_of_quantizing_and_running(pico, tmp_path):
    settings = MemorySettings(bits=3, group_size=32, max_memory=2 << 30, prompt=5, tokens=4, folder=str(tmp_path))
    table = bench_memory(pico[0], settings)
    assert [row.name for row in table.rows] == ["quantizing", *RUNNING]
    assert table.rows[-1].bits == 3
    assert table.rows[0].peak_anon_bytes <= 1.15 * table.rows[0].predicted_peak_bytes
    assert [course.name for course in table.timelines] == ["quantizing", "running"]
    assert list(tmp_path.iterdir()) == []
    found = json.loads(json.dumps(table.to_json()))
    assert found["timelines"][1]["predicted"] == found["rows"][-1]["predicted_peak_bytes"]
    pytest.importorskip("matplotlib")
    for ending in FORMATS:
        path = tmp_path / f"memory{ending}"
        check_plot(path)
        save_memory(table, path)
        assert path.stat().st_size > 5000
    axes = draw_memory(table).axes
    assert [panel.get_title(loc="left") for panel in axes] == ["quantizing, 1 thread", "running, 1 thread"]
    assert any("predicted" in text.get_text() for text in axes[1].get_legend().get_texts())


def test_plots_that_cannot_be_drawn(tmp_path):
    with pytest.raises(UsageError, match="--plot writes pictures"):
        check_plot(tmp_path / "memory.bmp")
    with pytest.raises(InputError, match="no such folder"):
        check_plot(tmp_path / "nowhere" / "memory.png")


def test_the_errors_of_other_processes_are_ours(pico, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        bench_memory(tmp_path / "nothing", MemorySettings())
    with pytest.raises(UsageError, match="unknown --method") as caught:
        run_llmq("quantize", pico[0], "-o", tmp_path / "out", "--method", "best")
    assert "rtn/percentile/entropy/hqq/mse" in str(caught.value)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    with pytest.raises(InputError):
        bench_memory(broken, MemorySettings())
