"""Planning what stays in memory, and models whose blocks do not all stay."""

import gc
import logging
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import llmq
from llmq.architectures import decoder_config
from llmq.checkpoint import mapped
from llmq.checkpoint.source import open_source
from llmq.errors import InputError, ResourceError, UsageError
from llmq.runtime import Sampling, residency
from llmq.runtime.residency import HEADROOM, Room, plan_residency, streamable
from llmq.system.memory import current_memory

SIZES = {"hidden_size": 256, "intermediate_size": 2048, "num_hidden_layers": 9, "vocab_size": 300}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, write_pico):
    """The same model as it was and in several widths, 4 MB a block before."""
    root = tmp_path_factory.mktemp("residency")
    wide = {"num_attention_heads": 8, "head_dim": 32, "max_position_embeddings": 900} | SIZES
    dense = write_pico(root / "dense", shards=3, **wide)
    sliding = write_pico(root / "sliding", model_type="mistral", sliding_window=40, tie_word_embeddings=True, **wide)
    widths = {
        "sym": {"bits": 4},
        "asym": {"bits": 3, "symmetric": False},
        "mixed": {"overrides": (r"layers\.4\.=bits:8",)},
    }
    quantized = {name: llmq.quantize(dense, root / name, **flags).output for name, flags in widths.items()}
    return {"dense": dense, "sliding": sliding} | quantized


def plan(folder, tokens=64, **room):
    with open_source(folder) as source:
        config = decoder_config(source.config)
        return plan_residency(source.tensors, config, Room(tokens=tokens, **({"kv_bits": 16, "process": 0} | room)))


def limit_for(folder, count, tokens=900):
    """A limit for this process in which so many blocks, about, have to be streamed."""
    with open_source(folder) as source:
        config, blocks = decoder_config(source.config), streamable(source.tensors)
        room = Room(limit=1 << 60, tokens=tokens, kv_bits=16, process=current_memory().rss + HEADROOM)
        return residency._planned(source.tensors, config, room, blocks, count, residency.CHUNK).peak_bytes


def locked_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmLck"))


def load_within(folder, count=5, tokens=900, **options):
    found = llmq.load(folder, max_memory=limit_for(folder, count, tokens), context=tokens, **options)
    assert found.streams
    return found


@pytest.mark.parametrize("name", ["dense", "sliding", "sym", "asym", "mixed"])
def test_a_streamed_model_is_the_same_model(folders, name):
    whole = llmq.load(folders[name])
    assert not whole.streams
    ids = np.random.default_rng(0).integers(0, 300, 700)
    for count in (4, 7):
        model = load_within(folders[name], count)
        assert np.array_equal(whole(ids), model(ids))
        assert np.array_equal(whole.last_logits(ids, whole.new_cache()), model.last_logits(ids, model.new_cache()))
        assert model.streamed_bytes >= 2 * model.residency.streamed_bytes
        text = list(model.generate(ids[:30], max_tokens=40, stop_tokens=()))
        assert text == list(whole.generate(ids[:30], max_tokens=40, stop_tokens=()))
        model.close()


def test_a_prompt_is_one_pass_over_the_weights(folders):
    model = load_within(folders["dense"])
    assert model.residency.wave == 768
    read = [0]
    for count in (1, 256, 768, 800):
        model.last_logits(np.arange(count) % 300, model.new_cache())
        read.append(model.streamed_bytes)
    assert np.diff(read).tolist() == [read[1], read[1], read[1], 2 * read[1]]


def test_guesses_do_not_change_the_text(folders):
    model = llmq.load(folders["sym"])
    ids = np.tile(np.random.default_rng(3).integers(0, 300, 7), 6)
    plain = list(model.generate(ids, max_tokens=120, stop_tokens=()))
    for most in (1, 3, 8):
        caches = model.new_cache(), model.new_cache()
        generation = model.generate(ids, max_tokens=120, stop_tokens=(), speculate=most, cache=caches[0])
        assert list(generation) == plain
        assert generation.accepted <= generation.guessed
        assert generation.guessed
        list(model.generate(ids, max_tokens=120, stop_tokens=(), cache=caches[1]))
        assert caches[0].tokens == caches[1].tokens
        stored, expected = ([layer.keys[:, : caches[0].length] for layer in cache.layers] for cache in caches)
        assert all(np.array_equal(a, b) for a, b in zip(stored, expected, strict=True))
    with pytest.raises(UsageError, match="speculate"):
        model.generate(ids, speculate=-1)


