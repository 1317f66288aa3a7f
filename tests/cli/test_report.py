"""`--report` of the commands."""

import json
import re

import pytest


@pytest.fixture(scope="module")
def text(tmp_path_factory, sample_model):
    path = tmp_path_factory.mktemp("text") / "short.txt"
    path.write_text((sample_model / "heldout.txt").read_text(encoding="utf-8")[:600], encoding="utf-8")
    return path


def embedded(path):
    page = path.read_text(encoding="utf-8")
    return page, json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def titles(page):
    return re.findall(r"<h2[^>]*>(.*?)</h2>", page)


def test_quantize(call, write_pico, tmp_path):
    source, path = write_pico(tmp_path / "pico"), tmp_path / "page.html"
    arguments = ("quantize", source, "-o", tmp_path / "out", "--method", "rtn", "--report", path, "--json")
    code, out, err = call(*arguments)
    assert code == 0, err
    page, pictures = embedded(path)
    wanted = [t for t in json.loads(out)["tensors"] if t["bits"]]
    assert set(pictures) == {t["name"] for t in wanted}
    assert all(sum(pictures[t["name"]]["usage"]) == t["shape"][0] * t["shape"][1] for t in wanted)
    assert titles(page) == [
        "Summary",
        "Error by block and projection",
        "Weights on their grid",
        "Memory over time",
        "Tensors",
    ]
    # A finished run is only read, and shows the same figures.
    code, _, err = call(*arguments)
    assert code == 0, err
    again, same = embedded(path)
    assert same == pictures
    assert "already complete" in again


def test_a_page_that_cannot_be_written_stops_a_run_before_it_starts(call, write_pico, tmp_path):
    source = write_pico(tmp_path / "pico")
    code, out, err = call("quantize", source, "-o", tmp_path / "out", "--report", tmp_path / "absent" / "page.html")
    assert (code, out) == (2, "")
    assert "page.html: --report cannot be written" in err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_has_no_report(call, write_pico, tmp_path):
    source = write_pico(tmp_path / "pico")
    code, _, err = call("quantize", source, "-o", tmp_path / "out", "--dry-run", "--report", tmp_path / "page.html")
    assert code == 2
    assert "--dry-run quantizes nothing" in err


def test_compare_of_several(call, sample_model, small_model, tmp_path):
    import llmq

    other = llmq.quantize(sample_model, tmp_path / "3bit", bits=3, method="rtn").output
    path = tmp_path / "page.html"
    code, out, err = call("compare", sample_model, small_model, other, "--report", path, "--json")
    assert code == 0, err
    found = json.loads(out)["outputs"]
    assert [run["output"] for run in found] == [str(small_model), str(other)]
    assert found[0]["nmse"] < found[1]["nmse"]
    assert found[0]["output_bytes"] > found[1]["output_bytes"]
    page, pictures = embedded(path)
    assert set(pictures) == {t["name"] for t in found[0]["tensors"] if t["quantized"]}
    assert titles(page)[1] == "Runs"
    assert page.count('<g class="mark') == 2


def test_eval_beside_an_earlier_one(call, sample_model, small_model, text, tmp_path):
    code, out, err = call("eval", small_model, "--base", sample_model, "--text", text, "--context", "64", "--json")
    assert code == 0, err
    (tmp_path / "earlier.json").write_text(out)
    (tmp_path / "certificate.json").write_text(json.dumps({"evaluations": [json.loads(out)]}))
    path = tmp_path / "page.html"
    beside = ("--beside", tmp_path / "earlier.json", "--beside", tmp_path / "certificate.json")
    code, out, err = call("eval", sample_model, "--text", text, "--context", "64", "--report", path, *beside)
    assert code == 0, err
    page, _ = embedded(path)
    assert titles(page) == ["Summary", "Runs"]
    assert page.count('<g class="mark') == 2  # the divergence of the two that have one
    assert page.count("<tr><td>") == 3


@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"evaluations": []}', '{"perplexity": "3", "bits_per_weight": 4}', "x"]
)
def test_other_files_are_refused_before_anything_is_loaded(call, text, tmp_path, content):
    (tmp_path / "bad.json").write_text(content)
    beside = ("--report", tmp_path / "page.html", "--beside", tmp_path / "bad.json")
    code, _, err = call("eval", tmp_path / "no-model", "--text", text, *beside)
    assert code == 3
    assert "bad.json" in err


def test_beside_needs_a_report(call, text, tmp_path):
    code, _, err = call("eval", tmp_path, "--text", text, "--beside", tmp_path / "x.json")
    assert code == 2
    assert "--report FILE.html" in err
