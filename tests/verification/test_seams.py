"""Outputs whose checksums are right and which still are not what `llmq quantize` makes of a source."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from tampering import change_json, replace_file, rewrite_manifest, told

import llmq
from llmq.errors import InputError, ResourceError
from llmq.system.progress import NullProgress


def test_a_tensor_in_a_file_without_tensors(output):
    ghost = {"file": "config.json", "sha256": "0" * 64}
    rewrite_manifest(output, lambda manifest: manifest["tensors"].update(ghost=ghost))
    assert told(output) == ["config.json: ghost: llmq.json says that it is in a file without tensors"]


@pytest.mark.parametrize("name", ["config.json", "recipe.json", "tokenizer.json", "chat_template.jinja"])
def test_unlisted_files_that_loaders_read(output, name):
    rewrite_manifest(output, lambda manifest: manifest["files"].pop(name, None))
    (output / name).touch()
    assert told(output) == [f"{name}: no part of the output, though those who load it may read it"]
    assert told(output, ignore=[name]) == []


def test_what_is_ignored_and_not_there_is_told(output):
    assert llmq.verify(output, ignore=["Readme.md", "README.md"]).notes == ("Readme.md is ignored, and not there",)
    (output / "README.md").write_text("mine")
    assert told(output, ignore="README.md") == []


@pytest.mark.parametrize(
    "settings",
    [None, {}, {"method": []}, {"method": "mse", "max_shard_size": 0}, {"method": "mse", "max_shard_size": "1"}],
)
def test_settings_that_make_no_sense(output, source, settings):
    rewrite_manifest(output, lambda manifest: manifest.update(settings=settings))
    assert told(output, against=source) == ["llmq.json: does not tell how it was made"]


def test_a_recipe_that_cannot_be_followed(output, source):
    change_json(output, "recipe.json", lambda recipe: recipe.update({"for": "vllm"}))
    [problem] = told(output, against=source)
    assert problem.startswith("recipe.json: ")
    assert "cannot be followed: not readable by vllm" in problem
    rewrite_manifest(output, lambda manifest: manifest["files"].pop("recipe.json"))
    (output / "recipe.json").unlink()
    assert told(output, against=source) == ["recipe.json: cannot be followed: no recipe there"]


def test_configuration_and_tokenizer_of_another_model(output, source, tmp_path):
    change_json(output, "config.json", lambda config: config.update(rms_norm_eps=0.5))
    replace_file(output, "tokenizer.json", b'{"evil": 1}')
    assert told(output) == []
    first, second = told(output, against=source)
    assert first.startswith("config.json: not as the source says: rms_norm_eps (expected ")
    assert second == "tokenizer.json: not the file of the source"
    assert told(output, against=source, ignore=["config.json", "tokenizer.json"]) == []
    bare = shutil.copytree(source, tmp_path / "bare")
    (bare / "tokenizer.json").rename(bare / "tokenizer_config.json")
    assert told(output, against=bare, ignore=["config.json"]) == [
        "tokenizer.json: the source has no such file",
        "tokenizer_config.json: missing",
    ]


def test_a_name_that_is_too_long_is_no_folder():
    with pytest.raises(InputError, match="File name too long"):
        llmq.verify(Path("x" * 300))


def test_a_missing_configuration_is_one_problem(output, source):
    (output / "config.json").unlink()
    found = llmq.verify(output, against=source)
    assert [str(problem) for problem in found.problems] == ["config.json: no such file"]
    assert found.notes == ("not compared with the source: the output itself is not sound",)


def test_the_checksum_of_what_a_tensor_was_made_from(output, source):
    name = "model.layers.0.mlp.up_proj.weight"
    other = {"xxh3_128": "0" * 32}
    rewrite_manifest(output, lambda manifest: manifest["source_tensors"].update({name: other}))
    [problem] = told(output, against=source, full=True)
    assert problem.startswith(f"{source}: {name}: not what the output was made from (expected 000")
    for nothing in (None, [], {name: 1}):
        rewrite_manifest(output, lambda manifest, nothing=nothing: manifest.update(source_tensors=nothing))
        assert told(output, against=source, full=True) == []


def test_a_process_out_of_descriptors_is_no_problem_of_the_output(output, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("llmq.checkpoint.safe_open._open_below", full)
    with pytest.raises(ResourceError, match="Too many open files"):
        llmq.verify(output)


@pytest.mark.parametrize("emptied", [False, True])
def test_a_run_that_replaces_the_output_meanwhile(output, emptied):
    class Replacing(NullProgress):
        def finish(self):
            for path in output.glob("*.safetensors"):
                path.unlink()
            (output / "llmq.json").unlink(missing_ok=True)
            if emptied:
                (output / "llmq.json").touch()

    found = llmq.verify(output, progress=Replacing())
    assert str(found.problems[0]) == "llmq.json: changed while the output was verified: a run replaces it"
