"""Indexes: which names of files pass."""

import json

import pytest
from documents import edited
from hypothesis import given, settings
from hypothesis import strategies as st

from llmq.checkpoint.index import parse_index
from llmq.errors import InputError, LlmqError

SOUND = {"metadata": {"total_size": 8}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}


def test_sound():
    assert parse_index(json.dumps(SOUND).encode()) == SOUND["weight_map"]


@settings(max_examples=300, deadline=None)
@given(edited(SOUND))
def test_any_index_is_read_or_refused(document):
    try:
        found, said = parse_index(json.dumps(document).encode()), ""
    except LlmqError as error:
        found, said = None, str(error)
    assert said.startswith("model.safetensors.index.json: ") if found is None else found == document["weight_map"]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab./\\:~%\0\n -_*?é\u202e0", max_size=12).map(lambda text: f"{text}.safetensors"))
def test_only_plain_names_pass(name):
    document = json.dumps({"weight_map": {"a": name}}).encode()
    if (
        all(character.isascii() and (character.isalnum() or character in "._-") for character in name)
        and len(name) > 12
    ):
        assert parse_index(document) == {"a": name}
    else:
        with pytest.raises(InputError, match="weight_map must name plain"):
            parse_index(document)
