import json

import numpy as np
import pytest
from click.testing import CliRunner

from llmq.errors import UsageError
from llmq.methods import METHODS

RESULT = {
    "bits_per_weight_quantized": 4.25,
    "bits_per_weight": 7.87,
    "kl_mean": 0.02,
    "kl_p99": 0.1,
    "perplexity": 38.0,
    "top1_agreement": 0.9,
    "nmse": 0.008,
    "seconds": 0.3,
    "peak_anon_bytes": 1 << 20,
    "tokens": 100,
    "protocol": "windows",
}
SECTIONS = ("protocol", "rows", "gates", "peers", "seen", "outliers", "cost", "failed")


@pytest.fixture
def bench(script):
    return script("bench_quality")


@pytest.fixture
def texts(tmp_path):
    found = {name: tmp_path / f"{name}.txt" for name in ("text", "calibration")}
    for name, path in found.items():
        path.write_text(f"It is a truth universally acknowledged, that {name} must be read. " * 40)
    return found


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("".join(f"<!-- {name}:begin -->\n<!-- {name}:end -->\n" for name in SECTIONS))
    return path


def row_of(bench, key):
    return next(row for row in bench.rows(seen=True) if row.key == key)


def lines_of(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_every_row_has_a_key_of_its_own_and_flags_that_exist(bench):
    found = list(bench.rows(seen=True))
    assert len({row.key for row in found}) == len(found)
    assert {row.method for row in found if row.maker == "llmq"} == set(METHODS)
    assert {row.text for row in bench.rows(seen=False)} <= {None, "calibration"}
    for row in found:
        if row.maker == "llmq":
            assert (row.text is None) == (METHODS[row.method].needs == "nothing"), row


def test_ours_from_start_to_page_and_again_without_measuring(bench, texts, page, tmp_path, monkeypatch):
    arguments = ["--text", texts["text"], "--calibration", texts["calibration"], "--folder", tmp_path / "work"]
    arguments += ["--only", "^llmq-rtn-4-bits-g64-plain$", "--max-tokens", "200", "--no-cost", "--page", page]
    done = CliRunner().invoke(bench.main, list(map(str, arguments)))
    assert done.exit_code == 0, done.output
    assert "measuring llmq rtn, 4 bits, g64, plain" in done.stderr
    written = page.read_text()
    assert "199 tokens are scored" in written
    assert "- HQQ: 9 rows, not measured yet" in written
    (cells,) = [line for line in written.splitlines() if line.startswith("| llmq rtn, 4 bits, g64 ")]
    assert "| 4.251 " in cells
    assert (tmp_path / "pictures" / "frontier.svg").read_text().startswith("<?xml")

    def measured_again(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(bench.Bench, "_measure", measured_again)
    assert CliRunner().invoke(bench.main, list(map(str, arguments))).exit_code == 0
    assert page.read_text() == written


def test_a_row_is_kept_only_as_long_as_nothing_it_depends_on_changes(bench, texts, tmp_path, monkeypatch):
    row = row_of(bench, "llmq-rtn-4-bits-g64-plain")
    monkeypatch.setattr(bench.Bench, "_measure", lambda *_: RESULT)
    first = bench.Bench(tmp_path / "work", texts, 100)
    assert first.kept(row) is None
    assert first.result(row) == first.kept(row) == RESULT
    assert bench.Bench(tmp_path / "work", texts, 101).kept(row) is None
    monkeypatch.setattr(bench, "code", lambda: "other")
    assert first.kept(row) is None
    assert bench.Bench(tmp_path / "work", texts, 100, old=True).kept(row) == RESULT
    texts["text"].write_text("another")
    assert bench.Bench(tmp_path / "work", texts, 100, old=True).kept(row) is None


def test_a_row_that_fails_is_shown_and_tried_again(bench, texts, page, tmp_path, monkeypatch):
    def fail(*_):
        raise UsageError("no such width")

    row = row_of(bench, "llmq-rtn-4-bits-g64-plain")
    monkeypatch.setattr(bench.Bench, "_measure", fail)
    tried = bench.Bench(tmp_path / "work", texts, 100)
    found = tried.result(row)
    assert found == {"error": "no such width"}
    assert tried.kept(row) is None
    bench.Page(((row, found),), []).write(page)
    assert "- llmq rtn, 4 bits, g64: no such width" in page.read_text()


def test_the_first_run_of_a_method_is_not_the_one_that_is_timed(bench, texts, tmp_path, monkeypatch):
    asked = []

    def llmq(*arguments):
        asked.append(arguments[0])
        return RESULT | {"seconds": float(len(asked))}

    monkeypatch.setattr(bench, "llmq", llmq)
    made = bench.Bench(tmp_path / "work", texts, 100)
    monkeypatch.setattr(bench.shutil, "rmtree", lambda *_, **__: None)
    seconds = [made.result(row_of(bench, f"llmq-rtn-{bits}-bits-g64-plain"))["seconds"] for bits in (4, 3)]
    assert asked == ["sample", "quantize", "quantize", "compare", "eval", "sample", "quantize", "compare", "eval"]
    assert seconds == [3.0, 7.0]


def test_peers_are_measured_in_processes_of_their_own(bench, texts, tmp_path):
    row = bench.Row("HQQ", "none", None, "plain", "NoSuchPeer")
    found = bench.Bench(tmp_path / "work", texts, 100).result(row)
    assert "has no attribute 'NoSuchPeer'" in found["error"]


def test_models_with_outliers_are_made_of_the_sample(bench, texts, tmp_path, script):
    made = bench.Bench(tmp_path / "work", texts, 100)
    weights = script("quality_weights")
    plain, loud = weights.load(made.model("plain")), weights.load(made.model("outliers-8"))
    name = "model.layers.0.input_layernorm.weight"
    assert np.count_nonzero(loud[name] == 8 * plain[name]) == 1


def test_tables(bench, script):
    def result(bits, kl):
        return RESULT | {"bits_per_weight_quantized": bits, "kl_mean": kl}

    row = row_of.__get__(bench)
    found = {
        "llmq-rtn-4-bits-g64-plain": result(4.25, 0.02),
        "llmq-mse-4-bits-g64-plain": result(4.25, 0.015),
        "llmq-mse-4-bits-g32-plain": result(4.5, 0.001),
        "llmq-rtn-4-bits-g64-outliers-8": result(4.25, 0.03),
        "llama.cpp-Q4_K-plain": result(4.5, 0.002),
        "llama.cpp-Q8_0-plain": result(8.5, 0.0001),
        "llama.cpp-IQ4_XS-plain": result(4.247, 0.01),
        "llama.cpp-IQ4_XS-importance-matrix-calibration-plain": result(4.25, 0.01),
        "llama.cpp-Q4_K-importance-matrix-calibration-plain": result(4.5, 0.001),
        "llama.cpp-Q4_K-importance-matrix-seen-plain": result(4.5, 0.003),
    }
    page = bench.Page(tuple((row(key), value) for key, value in found.items()), [])
    assert lines_of(page.gates()) == [
        ["4 bits, g64", "0.020000", "mse, 4 bits, g64: 0.015000", "0.75", "mse, 4 bits, g64: 0.015000", "0.75"]
    ]
    beside = {cells[0]: cells[4:] for cells in lines_of(page.peers())}
    assert beside["llama.cpp Q4_K"] == ["mse, 4 bits, g32", "4.500", "0.001000", "0.50"]
    assert beside["llama.cpp Q8_0"] == ["-", "-", "-", "-"]  # nothing of ours is near
    assert beside["llama.cpp IQ4_XS"][:2] == ["mse, 4 bits, g64", "4.250"]
    assert beside["llama.cpp IQ4_XS, importance matrix"] == ["mse, 4 bits, g64", "4.250", "0.015000", "1.50"]
    assert lines_of(page.outliers()) == [["llmq rtn, 4 bits, g64", "0.020000", "0.030000", "1.50", "-", "-"]]
    assert lines_of(page.seen()) == [["llama.cpp Q4_K, importance matrix", "0.001000", "0.003000", "3.00"]]
    assert len(lines_of(page.rows())) == 8


def test_costs_are_measured_once_for_the_same_code(bench, texts, tmp_path, script, monkeypatch):
    cost = script("quality_cost")
    monkeypatch.setattr(cost, "METHODS", {"rtn": METHODS["rtn"], "nosuch": METHODS["rtn"]})
    costs = cost.Costs(
        tmp_path / "work", texts["calibration"], bench.Bench(tmp_path / "work", texts, 0).model("plain"), "tiny"
    )
    costs.measure("code")
    good, bad = costs.kept()
    assert (good["method"], good["layers"], good["code"]) == ("rtn", 4, "code")
    assert 0 < good["quantized"] < good["parameters"]
    assert good["seconds"] > 0
    assert "nosuch" in bad["error"]
    costs.measure("code")
    assert costs.kept()[0] == good


def test_what_methods_cost(bench, page):
    cost = {"method": "rtn", "layers": 4, "parameters": 1_071_681_536, "quantized": 5e8, "seconds": 2.0}
    costs = [cost | {"peak_anon_bytes": 300 << 20}, {"method": "gptq", "error": "no room"}]
    first, second = lines_of(bench.Page((), costs).cost())
    assert first == ["rtn", "4", "1.07 B", "2.0", "4.0", "300 MiB"]
    assert second[:2] == ["gptq", "failed: no room"]


def test_the_page_has_all_sections(bench, page, tmp_path):
    real = (bench._ROOT / "docs" / "quality.md").read_text(encoding="utf-8")
    assert [name for name in SECTIONS if f"<!-- {name}:begin -->" not in real] == []
    bench.Page((), [], ()).write(page)
    assert "Every row was measured." in page.read_text()


def test_results_are_json(bench, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(bench.Bench, "_measure", lambda *_: RESULT)
    row = row_of(bench, "llama.cpp-Q4_K-plain")
    bench.Bench(tmp_path / "work", texts, 0).result(row)
    stored = json.loads((tmp_path / "work" / "rows" / f"{row.key}.json").read_text())
    assert stored["result"] == RESULT
    assert stored["asked"]["code"] is None
