import pytest
from safetensors import safe_open

from llmq.sample import heldout_text, write_sample


def test_the_sample_is_a_whole_checkpoint(sample_model):
    names = {path.name for path in sample_model.iterdir()}
    assert {"config.json", "tokenizer.json", "README.md", "heldout.txt", "model.safetensors.index.json"} <= names
    shards = sorted(sample_model.glob("*.safetensors"))
    assert len(shards) == 3
    for shard in shards:
        with safe_open(shard, framework="np") as file:
            assert list(file.keys())


def test_the_text_is_what_is_written_and_ends_with_a_paragraph(sample_model):
    text = heldout_text()
    assert text == (sample_model / "heldout.txt").read_text(encoding="utf-8")
    assert 50_000 < len(text) < 70_000
    assert text.endswith('."\n')


def test_writing_it_again_changes_nothing_and_completes_what_is_missing(tmp_path):
    write_sample(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (tmp_path / "config.json").rename(tmp_path / "config.json.part")
    del before["config.json"]
    write_sample(tmp_path)
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert set(after) == {*before, "config.json"}
    assert all(after[name] == before[name] for name in before)


def test_a_folder_with_anything_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"thesis\.txt"):
        write_sample(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"another config\.json"):
        write_sample(tmp_path)
    assert (tmp_path / "config.json").read_text() == "{}"


def test_a_file_of_that_name_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="there is a file"):
        write_sample(tmp_path / "file")
