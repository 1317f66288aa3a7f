"""Generating, streaming and conversing with a tiny model."""

import logging

import numpy as np
import pytest

from llmq.errors import InputError, UsageError
from llmq.runtime import Sampling, load


@pytest.fixture(scope="module")
def model(chatty):
    return load(chatty)


def test_counts_and_times(model):
    generation = model.generate([5, 6, 7], max_tokens=6, stop_tokens=())
    assert generation.stop_reason is None
    tokens = list(generation)
    assert len(tokens) == generation.tokens == 6
    assert (generation.prompt_tokens, generation.stop_reason) == (3, "length")
    assert generation.prompt_seconds > 0
    assert generation.seconds > 0
    assert generation.tokens_per_second == pytest.approx(5 / generation.seconds)
    assert list(generation) == []


def test_the_cache_holds_all_but_the_last_token(model):
    cache = model.new_cache()
    tokens = list(model.generate([5, 6, 7], max_tokens=4, stop_tokens=(), cache=cache))
    assert cache.tokens == [5, 6, 7, *tokens[:-1]]
    more = list(model.generate(tokens[-1:], max_tokens=3, stop_tokens=(), cache=cache))
    assert tokens + more == list(model.generate([5, 6, 7], max_tokens=7, stop_tokens=()))


def test_room_is_made_for_all_tokens_at_once(model):
    cache = model.new_cache(4)
    generation = model.generate([5, 6, 7], max_tokens=90, stop_tokens=(), cache=cache)
    assert cache.capacity == 93
    next(generation)
    layers = list(cache.layers)
    list(generation)
    assert all(a is b for a, b in zip(layers, cache.layers, strict=True))
    model.generate([5], max_tokens=10**15, cache=cache)
    assert cache.capacity == 200, "no more than the context"


@pytest.mark.parametrize(("bits", "bound"), [(16, 0.02), (8, 0.06), (4, 0.6)])
def test_caches_of_fewer_bits(chatty, bits, bound):
    tokens = np.random.default_rng(0).integers(0, 300, 150)
    exact = load(chatty, compute="float32")(tokens)
    model = load(chatty, compute="float32", kv_bits=bits)
    assert model.new_cache().bits == bits
    found = model(tokens)
    assert 0 < np.abs(found - exact).max() < bound * np.abs(exact).max()
    cache = model.new_cache(1)
    one_by_one = np.stack([model([token], cache)[0] for token in tokens])
    np.testing.assert_allclose(one_by_one, found, atol=bound / 4 * np.abs(exact).max())


def test_bits_of_caches_follow_the_computation(chatty):
    assert load(chatty).kv_bits == 16
    assert load(chatty, compute="float32").kv_bits == 32
    with pytest.raises(UsageError, match="kv_bits"):
        load(chatty, kv_bits=3)


def test_stop_tokens_end_it_and_are_not_given(model):
    tokens = list(model.generate([5, 6, 7], max_tokens=9, stop_tokens=()))
    stop = tokens[4]
    generation = model.generate([5, 6, 7], max_tokens=9, stop_tokens=[stop])
    assert list(generation) == tokens[: tokens.index(stop)]
    assert generation.stop_reason == "stop"


def test_nothing_asked_nothing_done(model):
    generation = model.generate([5], max_tokens=0)
    assert list(generation) == []
    assert (generation.stop_reason, generation.tokens_per_second) == ("length", 0.0)


def test_a_seed_repeats_itself(model):
    def draw(seed):
        sampling = Sampling(temp=1.5, top_k=50, seed=seed)
        return list(model.generate([5, 6], max_tokens=12, sampling=sampling, stop_tokens=()))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_the_context_is_a_limit(model, caplog):
    generation = model.generate([7] * 195, max_tokens=None, stop_tokens=())
    with caplog.at_level(logging.WARNING, "llmq"):
        assert len(list(generation)) == 6  # the last one needs no room
    assert generation.stop_reason == "context"
    assert "200" in caplog.text
    with pytest.raises(UsageError, match="longer than the context") as caught:
        model.generate([7] * 201)
    assert "200" in str(caught.value)


def test_logits_beyond_the_context_come_with_a_warning(chatty, caplog):
    model = load(chatty)
    with caplog.at_level(logging.WARNING, "llmq"):
        assert model([7] * 202).shape == (202, 300)
        model([7] * 202)
    assert caplog.text.count("more than the context of 200") == 1