def test_logits_of_several_tokens_are_those_of_one_at_a_time(folders):
    model = llmq.load(folders["asym"])
    cache, other = model.new_cache(), model.new_cache()
    ids = np.random.default_rng(4).integers(0, 300, 280).tolist()
    for part in (cache, other):
        model.last_logits(ids, part)
    together = model.logits_one_by_one([5, 6, 7, 8, 9], cache)
    assert np.array_equal(together, [model.last_logits([token], other) for token in (5, 6, 7, 8, 9)])


@pytest.mark.parametrize("right", [True, False])
def test_a_stop_in_the_middle_of_guesses(folders, right):
    model = llmq.load(folders["sym"])
    ids = np.tile(np.random.default_rng(3).integers(0, 300, 7), 6)
    plain = list(model.generate(ids, max_tokens=60, stop_tokens=()))
    stop = plain[-1] if right else next(token for token in plain if plain.count(token) == 1)
    caches = model.new_cache(), model.new_cache()
    texts = [
        list(model.generate(ids, max_tokens=60, stop_tokens={stop}, speculate=most, cache=cache))
        for most, cache in zip((0, 8), caches, strict=True)
    ]
    assert texts[0] == texts[1]
    assert caches[0].tokens == caches[1].tokens
    generation = model.generate(ids, max_tokens=60, stop_tokens=(), speculate=8, cache=(cache := model.new_cache()))
    for _ in range(20):
        next(generation)
    generation.end()
    assert cache.tokens == [*ids.tolist(), *plain[:19]]


def test_a_temperature_guesses_nothing(folders):
    model = llmq.load(folders["sym"])
    generation = model.generate(
        [1, 2] * 9, max_tokens=9, stop_tokens=(), speculate=8, sampling=Sampling(temp=1, seed=1)
    )
    assert (len(list(generation)), generation.guessed) == (9, 0)


def test_texts_stay_within_the_room(folders, caplog):
    model = load_within(folders["sym"], tokens=40)
    assert model.context == 40
    generation = model.generate(range(30), max_tokens=None, stop_tokens=())
    with caplog.at_level(logging.WARNING):
        assert len(list(generation)) == 11
    assert generation.stop_reason == "context"
    assert "context of 40 tokens is full" in caplog.text
    with pytest.raises(UsageError, match="longer than the context"):
        model.generate(range(41))


