"""The benchmark of memory on a model so small that it takes seconds, and the tables of what it gives."""

import json

import pytest

QUANTIZED = {
    "predicted": {"output_bytes": 2_000_000, "disk_bytes": 2_100_000, "peak_bytes": 100_000_000, "seconds": 60.0},
    "report": {"output_bytes": 2_000_000, "peak_anon_bytes": 110_000_000, "seconds": 66.0},
    "disk_bytes": 2_100_000,
}
RUN = {
    "blocks": 6,
    "streamed_blocks": 2,
    "peak_rss_bytes": 8_000_000_000,
    "predicted_peak_bytes": 8_100_000_000,
    "tokens_per_second": 0.5,
    "prompt_seconds": 20.0,
}


@pytest.fixture
def module(script):
    return script("bench_memory")


@pytest.mark.slow
def test_a_model_from_a_server_to_tokens(module, script, tmp_path, monkeypatch):
    config = script("make_checkpoint").PRESETS["tiny"] | {"vocab_size": 4096}
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text(json.dumps(config))
    own = module.Bench(tmp_path, layers=2, preset=str(tmp_path / "config"))
    monkeypatch.setattr(module, "_empty_cache", lambda: None)
    monkeypatch.setattr(module, "_LIMITS", (8,))
    for bits in (2, 4):
        own.keep(f"quantize-{bits}", own.quantized(bits))
    own.keep("run", own.running())
    own.keep("streaming", own.streaming())
    results = json.loads((tmp_path / "memory.json").read_text())
    assert results["quantize-2"]["report"]["output_bytes"] == results["quantize-2"]["predicted"]["output_bytes"]
    assert [run["limit"] for run in results["streaming"]] == [None, 8, None]
    pages = module.render(results)
    assert list(pages) == ["whole", "streaming"]
    assert "tokens/s, by plain reads" in pages["whole"]


def test_tables_put_what_was_said_beside_what_was_found(module):
    runs = [
        {**RUN, "limit": limit, "tokens_per_second": speed} for limit, speed in ((None, 0.2), (8, 0.5), (None, 0.3))
    ]
    pages = module.render({"quantize-4": QUANTIZED, "streaming": runs})
    assert list(pages) == ["whole", "streaming"]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in pages["whole"].splitlines()]
    assert ["4 bits", "peak anonymous memory", "100 MB", "110 MB", "1.10"] in cells
    assert ["4 bits", "time", "1.0 min", "1.1 min", "1.10"] in cells
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in pages["streaming"].splitlines()]
    assert ["8 GiB", "4 of 6", "8.00 GB", "8.10 GB", "0.5000", "2.00", "20 s"] in cells


def test_what_was_not_measured_has_no_table(module, tmp_path):
    own = module.Bench(tmp_path)
    assert own.results == {}
    assert module.render({}) == {}
    own.keep("sizes", [])
    assert own.results == {"sizes": []}
