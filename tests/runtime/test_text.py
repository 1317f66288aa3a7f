"""Tokenizers, streaming detokenization, prompts and templates."""

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmq.errors import InputError, UnsupportedError, UsageError
from llmq.runtime.text import Detokenizer, encode, encode_chat, load_tokenizer


@pytest.fixture(scope="module", params=["bytes", "pieces"])
def tokenizer(request, tmp_path_factory, write_tokenizer):
    folder = tmp_path_factory.mktemp(request.param)
    write_tokenizer(folder, request.param)
    return load_tokenizer(folder)


TEXT = st.one_of(st.text(max_size=30), st.text(" abwor\n\u00e9\u4e16\U0001f642\ufffd", max_size=30))


@settings(max_examples=150, deadline=None)
@given(prompt=TEXT, text=TEXT)
def test_pieces_add_up_to_the_text(tokenizer, prompt, text):
    before, after = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (prompt, text))
    stream = Detokenizer(tokenizer, before)
    pieces = [stream.add(token) for token in after]
    for piece in pieces:
        piece.encode()
    found = "".join(pieces) + stream.rest()
    whole = tokenizer.decode([*before, *after], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    begin = tokenizer.decode(before, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    # A replacement character of the text itself looks like half a character.
    if "\ufffd" not in text:
        assert found == whole[len(begin) :].rstrip("\ufffd")
        assert "\ufffd" not in found


def test_a_character_comes_out_whole(tokenizer):
    stream = Detokenizer(tokenizer)
    tokens = tokenizer("a\U0001f642", add_special_tokens=False)["input_ids"]
    pieces = [stream.add(token) for token in tokens]
    assert [piece for piece in pieces if piece] == ["a", "\U0001f642"]


def test_half_a_character_at_the_end_is_left_out(tokenizer):
    stream = Detokenizer(tokenizer)
    tokens = tokenizer("a\U0001f642", add_special_tokens=False)["input_ids"][:-2]
    assert "".join(map(stream.add, tokens)) + stream.rest() == "a"


def test_bytes_that_are_no_text_do_not_hold_the_stream_back_for_ever(tokenizer):
    stream = Detokenizer(tokenizer)
    broken = tokenizer("\u4e16", add_special_tokens=False)["input_ids"][-1]
    assert any(stream.add(broken) for _ in range(20))


def test_a_first_word_keeps_its_space(tokenizer):
    before, after = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in ("a b", " b"))
    stream = Detokenizer(tokenizer, before)
    assert "".join(map(stream.add, after)) == " b"


def test_special_tokens_are_silent_and_take_no_space_away(tokenizer):
    a, b = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in ("a", " b"))
    stream = Detokenizer(tokenizer)
    assert "".join(map(stream.add, [*a, tokenizer.eos_token_id, *b])) == "a b"


def test_special_tokens_alone_are_no_text(tokenizer):
    stream = Detokenizer(tokenizer)
    assert stream.add(tokenizer.bos_token_id) + stream.add(tokenizer.eos_token_id) + stream.rest() == ""


def test_an_empty_prompt_is_a_token(tokenizer):
    assert encode(tokenizer, "") == [0]
    assert encode(tokenizer, "a") == tokenizer("a")["input_ids"]

    class Mute:
        bos_token_id = None

        def __call__(self, text, **_):
            return {"input_ids": []}

    with pytest.raises(UsageError, match="empty"):
        encode(Mute(), "")


def test_bytes_that_are_no_text_are_refused(tokenizer):
    for said in ("\udcff", "a\ud800"):
        with pytest.raises(UsageError, match="not UTF-8"):
            encode(tokenizer, said)
        with pytest.raises(UsageError, match="not UTF-8"):
            encode_chat(tokenizer, [{"role": "user", "content": said}])


def test_long_prompts_bring_no_advice(tmp_path, write_tokenizer, caplog):
    import transformers

    tokenizer = write_tokenizer(tmp_path, model_max_length=4, chat_template="{{ messages[0].content }}")
    # transformers logs past the root, where caplog listens.
    logger = transformers.utils.logging.get_logger("transformers")
    logger.addHandler(caplog.handler)
    try:
        assert len(encode(tokenizer, "a" * 9)) == 9
        assert len(encode_chat(tokenizer, [{"role": "user", "content": "a" * 9}])) == 9
        assert not caplog.records
        tokenizer("a" * 9)
        assert "longer than the specified maximum" in caplog.text
    finally:
        logger.removeHandler(caplog.handler)


def test_no_tokenizer(tmp_path):
    with pytest.raises(InputError, match="no tokenizer") as caught:
        load_tokenizer(tmp_path)
    assert "tokenizer.json" in caught.value.hint


def test_a_broken_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_tokenizer(tmp_path)


def test_code_of_strangers_is_never_run(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", null]}}'
    )
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(InputError):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_chat_templates(tmp_path, write_tokenizer):
    tokenizer = write_tokenizer(
        tmp_path, chat_template="{{ raise_exception('no') if messages | length > 1 }}<s>[{{ messages[0].content }}]"
    )
    assert encode_chat(tokenizer, [{"role": "user", "content": "hi"}]) == tokenizer("<s>[hi]")["input_ids"]
    with pytest.raises(UnsupportedError, match="chat template"):
        encode_chat(tokenizer, [{"role": "user", "content": "hi"}] * 2)


def test_no_chat_template_is_plain_text(tokenizer):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert encode_chat(tokenizer, messages) == encode(tokenizer, "a\nb")


def test_transformers_keeps_quiet_about_torch(tmp_path, write_tokenizer):
    write_tokenizer(tmp_path)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; from llmq.runtime.text import load_tokenizer\n"
        f"load_tokenizer(Path({str(tmp_path)!r}))\n"
        "import os; assert 'TRANSFORMERS_NO_ADVISORY_WARNINGS' not in os.environ"
    )
    env = {k: v for k, v in os.environ.items() if k != "TRANSFORMERS_NO_ADVISORY_WARNINGS"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
