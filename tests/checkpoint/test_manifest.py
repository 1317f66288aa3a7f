"""Manifests that are not what llmq wrote."""

import json

import pytest
from documents import edited
from hypothesis import given, settings
from hypothesis import strategies as st

from llmq.checkpoint.manifest import read_manifest
from llmq.checkpoint.sealed import seal
from llmq.errors import InputError, LlmqError, UnsupportedError


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
        good | {"tensors": {"a": {"file": [], "sha256": "0" * 64}}},
        good | {"tensors": {"a": {"file": {}, "sha256": "0" * 64}}},
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a manifest, and what that says."""
    folder = tmp_path_factory.mktemp("finished")
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(b"{}")
    entry = {"size": 2, "sha256": "0" * 64}
    files = {"config.json": entry, "model.safetensors": entry}
    return folder, {
        "schema": 1,
        "files": files,
        "tensors": {"a": entry | {"file": "config.json"}},
        "settings": {"bits": 4},
        "source": {"files": {}},
    }


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_manifest_is_read_or_refused(finished, data):
    folder, sound = finished
    value = data.draw(edited(sound))
    # With the right checksum of itself, or no lie would get past that.
    sealed = isinstance(value, dict) and "sha256" not in value
    (folder / "llmq.json").write_bytes(seal(value) if sealed else json.dumps(value).encode())
    try:
        found = read_manifest(folder)
    except LlmqError:
        return
    assert found is not None
    assert set(found["files"]) <= {"config.json", "model.safetensors"}


def test_a_file_without_a_name(finished):
    folder, sound = finished
    entry = {"size": 2, "sha256": "0" * 64}
    (folder / "llmq.json").write_bytes(seal(sound | {"files": {"": entry}}))
    with pytest.raises(InputError, match=r"llmq\.json: malformed entry"):
        read_manifest(folder)