def test_bad_tokens(model):
    for wrong in ([300], [-1], [2**40]):
        with pytest.raises(InputError, match="no such token"):
            model(wrong)
    for wrong in ([1.5], [[1, 2]], ["a"]):
        with pytest.raises(UsageError, match="integers"):
            model.generate(wrong)
    with pytest.raises(UsageError, match="empty"):
        model.generate([])
    with pytest.raises(UsageError, match="max_tokens"):
        model.generate([1], max_tokens=-1)
    assert model([]).shape == (0, 300)
    assert model(np.array([1, 2], np.uint8)).shape == (2, 300)


def test_a_stream_is_the_text_of_the_tokens(model):
    stream = model.stream("hello", max_tokens=40, temp=2.0, seed=3)
    text = "".join(stream)
    prompt = model.tokenizer("hello")["input_ids"]
    sampling = Sampling(temp=2.0, seed=3)
    tokens = list(model.generate(prompt, max_tokens=40, sampling=sampling, stop_tokens=model.stop_tokens))
    assert text.rstrip("\ufffd") == model.tokenizer.decode(tokens, skip_special_tokens=True).rstrip("\ufffd")
    assert stream.generation.tokens == len(tokens)


def test_stop_strings(model):
    whole = "".join(model.stream("hello", max_tokens=40, temp=2.0, seed=3))
    stop = whole[5:7]
    stream = model.stream("hello", max_tokens=40, stop=[stop], temp=2.0, seed=3)
    assert "".join(stream) == whole[: whole.index(stop)]
    assert stream.generation.stop_reason == "stop"


def test_stop_tokens_come_from_all_three_places(model):
    assert model.stop_tokens == {1}


def test_a_conversation_reads_only_what_is_new(model):
    chat = model.chat("be brief")
    first = "".join(chat.send("hi", max_tokens=5))
    assert [m["role"] for m in chat.messages] == ["system", "user", "assistant"]
    assert chat.messages[-1]["content"] == first
    read = chat.generation.prompt_tokens
    "".join(chat.send("and?", max_tokens=5))
    rendered = model.tokenizer.apply_chat_template(chat.messages[:-1], tokenize=False, add_generation_prompt=True)
    whole = len(model.tokenizer(rendered, add_special_tokens=False)["input_ids"])
    assert chat.generation.prompt_tokens < whole - read / 2


def test_a_conversation_answers_as_if_read_anew(model):
    chat = model.chat()
    for text in ("hi", "and then?"):
        answer = "".join(chat.send(text, max_tokens=12))
    anew = model.chat()
    anew.messages = chat.messages[:2]
    assert "".join(anew.send("and then?", max_tokens=12)) == answer


def test_an_answer_left_early_is_remembered(model):
    chat = model.chat()
    answer = chat.send("hi", max_tokens=50, temp=1.0, seed=0)
    piece = next(answer)
    answer.close()
    assert chat.messages[-1] == {"role": "assistant", "content": piece}
    assert "".join(chat.send("more", max_tokens=3)) is not None


def test_an_answer_never_begun_leaves_no_trace(model):
    chat, other = model.chat(), model.chat()
    chat.send("hi")
    assert chat.messages == []
    assert "".join(chat.send("more", max_tokens=5)) == "".join(other.send("more", max_tokens=5))
    assert chat.messages == other.messages


def test_a_conversation_rendered_as_nothing_is_refused_and_unharmed(model, monkeypatch):
    chat = model.chat()
    first = "".join(chat.send("hi", max_tokens=3))
    with monkeypatch.context() as patch:
        patch.setattr("llmq.runtime.conversation.encode_chat", lambda *_: [])
        with pytest.raises(UsageError, match="the prompt is empty"):
            chat.send("more")
    assert [message["content"] for message in chat.messages] == ["hi", first]
    anew = model.chat()
    anew.messages = list(chat.messages)
    assert "".join(chat.send("more", max_tokens=5)) == "".join(anew.send("more", max_tokens=5))


def test_a_conversation_too_long_is_refused_and_unharmed(model):
    chat = model.chat()
    with pytest.raises(UsageError, match="context"):
        chat.send("x" * 300)
    assert chat.messages == []
    assert "".join(chat.send("hi", max_tokens=3)) is not None


def test_a_model_without_template_says_so(tmp_path, save_model, write_tokenizer, caplog):
    save_model(tmp_path, vocab_size=300)
    write_tokenizer(tmp_path)
    with caplog.at_level(logging.WARNING, "llmq"):
        chat = load(tmp_path).chat()
    assert "no chat template" in caplog.text
    assert "".join(chat.send("hi", max_tokens=3)) is not None


def test_no_tokenizer_is_an_error_only_where_text_is(tmp_path, save_model):
    save_model(tmp_path)
    model = load(tmp_path)
    assert list(model.generate([3], max_tokens=2, stop_tokens=()))
    with pytest.raises(InputError, match="no tokenizer"):
        model.stream("hi")
