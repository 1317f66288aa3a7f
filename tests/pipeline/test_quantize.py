import hashlib
import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from xxhash import xxh3_128

import llmq
from llmq.checkpoint.manifest import read_manifest
from llmq.checkpoint.source import FolderSource
from llmq.errors import InputError, ResourceError, UsageError
from llmq.system.progress import NullProgress

PICO = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32, "float64": np.float64}


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.safetensors"))}


@pytest.fixture(scope="module")
def pico(tmp_path_factory, write_pico):
    return write_pico(tmp_path_factory.mktemp("pico"), shards=2)


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
def test_the_output_opens_with_safetensors_and_holds_what_was_planned(tmp_path, pico, bits):
    report = llmq.quantize(pico, tmp_path / "out", bits=bits, max_shard_size=30_000)
    found = {}
    for path in sorted((tmp_path / "out").glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            found |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    assert found == {o.name: list(o.shape) for t in report.plan.tensors for o in t.outputs}
    assert read_manifest(tmp_path / "out") is not None
    assert not (tmp_path / "out" / ".llmq").exists()
    assert report.peak_anon_bytes > 0


@pytest.mark.parametrize("symmetric", [True, False])
def test_what_is_stored_is_what_quantize_tensor_gives(tmp_path, write_pico, symmetric):
    source = write_pico(tmp_path / "in")
    llmq.quantize(source, tmp_path / "out", symmetric=symmetric, group_size=32)
    with safe_open(source / "model.safetensors", framework="np") as file:
        weight = file.get_tensor("model.layers.0.mlp.up_proj.weight")
    q = llmq.quantize_tensor(weight, group_size=32, symmetric=symmetric)
    with safe_open(tmp_path / "out" / "model.safetensors", framework="np") as file:
        packed = file.get_tensor("model.layers.0.mlp.up_proj.weight_packed")
        scale = file.get_tensor("model.layers.0.mlp.up_proj.weight_scale")
        shape = file.get_tensor("model.layers.0.mlp.up_proj.weight_shape")
    np.testing.assert_array_equal(packed.view(np.uint8), q.packed)
    np.testing.assert_array_equal(scale, q.scale)
    assert shape.tolist() == list(weight.shape)


def test_what_is_kept_is_kept_to_the_byte(tmp_path, pico):
    llmq.quantize(pico, tmp_path / "out")
    name = "model.embed_tokens.weight"

    def read(folder):
        index = (
            json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
            if (folder / "model.safetensors.index.json").exists()
            else {name: "model.safetensors"}
        )
        with safe_open(folder / index[name], framework="np") as file:
            return file.get_tensor(name)

    np.testing.assert_array_equal(read(pico), read(tmp_path / "out"))


def test_bytes_do_not_depend_on_threads_blocks_or_the_run(tmp_path, write_pico):
    source = write_pico(tmp_path / "in", hidden_size=256, vocab_size=4096)
    llmq.quantize(source, tmp_path / "a", threads=1)
    llmq.quantize(source, tmp_path / "b", threads=2)
    llmq.quantize(source, tmp_path / "c", max_memory=200 << 20)
    assert digests(tmp_path / "a") == digests(tmp_path / "b") == digests(tmp_path / "c")


def test_a_dry_run_writes_nothing(tmp_path, pico):
    report = llmq.quantize(pico, tmp_path / "out", dry_run=True)
    assert report.state == "dry run"
    assert not (tmp_path / "out").exists()


def test_a_finished_run_is_not_repeated(tmp_path, pico):
    llmq.quantize(pico, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    assert llmq.quantize(pico, tmp_path / "out").state == "already complete"
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}


def test_another_recipe_needs_overwrite(tmp_path, pico):
    llmq.quantize(pico, tmp_path / "out")
    with pytest.raises(UsageError) as caught:
        llmq.quantize(pico, tmp_path / "out", bits=8)
    assert "--overwrite" in caught.value.hint
    report = llmq.quantize(pico, tmp_path / "out", bits=8, overwrite=True)
    assert report.state == "quantized"
    llmq.quantize(pico, tmp_path / "fresh", bits=8)
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


class StopAfter(NullProgress):
    """Raises KeyboardInterrupt once so many bytes were read."""

    def __init__(self, limit):
        self.left = limit

    def advance(self, n_bytes):
        self.left -= n_bytes
        if self.left < 0:
            raise KeyboardInterrupt


class Seen(NullProgress):
    """Adds up what it is told."""

    total = done = 0

    def start(self, title, total, unit="bytes"):
        self.total = total

    def advance(self, count):
        self.done += count


def count_reads(monkeypatch):
    """A list that grows by the bytes of every read of a source."""
    read, original = [], FolderSource.read_into

    def counted(self, info, start, buffer):
        read.append(len(buffer))
        original(self, info, start, buffer)

    monkeypatch.setattr(FolderSource, "read_into", counted)
    return read


def test_an_interrupted_run_is_continued_to_the_same_bytes(tmp_path, pico, monkeypatch):
    total = llmq.quantize(pico, tmp_path / "whole", max_shard_size=30_000).plan.source_bytes
    for part in range(1, 8):
        out = tmp_path / f"out{part}"
        with pytest.raises(KeyboardInterrupt):
            llmq.quantize(pico, out, max_shard_size=30_000, progress=StopAfter(total * part // 8))
        assert read_manifest(out) is None
        read, seen = count_reads(monkeypatch), Seen()
        llmq.quantize(pico, out, max_shard_size=30_000, progress=seen)
        assert seen.done == seen.total <= sum(read)
        assert sum(read) < total if part > 1 else sum(read) <= total
        assert digests(out) == digests(tmp_path / "whole")
        assert read_manifest(out) == read_manifest(tmp_path / "whole")


def test_the_manifest_has_a_checksum_of_every_source_tensor(tmp_path, pico):
    llmq.quantize(pico, tmp_path / "out")
    found = {}
    for path in pico.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118
                found[name] = {"xxh3_128": xxh3_128(file.get_tensor(name).tobytes()).hexdigest()}
    assert read_manifest(tmp_path / "out")["source_tensors"] == found


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_named_and_nothing_is_published(tmp_path, write_pico, value):
    name = "model.layers.1.mlp.up_proj.weight"
    weight = np.zeros((128, 64), np.float32)
    weight[5, 7] = weight[127, 63] = value
    source = write_pico(tmp_path / "in", edit={name: weight}, dtype="float32")
    with pytest.raises(InputError, match="not finite") as caught:
        llmq.quantize(source, tmp_path / "out")
    assert name in str(caught.value)
    assert "2 " in str(caught.value)
    assert not list((tmp_path / "out").glob("*.safetensors"))
    report = llmq.quantize(source, tmp_path / "out", nonfinite="keep")
    kept = {t.name: t.reason for t in report.plan.tensors}
    assert "NaN" in kept[name]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight"])
def test_nan_and_infinity_in_what_is_kept_are_found_too(tmp_path, write_pico, name, dtype):
    shape = (64,) if "norm" in name else (96, 64)
    values = np.ones(shape, np.float32)
    values.flat[3], values.flat[5] = np.nan, -np.inf
    source = write_pico(tmp_path / "in", edit={name: values.astype(PICO[dtype])}, dtype=dtype)
    with pytest.raises(InputError, match="1 NaN and 1 infinite") as caught:
        llmq.quantize(source, tmp_path / "out")
    assert name in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert llmq.quantize(source, tmp_path / "out", nonfinite="keep").state == "quantized"


def test_a_run_nearly_done_needs_little_disk(tmp_path, pico, monkeypatch):
    total = llmq.quantize(pico, tmp_path / "whole", max_shard_size=30_000).plan.source_bytes
    with pytest.raises(KeyboardInterrupt):
        llmq.quantize(pico, tmp_path / "out", max_shard_size=30_000, progress=StopAfter(total * 9 // 10))
    monkeypatch.setattr("llmq.pipeline.outputs.free_bytes", lambda _: 40_000)
    llmq.quantize(pico, tmp_path / "out", max_shard_size=30_000)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


@pytest.mark.parametrize("where", ["same", "inside", "link"])
def test_the_source_is_never_the_output(tmp_path, pico, where):
    (tmp_path / "link").symlink_to(pico)
    output = {"same": pico, "inside": pico / "out", "link": tmp_path / "link"}[where]
    with pytest.raises(UsageError, match="source"):
        llmq.quantize(pico, output, overwrite=True)
    assert (pico / "config.json").exists()


def test_a_single_file_may_be_shrunk_into_a_folder_beside_it(tmp_path, write_pico):
    source = write_pico(tmp_path)
    report = llmq.quantize(source / "model.safetensors", tmp_path / "out")
    assert report.plan.quantized
    with pytest.raises(UsageError, match="separate"):
        llmq.quantize(source / "model.safetensors", tmp_path, overwrite=True)


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path, pico):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError) as caught:
        llmq.quantize(pico, tmp_path / "out")
    assert "--overwrite" in caught.value.hint
    llmq.quantize(pico, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_no_space_is_seen_before_work_starts(tmp_path, pico, monkeypatch):
    monkeypatch.setattr("llmq.pipeline.outputs.free_bytes", lambda _: 1000)
    with pytest.raises(ResourceError, match="not enough disk"):
        llmq.quantize(pico, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [{"method": "magic"}, {"nonfinite": "ignore"}, {"threads": 10_000}, {"threads": 0}])
def test_unknown_choices_are_refused_before_any_output(tmp_path, pico, flags):
    with pytest.raises(UsageError):
        llmq.quantize(pico, tmp_path / "out", **flags)
    assert not (tmp_path / "out").exists()


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path, write_pico):
    source = write_pico(tmp_path / "in")

    class Touch(NullProgress):
        def advance(self, n_bytes):
            (source / "model.safetensors").touch()

    with pytest.raises(InputError, match="changed"):
        llmq.quantize(source, tmp_path / "out", progress=Touch())
    assert read_manifest(tmp_path / "out") is None


def test_what_is_done_survives_a_source_that_cannot_be_read_for_a_while(tmp_path, pico, monkeypatch):
    whole = llmq.quantize(pico, tmp_path / "whole", max_shard_size=30_000)
    original, left = FolderSource.read_into, [whole.plan.source_bytes // 2]

    def failing(self, info, start, buffer):
        left[0] -= len(buffer)
        if left[0] < 0:
            raise InputError("cannot be read: Input/output error")
        original(self, info, start, buffer)

    with monkeypatch.context() as patch:
        patch.setattr(FolderSource, "read_into", failing)
        with pytest.raises(InputError, match="cannot be read"):
            llmq.quantize(pico, tmp_path / "out", max_shard_size=30_000)
    read = count_reads(monkeypatch)
    llmq.quantize(pico, tmp_path / "out", max_shard_size=30_000)
    assert sum(read) < whole.plan.source_bytes
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


@pytest.mark.parametrize("symmetric", [True, False])
def test_memory_stays_within_the_limit_with_every_kernel_to_compile(tmp_path, write_pico, symmetric):
    source = write_pico(tmp_path / "in", hidden_size=512, vocab_size=100_000, num_hidden_layers=1)
    code = (
        "import llmq, sys; r = llmq.quantize(sys.argv[1], sys.argv[2], embeddings=4, max_memory=220 << 20,"
        f"symmetric={symmetric}); print(r.peak_anon_bytes, r.plan.predicted_peak_bytes, r.plan.source_bytes)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, source, tmp_path / "out"],
        env=os.environ | {"LLMQ_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    peak, predicted, size = map(int, run.stdout.split())
    assert size > 190 << 20
    assert peak <= predicted <= 220 << 20
