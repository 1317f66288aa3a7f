"""The disk that loses power, and a sample of what `make torture` does with it."""

import os
import random

import pytest

from llmq.system import files
from llmq.system.files import atomic_write, preallocate, pwrite
from tortures import power
from tortures.disk import LOSSES, Disk, Loss, recorded


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def disk(tmp_path):
    """A disk with a file, and a folder to write images to."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root/old").write_bytes(b"old")
    return Disk(tmp_path / "root"), tmp_path / "root", tmp_path / "image"


def test_what_is_recorded_is_what_was_done(disk):
    model, root, image = disk
    with recorded(root) as steps:
        (root / "sub").mkdir()
        fd = os.open(root / "sub/a", os.O_RDWR | os.O_CREAT)
        preallocate(fd, 2000)
        pwrite(fd, memoryview(b"x" * 1000), 500)
        os.ftruncate(fd, 1200)
        os.write(fd, b"12")
        os.write(fd, b"3")
        os.close(fd)
        atomic_write(root / "old", b"new")
        (root / "sub/a").unlink()
        atomic_write(root / "sub/b", iter([b"b", b"c"]))
        os.close(os.open(root / "sub/b", os.O_RDONLY))
    for step in steps:
        model.apply(step)
    model.write(image)
    assert content(image) == content(root) == {"old": b"new", "sub/b": b"bc"}
    assert [step.what for step in steps][:6] == ["made", "opened", "resized", "wrote", "resized", "wrote"]


def test_what_is_lost(disk):
    model, root, image = disk
    with recorded(root) as steps:
        fd = os.open(root / "a", os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, b"safe", 0)
        os.fsync(fd)
        os.pwrite(fd, b"LOST", 2)
        (root / "old").replace(root / "older")
        os.close(fd)
    for step in steps:
        model.apply(step)
    expected = {
        "all that is not synced": {"old": b"old"},
        "bytes, but no names": {"a": b"safe", "older": b"old"},
        "bytes, with zeros in their place": {"a": b"safe\0\0", "older": b"old"},
        "names, but no bytes": {"old": b"old"},
    }
    image.mkdir()
    for name, wanted in expected.items():
        model.write(image / name, LOSSES[name])
        assert content(image / name) == wanted
    seen = set()
    for seed in range(40):
        model.write(image / str(seed), Loss("some", "some"), random.Random(seed))
        seen.add(tuple(sorted(content(image / str(seed)))))
    assert seen == {("old",), ("a", "older")}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return list(power.scenes(tmp_path_factory.mktemp("power")))


def losses(scene, root, every, first=0):
    """What is said of losses after one of `every` steps, from a first one on."""
    disk, chance = Disk(scene.before), random.Random(1)
    for number, step in enumerate(scene.steps):
        disk.apply(step)
        if number >= first and number % every == 0:
            for loss in LOSSES.values():
                yield power.try_loss(scene, disk, root, loss, chance)


@pytest.mark.parametrize("number", [0, 1])
def test_runs_go_on_after_a_loss(scenes, tmp_path, number):
    said = list(losses(scenes[number], tmp_path / "image", 9))
    assert len(said) > 80
    assert not any(said)


def test_a_forgotten_sync_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "sync_file", lambda fd: None)
    monkeypatch.setattr("llmq.checkpoint.shard_file.sync_file", lambda fd: None)
    scene = next(power.scenes(tmp_path))
    last = len(scene.steps) - 12  # the manifest is there in some of them
    assert "something else than an output has a manifest" in set(losses(scene, tmp_path / "image", 1, last))