def test_threads_share_a_streamed_model(folders):
    model = load_within(folders["sym"])
    ids = np.random.default_rng(5).integers(0, 300, (3, 20))
    alone, found = [model(row) for row in ids], [None] * 3

    def work(number):
        found[number] = model(ids[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(a, b) for a, b in zip(alone, found, strict=True))


def test_nothing_is_left_of_a_model_that_nobody_holds(folders):
    def reading():
        return {thread for thread in threading.enumerate() if thread.name == "llmq-blocks"}

    before = reading()
    model = load_within(folders["sym"])
    model([1, 2])
    own = reading() - before
    assert own
    del model
    gc.collect()
    for thread in own:
        thread.join(10)
    assert not own & reading()


def test_memory_that_fits_streams_nothing(folders):
    model = llmq.load(folders["sym"], max_memory=1 << 40, context=64)
    assert model.residency.streamed == ()
    assert model.streamed_bytes == 0


def test_a_plan_streams_no_more_than_it_must(folders):
    whole = plan(folders["sym"], limit=1 << 60)
    previous = whole
    steps = 0
    while len(previous.streamed) < 9:
        steps += 1
        found = plan(folders["sym"], limit=previous.peak_bytes - 1)
        # Two buffers take the place of the first two blocks.
        assert len(found.streamed) > len(previous.streamed)
        assert found.peak_bytes < previous.peak_bytes
        gaps = np.diff([-1, *found.streamed, 9])
        assert gaps.max() <= 9 // len(found.streamed) + 2, "spread evenly"
        previous = found
    assert steps > 3
    with pytest.raises(ResourceError, match="does not run in so little memory") as raised:
        plan(folders["sym"], limit=previous.peak_bytes - 1)
    assert "--max-memory" in raised.value.hint


def test_blocks_that_cannot_be_used_where_they_are_read_stay(folders):
    with open_source(folders["dense"]) as source:
        tensors = dict(source.tensors)
    assert list(streamable(tensors)) == [*range(9)]
    odd, wide = "model.layers.3.mlp.up_proj.weight", "model.layers.5.mlp.up_proj.weight"
    tensors[odd] = replace(tensors[odd], offset=tensors[odd].offset + 1)
    tensors[wide] = replace(tensors[wide], dtype="F64")
    assert list(streamable(tensors)) == [0, 1, 2, 4, 6, 7, 8]


def test_without_a_limit_the_machine_decides(folders, monkeypatch, caplog):
    limit = limit_for(folders["sym"], 5)
    monkeypatch.setattr(residency, "process_limit", lambda: limit)
    with caplog.at_level(logging.WARNING):
        model = llmq.load(folders["sym"])
    assert model.streams
    assert model.context == 900, "what the model has, for nobody set a limit"
    assert "do not fit into free memory" in caplog.text
    monkeypatch.setattr(residency, "process_limit", lambda: 1 << 20)
    with caplog.at_level(logging.WARNING):
        assert not llmq.load(folders["sym"]).streams
    assert "too little free memory" in caplog.text


def test_the_machine_has_more_than_this_process_takes():
    assert current_memory().anon <= residency.process_limit() < 1 << 50


@pytest.mark.parametrize("wrong", [{"max_memory": 0}, {"context": 0}, {"max_memory": -5}])
def test_limits_must_be_positive(folders, wrong):
    with pytest.raises(UsageError, match="must be positive"):
        llmq.load(folders["sym"], **wrong)


def test_a_file_that_became_shorter_is_told(tmp_path, folders):
    import shutil

    folder = shutil.copytree(folders["dense"], tmp_path / "copy")
    model = load_within(folder)
    model([1, 2, 3])
    for path in folder.glob("*.safetensors"):
        # What stays is mapped, and would end the process: only what is streamed is met here.
        model._held.reader._stop_reading()
        with path.open("r+b") as file:
            file.truncate(100)
    with pytest.raises(InputError, match="became shorter"):
        model._held.reader.take(0)


def test_locked_memory(folders):
    resource = pytest.importorskip("resource")
    least, most = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (min(least, 1 << 16) if least >= 0 else 1 << 16, most))
    try:
        try:
            model = llmq.load(folders["sym"], mlock=True)
        except ResourceError as error:
            refused = str(error)
            assert "cannot be locked in memory" in refused
        else:  # root may lock as much as it likes
            assert locked_bytes() >= sum(f.stat().st_size for f in folders["sym"].glob("*.safetensors")) // 2
            model.release()
            assert model([1, 2]).shape == (2, 300)
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (least, most))


def test_a_hint_is_enough(folders):
    with pytest.raises(ResourceError) as raised:
        plan(folders["sym"], tokens=900, limit=1 << 20)
    least = int(raised.value.hint.split("MiB")[0].split()[-1])
    assert plan(folders["sym"], tokens=900, limit=least << 20).streamed
    with pytest.raises(ResourceError):
        plan(folders["sym"], tokens=900, limit=(least - 1) << 20)


def test_a_closed_model_says_so(folders):
    model = load_within(folders["sym"])
    model([1, 2])
    model.close()
    with pytest.raises(UsageError, match="the model was closed"):
        model([1, 2])


def test_memory_that_cannot_be_locked(folders, monkeypatch):
    def refuse(address, count):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mapped, "lock_memory", refuse)
    with pytest.raises(ResourceError, match=r"cannot be locked in memory: Cannot allocate") as raised:
        llmq.load(folders["sym"], mlock=True)
    assert "--mlock" in raised.value.hint
