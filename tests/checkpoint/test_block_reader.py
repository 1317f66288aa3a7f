import os
import threading

import numpy as np
import pytest
from safetensors.numpy import save_file

from llmq.checkpoint import block_reader
from llmq.checkpoint.block_reader import BlockReader, buffer_bytes
from llmq.checkpoint.mapped import MappedCheckpoint
from llmq.checkpoint.source import open_source
from llmq.checkpoint.streamed import StreamedCheckpoint, Turn
from llmq.errors import InputError, ResourceError


@pytest.fixture(params=[1, 2, 3, 5])
def blocks(request, tmp_path, monkeypatch):
    """A source of some blocks of two tensors each, in two files, and what they hold."""
    monkeypatch.setattr(block_reader, "PIECE", 8192)
    draw = np.random.default_rng(0)
    tensors = {
        f"{part}.{number}": draw.integers(0, 255, (40 + 7 * number, 301), np.uint8)
        for part in "ab"
        for number in range(request.param)
    }
    for part in "ab":
        save_file({n: t for n, t in tensors.items() if n.startswith(part)}, tmp_path / f"{part}.safetensors")
    (tmp_path / "config.json").write_text("{}")
    weight_map = {name: f"{name[0]}.safetensors" for name in tensors}
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": ' + str(weight_map).replace("'", '"') + "}")
    with open_source(tmp_path) as source:
        yield source, [[source.tensors[f"{part}.{i}"] for part in "ab"] for i in range(request.param)], tensors


def check(reader, number, tensors):
    reader.take(number)
    for part in "ab":
        assert np.array_equal(reader.tensor(f"{part}.{number}"), tensors[f"{part}.{number}"])
    reader.give_back(number)


@pytest.mark.parametrize("cached", [False, True])
def test_turns_in_a_circle(blocks, cached):
    source, infos, tensors = blocks
    reader = BlockReader(source, infos, cached=cached)
    for number in [*range(len(infos))] * 3:
        check(reader, number, tensors)
    assert reader.bytes_read == 3 * reader.nbytes
    assert sum(info.nbytes for block in infos for info in block) <= reader.nbytes
    reader.close()


def test_any_order(blocks):
    source, infos, tensors = blocks
    reader = BlockReader(source, infos)
    for number in np.random.default_rng(1).integers(0, len(infos), 40).tolist():
        check(reader, number, tensors)
    reader.close()


def test_a_place_stays_a_place(blocks):
    source, infos, _ = blocks
    reader = BlockReader(source, infos)
    views = [reader.tensor(info.name) for block in infos for info in block]
    assert not any(view.flags.writeable for view in views)
    for number in [*range(len(infos))] * 2:
        reader.take(number)
        reader.give_back(number)
    again = [reader.tensor(info.name) for block in infos for info in block]
    assert [v.ctypes.data for v in views] == [v.ctypes.data for v in again]
    assert len({id(reader._buffer(n)) for n in range(len(infos))}) == min(2, len(infos))
    assert sum(b.nbytes for b in reader._buffers) <= buffer_bytes(infos)
    reader.close()


def test_threads_take_turns(blocks):
    source, infos, tensors = blocks
    reader, wrong = BlockReader(source, infos), []
    arrays = StreamedCheckpoint(MappedCheckpoint(source), reader)

    def work(seed):
        for number in np.random.default_rng(seed).integers(0, len(infos), 30).tolist():
            with Turn(reader, number):
                if not np.array_equal(arrays.tensor(f"a.{number}"), tensors[f"a.{number}"]):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    reader.close()


def test_a_file_that_became_shorter(blocks):
    source, infos, tensors = blocks
    reader = BlockReader(source, infos)
    last = len(infos) - 1
    os.truncate(source.folder / "b.safetensors", source.tensors[f"b.{last}"].offset + 10)
    reader._stop_reading()
    with pytest.raises(InputError, match=r"b\.safetensors: became shorter"):
        reader.take(last)
    if last:
        check(reader, 0, tensors)
    reader.close()


def test_no_memory(blocks, monkeypatch):
    def refuse(*args):
        raise MemoryError

    monkeypatch.setattr(block_reader, "aligned_buffer", refuse)
    with pytest.raises(ResourceError, match="not enough memory for"):
        BlockReader(blocks[0], blocks[1])
