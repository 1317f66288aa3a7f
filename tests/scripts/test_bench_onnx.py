import json

import pytest
from click.testing import CliRunner

pytest.importorskip("onnxruntime")


@pytest.fixture
def bench(script):
    return script("bench_onnx")


def test_a_graph_is_run_in_a_process_of_its_own(bench, tmp_path):
    bench.llmq("sample", tmp_path / "sample")
    bench.llmq("quantize", tmp_path / "sample", "-o", tmp_path / "model", "--for", "onnx")
    assert bench._export(tmp_path / "model", "int8", "--logits", "last")["check"]["relative"] < 0.03
    found = bench._peer(tmp_path / "model", "--tokens", "2", "--prompt", "6", "--piece", "4", "--no-arena")
    assert 0 < found["before"] < found["loaded"] <= found["peak"]
    assert found["cache"] == 2 * 6 * 2 * 64 * 8 * 4
    assert json.dumps(found["versions"])


@pytest.mark.slow
def test_agreement_goes_into_the_page(bench, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- onnx-agreement:begin -->\n<!-- onnx-agreement:end -->\n")
    done = CliRunner().invoke(bench.main, ["agreement", "--folder", str(tmp_path / "models"), "--page", str(page)])
    assert done.exit_code == 0, done.output
    rows = [line.split("|")[1:4] for line in page.read_text().splitlines() if "bits" in line]
    assert [row[0].strip() for row in rows] == ["8 bits", "4 bits", "2 bits"]
    assert all(float(row[1]) < 1e-3 for row in rows)
