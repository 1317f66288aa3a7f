"""Opening files of strangers: below their folder, and only if they are files."""

import os

import pytest

from llmq.checkpoint.safe_open import allowed_roots, open_inside, read_small
from llmq.errors import InputError


@pytest.fixture(params=["from the folder downward", "by the whole path"])
def folder(request, tmp_path, monkeypatch):
    """A folder, on a system that opens relative to folders and on one that does not."""
    if request.param == "by the whole path":
        monkeypatch.setattr(os, "supports_dir_fd", frozenset())
    elif os.open not in os.supports_dir_fd:
        pytest.skip("this system does not")
    made = tmp_path / "model"
    (made / "below").mkdir(parents=True)
    (made / "file").write_bytes(b"content")
    (made / "below" / "file").write_bytes(b"below")
    (tmp_path / "secret").write_bytes(b"secret")
    return made


def read(folder, name):
    return read_small(folder / name, allowed_roots(folder))


def test_files_and_links_inside(folder):
    (folder / "link").symlink_to("below/file")
    (folder / "again").symlink_to("link")
    (folder / "absolute").symlink_to(folder.resolve() / "file")
    found = [read(folder, name) for name in ("file", "below/file", "link", "again", "absolute")]
    assert found == [b"content", b"below", b"below", b"below", b"content"]
    fd, signature = open_inside(folder / "file", allowed_roots(folder))
    os.close(fd)
    assert signature.size == 7


@pytest.mark.parametrize("target", ["../secret", "{tmp}/secret", "..", ".", "sub/secret", "hop", "/dev/zero"])
def test_nothing_outside(folder, target):
    (folder / "sub").symlink_to("..")
    (folder / "hop").symlink_to("../secret")
    (folder / "link").symlink_to(target.format(tmp=folder.parent))
    with pytest.raises(InputError, match=r"^link: it leads out of the checkpoint's folder") as error:
        read(folder, "link")
    assert error.value.hint


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (os.mkfifo, "it is not a regular file"),
        (os.mkdir, "it is a folder"),
        (lambda path: path.symlink_to("nothing"), "no such file"),
        (lambda path: path.symlink_to("thing"), "cannot be opened: "),
        (lambda path: None, "no such file"),
    ],
)
def test_no_files(folder, make, what):
    make(folder / "thing")
    with pytest.raises(InputError, match=f"^thing: {what}"):
        read(folder, "thing")


def test_a_link_put_there_after_the_path_was_resolved(folder, monkeypatch):
    """As a race would have it: what was a file, or a folder, when it was looked at is a link when it is opened."""
    from pathlib import Path

    resolve = Path.resolve

    def swap(self, strict=False):
        found = resolve(self, strict=strict)
        if strict and self.name == "file":
            (folder / "below" / "file").unlink()
            (folder / "below").rmdir()
            (folder / "below").symlink_to("..")
            (folder.parent / "file").write_bytes(b"secret")
        return found

    roots = allowed_roots(folder)
    if os.open in os.supports_dir_fd:
        monkeypatch.setattr(Path, "resolve", swap)
        with pytest.raises(InputError, match=r"^file: cannot be opened"):
            read_small(folder / "below" / "file", roots)
