"""A source, and an output that was made from it."""

import shutil

import pytest

import llmq


@pytest.fixture(scope="module")
def source(tmp_path_factory, write_pico):
    folder = write_pico(tmp_path_factory.mktemp("verify") / "source", shards=2)
    (folder / "README.md").write_text("# Pico\n")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory, source):
    """A sound output in three shards; not to be written to."""
    return llmq.quantize(source, tmp_path_factory.mktemp("made") / "out", max_shard_size=30_000).output


@pytest.fixture
def output(made, tmp_path):
    """A copy of it."""
    return shutil.copytree(made, tmp_path / "copy")
