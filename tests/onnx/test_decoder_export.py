"""Files of an export: what is written where, and what is left when it is not."""

import errno
import json
import os

import numpy as np
import pytest

import llmq
from llmq.errors import InputError, ResourceError, UnsupportedError, UsageError, VerificationError
from llmq.onnx import decoder_export, export_decoder, output_files


@pytest.fixture(scope="module")
def packed(write_pico, tmp_path_factory):
    """A packed checkpoint of two shards, with a tokenizer; not to be written to."""
    folder = tmp_path_factory.mktemp("models")
    model = write_pico(folder / "model")
    (model / "tokenizer.json").write_text("{}")
    return llmq.quantize(model, folder / "packed", bits=4, group_size=32, max_shard_size=20_000).output


def tree(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_beside_the_weights_nothing_is_copied(packed, tmp_path):
    model = copied(packed, tmp_path / "model")
    before = tree(model)
    found = export_decoder(model, model / "model.onnx", check=False)
    after = tree(model)
    assert set(after) - set(before) == {"model.onnx", "model.onnx.data"}
    assert all(after[name] == content for name, content in before.items())
    assert found.copied == ()
    assert found.files["model.onnx"] == len(after["model.onnx"])
    assert sum(name.endswith(".safetensors") for name in found.files) > 1
    assert llmq.load(model) is not None  # it still is a checkpoint


def copied(source, target):
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_elsewhere_the_folder_becomes_a_checkpoint_too(packed, tmp_path):
    out = tmp_path / "a" / "b"
    found = export_decoder(packed, out / "m.onnx", compute="float32", check=False)
    held = tree(out)
    assert set(held) == {*tree(packed), "m.onnx", "m.onnx.data"}
    assert all(held[name] == content for name, content in tree(packed).items())
    assert set(found.copied) == set(tree(packed))
    np.testing.assert_array_equal(llmq.load(out)([5, 6]), llmq.load(packed)([5, 6]))
    again = export_decoder(packed, out, check=False)  # another graph over the same copies
    assert again.output == out / "model.onnx"
    assert tree(out)["m.onnx"] == held["m.onnx"]


def test_what_is_there_is_replaced_only_when_asked(packed, tmp_path):
    first = export_decoder(packed, tmp_path, check=False)
    before = tree(tmp_path)
    with pytest.raises(UsageError, match=r"model\.onnx: already there") as caught:
        export_decoder(packed, tmp_path, check=False)
    assert "--overwrite" in caught.value.hint
    export_decoder(packed, tmp_path, compute="float32", check=False, overwrite=True)
    after = tree(tmp_path)
    assert after.keys() == before.keys()
    assert [name for name in after if after[name] != before[name]] == [first.output.name]
    first.output.unlink()
    with pytest.raises(UsageError, match=r"model\.onnx\.data: already there"):
        export_decoder(packed, tmp_path, check=False)


def test_another_checkpoint_in_the_folder_is_not_replaced(packed, write_pico, tmp_path):
    other = write_pico(tmp_path / "other")
    before = tree(other)
    with pytest.raises(UsageError, match=r"config\.json: another file is in the place"):
        export_decoder(packed, other, check=False)
    assert tree(other) == before
    export_decoder(packed, other, check=False, overwrite=True)
    assert json.loads((other / "config.json").read_text())["quantization_config"]


def test_links_are_refused_where_they_would_be_read(packed, tmp_path):
    symbolic, hard = tmp_path / "symbolic", tmp_path / "hard"
    for folder, link in ((symbolic, os.symlink), (hard, os.link)):
        copied(packed, folder)
        weights = next(folder.glob("*.safetensors"))
        weights.rename(folder / "blob")
        link(folder / "blob", weights)
    for folder, words in ((symbolic, "a symbolic link"), (hard, "several names")):
        with pytest.raises(UsageError, match=words) as caught:
            export_decoder(folder, folder, check=False)
        assert "another folder" in caught.value.hint
    export_decoder(symbolic, tmp_path / "out" / "model.onnx")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


@pytest.mark.parametrize("stage", ["copy", "write", "check_file", "agreement"])
def test_a_failure_leaves_nothing(stage, packed, tmp_path, monkeypatch):
    target = {"copy": "llmq.onnx.decoder_export.copy", "write": "llmq.onnx.decoder_export.OwnData.write"}
    name = target.get(stage, f"llmq.onnx.decoder_export.{stage}")

    def fail(*arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(name, fail)
    with pytest.raises(KeyboardInterrupt):
        export_decoder(packed, tmp_path / "new" / "model.onnx", check=True)
    assert not (tmp_path / "new").exists()
    out = copied(packed, tmp_path / "old")
    (out / "model.onnx").write_bytes(b"before")
    if stage != "copy":
        with pytest.raises(KeyboardInterrupt):
            export_decoder(out, out, check=True, overwrite=True)
        assert tree(out) == tree(packed) | {"model.onnx": b"before"}


def test_a_full_disk(packed, tmp_path, monkeypatch):
    monkeypatch.setattr("llmq.onnx.output_files.free_bytes", lambda _: 50_000)
    with pytest.raises(ResourceError, match="not enough disk space") as caught:
        export_decoder(packed, tmp_path / "out" / "model.onnx")
    assert "own folder" in caught.value.hint
    monkeypatch.undo()

    def full(fd, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("llmq.onnx.output_files.preallocate", full)
    with pytest.raises(ResourceError, match=r"not enough disk space .found No space"):
        export_decoder(packed, tmp_path / "out" / "model.onnx")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("nth", [1, 3])
@pytest.mark.parametrize("after", [False, True])
def test_no_data_stays_without_its_graph(nth, after, packed, tmp_path, monkeypatch):
    real, calls = output_files.replace, []

    def fail(source, target):
        calls.append(target)
        if len(calls) < nth:
            return real(source, target)
        if after:
            real(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr("llmq.onnx.output_files.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        export_decoder(packed, tmp_path / "a" / "new" / "model.onnx", check=False)
    assert list(tmp_path.iterdir()) == []
    out = copied(packed, tmp_path / "old")
    calls.clear()
    monkeypatch.setattr("llmq.onnx.output_files.replace", real)
    export_decoder(out, out, check=False)
    monkeypatch.setattr("llmq.onnx.output_files.replace", fail)
    if nth == 1:
        with pytest.raises(KeyboardInterrupt):
            export_decoder(out, out, check=False, overwrite=True)
        assert tree(out).items() >= tree(packed).items()
        assert "model.onnx" not in tree(out)
        assert not any(name.endswith((".tmp", ".lock")) for name in tree(out))


def test_one_run_at_a_time_writes_into_a_folder(packed, tmp_path):
    with (
        output_files.Staged(tmp_path / "out" / "m.onnx", overwrite=False, alone=True),
        pytest.raises(UsageError, match="another run is writing here: process"),
    ):
        export_decoder(packed, tmp_path / "out" / "model.onnx", check=False)
    assert list(tmp_path.iterdir()) == []


def test_what_another_run_finished_meanwhile_is_not_replaced(packed, tmp_path, monkeypatch):
    real = decoder_export.load_mapped

    def load(*arguments, **options):
        (tmp_path / "model.onnx").write_bytes(b"finished")
        return real(*arguments, **options)

    monkeypatch.setattr("llmq.onnx.decoder_export.load_mapped", load)
    with pytest.raises(UsageError, match=r"model\.onnx: already there"):
        export_decoder(packed, tmp_path, check=False)
    assert tree(tmp_path) == {"model.onnx": b"finished"}


def test_names_that_are_not_utf_8_are_refused(packed, tmp_path):
    for path in (tmp_path / "\udcff.onnx", tmp_path / "\udcff" / "model.onnx"):
        with pytest.raises(UsageError, match=r"\\udcff.*: the name of the output is not UTF-8"):
            export_decoder(packed, path)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_computes_something_else_is_not_published(packed, tmp_path, monkeypatch):
    monkeypatch.setattr("llmq.onnx.decoder._HIDDEN", 0.0)  # padding is seen
    with pytest.raises(VerificationError, match="does not compute what llmq computes"):
        export_decoder(packed, tmp_path / "out" / "model.onnx", compute="float32")
    assert not (tmp_path / "out").exists()


def test_checked_by_default_and_within_limits(packed, tmp_path):
    found = export_decoder(packed, tmp_path / "one" / "m.onnx", compute="float32")
    assert found.agreement.relative < 1e-5
    assert found.agreement.tokens == 27
    assert 1e-5 < export_decoder(packed, tmp_path / "two" / "m.onnx").agreement.relative < 0.1
    assert export_decoder(packed, tmp_path / "one" / "other.onnx", check=False).agreement is None


def test_refusals(packed, write_pico, tmp_path):
    with pytest.raises(UsageError, match="unknown compute"):
        export_decoder(packed, tmp_path / "m.onnx", compute="int4")
    with pytest.raises(UsageError, match="unknown logits"):
        export_decoder(packed, tmp_path / "m.onnx", logits="none")
    experts = {"model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 1}
    with pytest.raises(UnsupportedError, match="mixtures of experts"):
        export_decoder(write_pico(tmp_path / "moe", **experts), tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError, match="cannot run models of type 'gpt2'"):
        export_decoder(write_pico(tmp_path / "gpt2", model_type="gpt2"), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="no such folder"):
        export_decoder(tmp_path / "nothing", tmp_path / "m.onnx")
    incomplete = copied(packed, tmp_path / "incomplete")
    (incomplete / "llmq.json").unlink()
    with pytest.raises(InputError, match=r"llmq\.json is missing"):
        export_decoder(incomplete, tmp_path / "m.onnx")
