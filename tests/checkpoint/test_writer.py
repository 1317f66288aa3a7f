"""What a writer writes, and what it refuses to."""

import hashlib
import json
import os

import numpy as np
import pytest
from safetensors import safe_open

from llmq.checkpoint.manifest import read_manifest
from llmq.checkpoint.source import open_source
from llmq.checkpoint.writer import CheckpointWriter, OutputTensor, lay_out
from llmq.errors import InputError


def test_what_is_written(example, tmp_path, copies):
    out = tmp_path / "deep/out"
    old = os.umask(0o027)
    try:
        assert example.run(out, copies) == {"empty"}
    finally:
        os.umask(old)
    assert len(example.shards) == 3
    for shard in example.shards:
        with safe_open(out / shard.file, "np") as file:
            assert file.metadata() == {"format": "pt"}
            for tensor in shard.tensors:
                np.testing.assert_array_equal(file.get_tensor(tensor.name), example.arrays[tensor.name])
    assert json.loads((out / "config.json").read_text()) == {"model_type": "llama"}
    names = {"config.json", "llmq.json", "tokenizer.json", "model.safetensors.index.json"} | {
        s.file for s in example.shards
    }
    assert {path.name for path in out.iterdir()} == names
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o640}
    with open_source(out) as source:
        assert set(source.tensors) == set(example.arrays)


def test_manifest(example, tmp_path, copies):
    out = tmp_path / "out"
    example.run(out, copies)
    manifest = read_manifest(out)
    assert list(manifest)[:2] == ["schema", "llmq_version"]
    assert manifest["settings"] == example.identity["settings"]
    assert manifest["source"] == example.identity["source"]
    for name, array in example.arrays.items():
        assert manifest["tensors"][name]["sha256"] == hashlib.sha256(array.tobytes()).hexdigest()
    assert set(manifest["files"]) == {path.name for path in out.iterdir()} - {"llmq.json"}
    for name, entry in manifest["files"].items():
        content = (out / name).read_bytes()
        assert entry == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_checksums_of_the_source_outlive_an_interruption(example, tmp_path, copies):
    for out in (tmp_path / "whole", tmp_path / "stopped"):
        with CheckpointWriter(out, example.shards, identity=example.identity) as writer:
            writer.note_source("b", "1" * 32)
            writer.note_source("a", "0" * 32)
            if out.name == "stopped":
                writer.write(*next(example.pieces()))
        example.run(out, copies)
        found = read_manifest(out)["source_tensors"]
        assert list(found.items()) == [("a", {"xxh3_128": "0" * 32}), ("b", {"xxh3_128": "1" * 32})]
    assert example.snapshot(tmp_path / "whole") == example.snapshot(tmp_path / "stopped")


def test_one_shard_and_none_at_all(tmp_path):
    for number, planned in enumerate(([OutputTensor("x", "U8", (3,))], [OutputTensor("x", "U8", (0,))], [])):
        out = tmp_path / str(number)
        with CheckpointWriter(out, lay_out(planned, 10), identity={}) as writer:
            if planned and planned[0].nbytes:
                writer.write("x", b"abc")
            writer.commit(None, {})
        assert sorted(path.name for path in out.iterdir()) == ["llmq.json", "model.safetensors"]
        with safe_open(out / "model.safetensors", "np") as file:
            assert len(file.keys()) == len(planned)


def test_arrays_and_bytes(tmp_path):
    value = np.arange(6, dtype=np.float32).reshape(2, 3)
    shards = lay_out([OutputTensor("x", "F32", (2, 3)), OutputTensor("y", "BF16", ())], 100)
    with CheckpointWriter(tmp_path / "out", shards, identity={}) as writer:
        for bad in (value.T, value.astype(">f4"), value[:, ::2]):
            with pytest.raises(ValueError, match="C-contiguous and little-endian"):
                writer.write("x", bad)
        writer.write("x", value[:1])
        with pytest.raises(ValueError, match="only 24 bytes"):
            writer.write("x", bytes(13))
        with pytest.raises(KeyError):
            writer.write("z", b"")
        with pytest.raises(ValueError, match="2 tensors are not complete, such as 'x'"):
            writer.commit(None, {})
        writer.write("x", bytearray(value[1:].tobytes()))
        with pytest.raises(ValueError, match="only 24 bytes"):
            writer.write("x", b"1")
        writer.write("y", np.array(1.5, "bfloat16"))
        with pytest.raises(ValueError, match="complete"):
            writer.write("y", b"1")
        for name in ("config.json", "llmq.json", "model.safetensors", "../x", "a/b"):
            with pytest.raises(ValueError, match="plain names of their own"):
                writer.commit(None, {name: tmp_path})
        writer.commit(None, {})
    with pytest.raises(ValueError, match="not open"):
        writer.write("x", b"")
    with safe_open(tmp_path / "out/model.safetensors", "np") as file:
        np.testing.assert_array_equal(file.get_tensor("x"), value)
        assert file.get_tensor("y") == 1.5


def test_a_copy_that_vanished(example, tmp_path, copies, expected):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="absent: no such file"):
        example.run(out, copies | {"README.md": tmp_path / "absent"})
    assert read_manifest(out) is None
    example.run(out, copies)
    assert example.snapshot(out) == expected


def test_discard(example, tmp_path, copies, expected):
    out = tmp_path / "out"
    with CheckpointWriter(out, example.shards, identity=example.identity) as writer:
        writer.write(*next(example.pieces()))
        writer.discard()
        with pytest.raises(ValueError, match="not open"):
            writer.discard()
    assert not out.exists()
    example.run(out, copies)
    with CheckpointWriter(out, example.shards, identity=example.identity, overwrite=True) as writer:
        writer.write(*next(example.pieces()))
        writer.discard()
    assert example.snapshot(out) == expected
    assert not (out / ".llmq").exists()


def test_journal_is_flushed_by_size(example, tmp_path, copies, expected, monkeypatch):
    monkeypatch.setattr("llmq.checkpoint.writer._SYNC_BYTES", 500)
    example.run(tmp_path / "out", copies)
    assert example.snapshot(tmp_path / "out") == expected
