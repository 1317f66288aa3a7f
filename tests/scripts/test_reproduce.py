"""The whole of it on a tiny model from a Hub on the loopback, through the real client."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hub_server import COMMIT, Hub, serve, settings

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def repository(tmp_path_factory, write_pico, sample_model):
    """A tiny model with the sample's tokenizer, as the files of org/name."""
    vocabulary = json.loads((sample_model / "config.json").read_text())["vocab_size"]
    folder = write_pico(tmp_path_factory.mktemp("hub") / "m", vocab_size=vocabulary, max_position_embeddings=1024)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return files | {path.name: path.read_bytes() for path in sample_model.glob("tokenizer*")}


def reproduce(endpoint, home, *words):
    command = [sys.executable, REPOSITORY / "scripts" / "reproduce.py", *map(str, words)]
    environment = os.environ | settings(endpoint, home)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.slow
def test_end_to_end(repository, tmp_path, monkeypatch):
    monkeypatch.setattr(Hub, "files", repository)
    words = (
        "org/name",
        "--max-tokens",
        300,
        "--context",
        100,
        "--runs",
        1,
        "--threads",
        1,
        "--folder",
        tmp_path / "out",
    )
    with serve() as endpoint:
        done = reproduce(endpoint, tmp_path / "home", *words, "--bits", 4, "--methods", "mse")
        assert done.returncode == 0, done.stderr
        (file,) = (tmp_path / "out").iterdir()
        first = json.loads(file.read_text())
        again = reproduce(endpoint, tmp_path / "home", *words, "--bits", 4, "--methods", "mse,imatrix")
        assert again.returncode == 0, again.stderr
    assert "measuring original\nmeasuring 4-mse\n" in done.stderr
    assert "measuring 4-imatrix\n" in again.stderr
    assert "measuring original" not in again.stderr
    assert (first["schema"], first["machine"]["cores"] > 0, first["machine"]["memory_bytes"] > 0) == (1, True, True)
    (entry,) = json.loads(file.read_text())["models"]
    assert (entry["model"], entry["commit"]) == ("org/name", COMMIT)
    original, packed, calibrated = entry["rows"]
    assert not any("error" in row for row in entry["rows"])
    assert [original, packed] == first["models"][0]["rows"]
    assert original["eval"]["perplexity"] > 1
    assert 0 < packed["eval"]["kl_mean"] < 0.5
    assert packed["quantize"]["bits_per_weight_quantized"] > 4
    assert packed["compare"]["nmse"] > 0
    assert {row["name"] for row in packed["speed"]} == {"prefill 128", "decode at 64"}
    assert max(row["peak_rss_bytes"] for row in packed["memory"]) > 0
    assert "speed" not in calibrated
    assert str(tmp_path) not in file.read_text()
    rows = [line.split("|")[1:4] for line in again.stdout.splitlines() if line.startswith("| org/name")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["org/name", "-", "original"], ["org/name", "4", "mse"], ["org/name", "4", "imatrix"],
    ]  # fmt: skip


@pytest.fixture
def module(script):
    return script("reproduce")


def test_what_is_measured(module):
    assert list(module.wanted((8, 2), ("rtn", "mse"))) == [(None, None), (8, "mse"), (2, "rtn"), (2, "mse")]
    assert list(module.wanted((8,), ("rtn",))) == [(None, None), (8, "rtn")]


def test_a_failure_is_told_and_kept_as_one(module, tmp_path, capsys):
    settings_ = module.Settings(None, None, 512, None, 64)
    run = module.Run(str(tmp_path / "nothing"), settings_, None, None, 1, 1, tmp_path)
    row = run.row(4, "mse")
    assert "no such folder" in row["error"]
    assert "failed" in capsys.readouterr().err
    assert "no such folder" in module.summary({"model": "nothing", "rows": [row]})


def test_bad_arguments(module, tmp_path):
    for words in (("--bits", "9"), ("--bits", "x"), ("--methods", "best")):
        done = CliRunner().invoke(module.main, [str(tmp_path), *words])
        assert done.exit_code == 2
        assert "choose some of" in done.output
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(Exception, match="not a file of results"):
        module.load_results(tmp_path / "r.json")


def test_entries_of_other_settings_are_others(module):
    settings_ = module.Settings(None, None, 512, None, 64)
    first = module.entry_of({"models": []}, "m", {"commit": "a"}, settings_)
    assert first["rows"] == []
    first["rows"].append({"bits": None})
    assert module.entry_of({"models": [first]}, "m", {"commit": "a"}, settings_)["rows"] == [{"bits": None}]
    assert module.entry_of({"models": [first]}, "m", {"commit": "b"}, settings_)["rows"] == []
