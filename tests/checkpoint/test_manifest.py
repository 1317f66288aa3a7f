"""Manifests that are not what llmq wrote."""

import json

import pytest

from llmq.checkpoint.manifest import read_manifest
from llmq.checkpoint.sealed import seal
from llmq.errors import InputError, UnsupportedError


def test_checks_of_the_manifest(example, tmp_path, copies):
    out = tmp_path / "out"
    assert read_manifest(tmp_path) is None
    example.run(out, copies)
    original = (out / "llmq.json").read_text()
    good = {key: value for key, value in json.loads(original).items() if key != "sha256"}
    for change in (
        [], {"schema": True}, {"schema": 1, "files": [], "tensors": {}},
        good | {"files": {"../x": {"size": 1, "sha256": "0" * 64}}},
        good | {"files": {"config.json": {"size": 1.0, "sha256": "0" * 64}}},
        good | {"files": {"config.json": {"size": 1, "sha256": "0"}}},
        good | {"files": {"config.json": {"size": 1, "sha256": "0" * 64}}},
        good | {"files": {"absent": {"size": 1, "sha256": "0" * 64}}},
        good | {"tensors": {"a": {"file": "absent", "sha256": "0" * 64}}},
        good | {"tensors": {"a": {"file": "config.json"}}},
    ):  # fmt: skip
        (out / "llmq.json").write_bytes(seal(change) if isinstance(change, dict) else b"[]")
        with pytest.raises(InputError):
            read_manifest(out)
    (out / "llmq.json").write_bytes(seal(good | {"schema": 2}))
    with pytest.raises(UnsupportedError, match="another version"):
        read_manifest(out)
    (out / "llmq.json").write_text(original)
    (out / "tokenizer.json").write_text("longer")
    with pytest.raises(InputError, match=r"tokenizer\.json: not as llmq wrote it \(expected 2 bytes, found 6 bytes\)"):
        read_manifest(out)


def test_a_model_card_may_be_edited(example, tmp_path, copies):
    out = tmp_path / "out"
    card = tmp_path / "README.md"
    card.write_text("made by llmq")
    example.run(out, {**copies, "README.md": card})
    (out / "README.md").write_text("edited on the Hub")
    assert read_manifest(out) is not None
    (out / "README.md").unlink()
    assert read_manifest(out) is not None
