"""The benchmark of memory on a model so small that it takes seconds."""

import json

import pytest


@pytest.fixture
def bench(script, tmp_path):
    module = script("bench_memory")
    return module, module.Bench(tmp_path, layers=2, preset="tiny")


def test_a_model_from_a_server_to_tokens(bench, tmp_path, monkeypatch):
    module, own = bench
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
    assert pages["whole"].count("peak anonymous memory") == 2
    assert "tokens/s, by plain reads" in pages["whole"]
    assert pages["streaming"].count("plain mapping") == 2


def test_what_was_not_measured_has_no_table(bench):
    module, own = bench
    assert own.results == {}
    assert module.render({}) == {}
