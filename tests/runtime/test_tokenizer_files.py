"""Tokenizers by strangers: nothing else is opened, nothing is run, and nothing ends the process."""

import json
import os
import tempfile
from pathlib import Path

import pytest

from llmq.errors import InputError, ResourceError
from llmq.runtime import tokenizer_files
from llmq.runtime.text import Detokenizer, encode, load_tokenizer


@pytest.fixture
def folder(tmp_path, write_tokenizer):
    made = tmp_path / "model"
    write_tokenizer(made)
    (made / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return made


def edit(folder, name, **fields):
    found = json.loads((folder / name).read_text()) | fields
    (folder / name).write_text(json.dumps(found))


def test_it_is_the_tokenizer_of_the_folder(folder, write_tokenizer, tmp_path):
    found, expected = load_tokenizer(folder), write_tokenizer(tmp_path / "other")
    assert found("hi wor")["input_ids"] == expected("hi wor")["input_ids"]
    assert found.name_or_path == str(folder)
    assert (found.bos_token, found.eos_token) == ("<s>", "</s>")


def test_no_copy_is_left(folder, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    load_tokenizer(folder)
    edit(folder, "tokenizer.json", model=5)
    with pytest.raises(InputError):
        load_tokenizer(folder)
    assert not list((tmp_path / "tmp").iterdir())


def test_no_room_for_a_copy(folder, monkeypatch):
    def refuse(*_, **__):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(tokenizer_files.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(ResourceError, match="cannot be copied there: No space left") as caught:
        load_tokenizer(folder)
    assert "TMPDIR" in caught.value.hint


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "vocab.json"])
@pytest.mark.parametrize("make", ["link", "pipe", "endless"])
def test_files_that_are_none(folder, name, make):
    (folder.parent / "secret").write_text("{}")
    (folder / name).unlink(missing_ok=True)
    if make == "link":
        (folder / name).symlink_to("../secret")
    elif make == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).touch()
        os.truncate(folder / name, 1 << 40)
    with pytest.raises(InputError, match=f"^{name}: "):
        load_tokenizer(folder)


def test_sizes_of_the_model_are_not_looked_at(folder):
    """transformers builds a list with an entry for each layer."""
    (folder / "config.json").write_text(
        json.dumps({"model_type": "qwen2", "num_hidden_layers": 10**12, "vocab_size": "x"})
    )
    assert load_tokenizer(folder)("a")["input_ids"]


def test_code_beside_it_is_not_imported(folder):
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    edit(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    edit(folder, "config.json", auto_map={"AutoConfig": "evil.Evil"})
    assert load_tokenizer(folder)("a")["input_ids"]
    assert not (folder / "ran").exists()


def test_files_that_its_settings_name_are_not_opened(folder):
    (folder.parent / "secret.json").write_text("not for you")
    edit(
        folder, "tokenizer_config.json", vocab_file="/etc/passwd", tokenizer_file="../secret.json",
        fast_tokenizer_files=["../secret.json"], init_inputs=["/etc/passwd"],
    )  # fmt: skip
    assert load_tokenizer(folder)("a")["input_ids"]


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "Cannot parse precompiled_charsmap"),
        ({"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}}, "index out of bounds"),
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "chunk size must be non-zero"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "x" * 9999}] * 9}},
            "a few words become too many tokens",
        ),
        (
            {
                "normalizer": {
                    "type": "Sequence",
                    "normalizers": [{"type": "Replace", "pattern": {"String": "x"}, "content": "x" * 99}] * 9,
                }
            },
            "ends the process|too long|too much memory",
        ),
    ],
)
def test_what_would_end_the_process(folder, fields, what, capfd):
    edit(folder, "tokenizer.json", **fields)
    with pytest.raises(InputError, match=what):
        load_tokenizer(folder)
    assert "panicked" not in capfd.readouterr().err


def test_without_a_process_of_its_own(folder, monkeypatch):
    def refuse(*_, **__):
        raise OSError(11, os.strerror(11))

    monkeypatch.setattr(tokenizer_files, "Confined", refuse)
    assert load_tokenizer(folder)("a")["input_ids"]
    edit(folder, "tokenizer.json", normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})
    with pytest.raises(InputError, match="the tokenizer cannot be loaded"):
        load_tokenizer(folder)


def test_texts_that_it_fails_on():
    class Broken:
        bos_token_id = None

        def __call__(self, text, **_):
            raise TypeError("'>' not supported")

        def decode(self, tokens, **_):
            raise OverflowError("out of range")

    with pytest.raises(InputError, match=r"^the tokenizer cannot make tokens of this text: '>' not supported"):
        encode(Broken(), "a")
    with pytest.raises(InputError, match=r"^the tokenizer cannot make text of these tokens: out of range"):
        Detokenizer(Broken()).add(1)


def test_too_much_json(folder):
    (folder / "tokenizer.json").write_bytes(b"[" + b"[]," * 2_000_001 + b"[]]")
    with pytest.raises(InputError, match=r"^tokenizer\.json: too much JSON"):
        load_tokenizer(Path(folder))
