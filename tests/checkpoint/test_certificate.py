import json
import logging

import pytest
from documents import edited
from hypothesis import given, settings
from hypothesis import strategies as st

from llmq.checkpoint.certificate import (
    CERTIFICATE,
    add_comparison,
    add_evaluation,
    check_certifiable,
    read_certificate,
)
from llmq.checkpoint.manifest import MANIFEST
from llmq.checkpoint.source import open_source, select_copies
from llmq.errors import UsageError
from llmq.pipeline import quantize

COMPARISON = {"nmse": 0.5, "sqnr_db": float("inf"), "tensors": [{"name": "w", "nmse": float("nan")}]}


@pytest.fixture
def model(write_pico, tmp_path):
    return quantize(write_pico(tmp_path / "in"), tmp_path / "out").output


def test_figures_are_added_to_each_other(model):
    assert read_certificate(model) is None
    add_comparison(model, COMPARISON)
    add_evaluation(model, {"perplexity": 9.0, "text_sha256": "a"})
    add_evaluation(model, {"perplexity": 8.0, "text_sha256": "b"})
    add_evaluation(model, {"perplexity": 7.0, "text_sha256": "a"})
    found = read_certificate(model)
    assert (found["nmse"], found["sqnr_db"]) == (0.5, None)
    assert found["tensors"] == [{"name": "w", "nmse": None}]
    assert [run["perplexity"] for run in found["evaluations"]] == [8.0, 7.0]
    manifest = json.loads((model / MANIFEST).read_text())
    assert (found["source"], found["recipe"]) == (manifest["source"], manifest["settings"])


def test_of_other_weights(model, tmp_path, write_pico, caplog):
    add_comparison(model, COMPARISON)
    kept = (model / CERTIFICATE).read_bytes()
    quantize(tmp_path / "in", model, bits=8, overwrite=True)
    assert not (model / CERTIFICATE).exists()
    (model / CERTIFICATE).write_bytes(kept)
    with caplog.at_level(logging.WARNING, "llmq"):
        assert read_certificate(model) is None
    assert "belongs to other weights" in caplog.text
    add_evaluation(check_certifiable(model), {"perplexity": 9.0})
    found = read_certificate(model)
    assert (found["tensors"], len(found["evaluations"])) == ([], 1)


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 1}', '{"schema": 2, "manifest_sha256": "", "tensors": []}'])
def test_a_file_of_someone_else_is_ignored_and_kept(model, tmp_path, caplog, text):
    (model / CERTIFICATE).write_text(text)
    assert read_certificate(model) is None
    assert "ignored" in caplog.text
    with pytest.raises(UsageError, match="another file of this name"):
        check_certifiable(model)
    quantize(tmp_path / "in", model, bits=8, overwrite=True)
    assert (model / CERTIFICATE).read_text() == text


def test_only_outputs_that_were_made_of_the_source(model, tmp_path, write_pico):
    with pytest.raises(UsageError, match="not a finished output"):
        check_certifiable(tmp_path / "in")
    with pytest.raises(UsageError, match="not a finished output"):
        check_certifiable("org/name")
    for folder, made in ((tmp_path / "in", True), (write_pico(tmp_path / "other", vocab_size=128), False)):
        with open_source(folder) as source:
            identity = source.identity()
        if made:
            assert check_certifiable(model, source=identity) == model
        else:
            with pytest.raises(UsageError, match="not made from this source"):
                check_certifiable(model, source=identity)


def test_what_is_quantized_anew_does_not_inherit_it(model, tmp_path):
    add_comparison(model, COMPARISON)
    with open_source(model) as source:
        assert CERTIFICATE in source.other_files
    with open_source(model) as source:
        copied, skipped = select_copies(source)
    assert CERTIFICATE not in [getattr(path, "name", path) for path in copied]
    assert CERTIFICATE in skipped


@pytest.fixture(scope="module")
def certified(write_pico, tmp_path_factory):
    """An output with a certificate, and what that says."""
    folder = tmp_path_factory.mktemp("certified")
    out = quantize(write_pico(folder / "in"), folder / "out", method="rtn").output
    add_comparison(out, COMPARISON)
    return out, json.loads((out / CERTIFICATE).read_text())


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_certificate_is_read_or_ignored(certified, data):
    out, sound = certified
    (out / CERTIFICATE).write_text(json.dumps(data.draw(edited(sound))))
    found = read_certificate(out)
    assert found is None or all(isinstance(run, dict) for run in found["evaluations"])
