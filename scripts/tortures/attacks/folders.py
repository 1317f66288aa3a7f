"""Folders that are no checkpoint, indexes that lead elsewhere, and things that are no files."""

from __future__ import annotations

import json
import os
import shutil
import socket
from typing import TYPE_CHECKING, Any, Final

from tortures.attacks.case import INDEX, MODEL, READERS, SHARD, Case, read_json, write_json
from tortures.attacks.configs import text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["OUTSIDE", "TARGETS", "cases"]

OUTSIDE: Final = "outside"
"""The folder beside a checkpoint that nobody may look into."""

_FIRST: Final = "lm_head.weight"

TARGETS: Final = (
    "../outside/secret.safetensors", "../outside/../outside/secret.safetensors", "./../outside/secret.safetensors",
    "sub/../../outside/secret.safetensors", "{outside}/secret.safetensors", "/etc/passwd", "/dev/zero",
    "/proc/self/mem",
    "//etc/passwd", "file:///etc/passwd", "http://127.0.0.1/x.safetensors", "~/secret.safetensors",
    "~root/x.safetensors",
    "$HOME/x.safetensors", "%2e%2e/outside/secret.safetensors", "..%2foutside%2fsecret.safetensors",
    "..\\outside\\secret.safetensors", "C:\\x.safetensors", "C:x.safetensors", "C:/x.safetensors",
    "\\\\host\\share\\x.safetensors", "\\\\?\\C:\\x.safetensors", "CON.safetensors/", "..", ".", "", " ", "/", "\\",
    "x.safetensors\n", "x.safetensors ", " x.safetensors", "x.safetensors\0", "\0", "a\0.safetensors",
    "sub/x.safetensors", "x.safetensors/", ".safetensors/..", "x.safetensors/../../outside/secret.safetensors",
    "\u2025/outside/secret.safetensors", "\uff0e\uff0e/outside/secret.safetensors", "x\u202esrotensefas.y",
    "..\u2215outside\u2215secret.safetensors", "x.safetensors;ls", "`id`.safetensors", "-rf.bin", "x.bin", "x.pkl",
    "x.safetensors.bin", "config.json", "*.safetensors", "?.safetensors", "é.safetensors",
)  # fmt: skip
"""What a ``weight_map`` may name instead of a file beside it."""


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _weight_maps()
    yield from _indexes()
    yield from _links()
    yield from _special()
    yield from _other_formats()


def _weight_maps() -> Iterator[Case]:
    for target in TARGETS:
        name = json.dumps(target)[1:-1] or "(nothing)"
        yield Case(f"weight_map: {name}", _map(target), words=(INDEX, _FIRST, "weight_map must"), start="sharded")
    others: dict[str, Any] = {"null": None, "a number": 1, "a list": ["x"], "an object": {}, "true": True}
    for name, value in others.items():
        yield Case(f"weight_map: {name}", _map(value), words=(INDEX, _FIRST, "weight_map must"), start="sharded")


def _map(target: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        named = target.format(outside=folder.parent / OUTSIDE) if target == "{outside}/secret.safetensors" else target
        index = read_json(folder / INDEX)
        index["weight_map"][_FIRST] = named
        write_json(folder / INDEX, index)

    return change


def _rewrite(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        index = read_json(folder / INDEX)
        edit(index["weight_map"])
        write_json(folder / INDEX, index)

    return change


def _indexes() -> Iterator[Case]:
    texts: dict[str, str | bytes | Callable[[], str]] = {
        "empty": "", "null": "null", "a list": "[]", "a number": "1", "no weight_map": "{}",
        "NaN": '{"weight_map": NaN}',
        "empty weight_map": '{"weight_map": {}}', "weight_map a list": '{"weight_map": []}',
        "weight_map a string": '{"weight_map": "x"}', "cut": '{"weight_map": {"a', "not UTF-8": b'{"\xff": 1}',
        "duplicate key": '{"weight_map": {"a": "a.safetensors"}, "weight_map": {"a": "a.safetensors"}}',
        "duplicate tensor": '{"weight_map": {"a": "a.safetensors", "a": "b.safetensors"}}',
        "100,000 deep": '{"weight_map":' * 100_000, "lists 100,000 deep": "[" * 100_000,
        "30 million empty lists": lambda: '{"a":[' + "[]," * 30_000_000 + "[]]}", "LFS pointer": "version https://git-lfs.x",
        "half a surrogate pair": '{"weight_map": {"\\ud800": "a.safetensors"}}', "UTF-16": "{}".encode("utf-16"),
        "5000 digits": '{"weight_map": {}, "a": ' + "9" * 5000 + "}", "infinity": '{"a": 1e999}', "zeros": bytes(5000),
    }  # fmt: skip
    for name, content in texts.items():
        yield Case(f"index: {name}", text(INDEX, content), words=(INDEX,), start="sharded")
    ghost, wrong = "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"
    yield Case(
        "index: a tensor that is not there", _rewrite(lambda found: found.update(ghost=ghost)),
        words=(INDEX, "ghost", ghost), start="sharded",
    )  # fmt: skip
    yield Case(
        "index: a tensor of another shard", _rewrite(lambda found: found.update({_FIRST: wrong})),
        words=(INDEX, _FIRST, wrong), start="sharded",
    )  # fmt: skip
    yield Case(
        "index: a tensor left out", _rewrite(lambda found: found.pop(_FIRST)), words=(ghost, _FIRST, INDEX),
        start="sharded",
    )  # fmt: skip
    yield Case(
        "index: a missing shard", lambda folder: (folder / SHARD).unlink(), words=(SHARD, "missing", "2 of 3"),
        hint="download", start="sharded",
    )  # fmt: skip
    yield Case("index: all shards missing", _remove_shards, words=(ghost, "missing"), start="sharded")
    yield Case("index: 5,000 shards that are not there", _rewrite(_many_shards), words=("missing",), start="sharded")
    yield Case("index: a tensor in two shards", _twice, words=(_FIRST, "also stands in"), start="sharded")
    yield Case(
        "index: a stale file beside it", lambda folder: shutil.copy(folder / SHARD, folder / MODEL),
        words=(MODEL, "index"), hint="remove", start="sharded",
    )  # fmt: skip
    yield Case("index: of a size without end", _endless(INDEX), words=(INDEX, "too long"), start="sharded")
    yield Case(
        "index: missing",
        lambda folder: (folder / INDEX).unlink(),
        words=("3 safetensors files", INDEX),
        start="sharded",
    )


def _remove_shards(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.unlink()


def _many_shards(found: dict[str, Any]) -> None:
    found.update({f"t{number}": f"model-{number}.safetensors" for number in range(5000)})


def _twice(folder: Path) -> None:
    shutil.copy(folder / "model-00001-of-00003.safetensors", folder / "again.safetensors")
    _rewrite(lambda found: found.update(other="again.safetensors"))(folder)


def _endless(name: str) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, 1 << 40)


def _linked(name: str, to: Callable[[Path], Path | str]) -> Callable[[Path], object]:
    """Put a link in the place of a file; the file itself stands outside."""

    def change(folder: Path) -> None:
        secret = folder.parent / OUTSIDE / "secret.safetensors"
        (folder / name).rename(secret)
        (folder / name).symlink_to(to(folder))

    return change


def _links() -> Iterator[Case]:
    for name in (MODEL, "config.json"):
        ways: dict[str, Callable[[Path], object]] = {
            "relative": _linked(name, lambda _: "../outside/secret.safetensors"),
            "absolute": _linked(name, lambda folder: folder.parent / OUTSIDE / "secret.safetensors"),
            "of a link": _linked(name, _link_of_a_link),
            "through a linked folder": _linked(name, _through_a_folder),
            "to /dev/zero": _linked(name, lambda _: "/dev/zero"),
            "to /proc/self/mem": _linked(name, lambda _: "/proc/self/mem"),
            "to a FIFO": _linked(name, _outside_fifo),
            "to nothing": _linked(name, lambda _: "nothing"),
            "to itself": _linked(name, lambda _, name=name: name),  # type: ignore[misc]
            "to the folder": _linked(name, lambda _: "."),
        }
        for way, change in ways.items():
            yield Case(f"link: {name} {way}", change, words=(name,))
    yield Case("link: shard outside", _linked(SHARD, lambda _: "../outside/secret.safetensors"), words=(SHARD,),
               start="sharded")  # fmt: skip
    yield Case("link: index outside", _linked(INDEX, lambda _: "../outside/secret.safetensors"), words=(INDEX,),
               start="sharded")  # fmt: skip
    fine = dict.fromkeys(READERS, 0)
    yield Case("link: inside the folder", _inside, fine)
    yield Case("link: hard, to a file of the same disk", _hard, fine)
    for name in ("README.md", "LICENSE", "vocab.json", "merges.txt"):
        yield Case(f"link: {name} outside is left out", _companion(name), {"quantize": 0, "inspect": 0})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        yield Case(
            f"link: {name} outside", _linked(name, lambda _: "../outside/secret.safetensors"),
            {"quantize": 0, "generate": 3}, (name,),
        )  # fmt: skip
    yield Case(
        "link: generation_config.json outside",
        _linked("generation_config.json", lambda _: "../outside/secret.safetensors"), {"quantize": 0, "generate": 3},
        ("generation_config.json",),
    )  # fmt: skip


def _link_of_a_link(folder: Path) -> str:
    (folder / "hop").symlink_to("../outside/secret.safetensors")
    return "hop"


def _through_a_folder(folder: Path) -> str:
    (folder / "sub").symlink_to(folder.parent / OUTSIDE)
    return "sub/secret.safetensors"


def _outside_fifo(folder: Path) -> Path:
    pipe = folder.parent / OUTSIDE / "pipe"
    if not pipe.exists():
        os.mkfifo(pipe)
    return pipe


def _inside(folder: Path) -> None:
    (folder / "kept").mkdir()
    (folder / MODEL).rename(folder / "kept" / "weights")
    (folder / MODEL).symlink_to("kept/weights")


def _hard(folder: Path) -> None:
    os.link(folder / MODEL, folder / "other name")


def _companion(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder.parent / OUTSIDE / "secret.safetensors").write_text("secret")
        (folder / name).symlink_to("../outside/secret.safetensors")

    return change


def _special() -> Iterator[Case]:
    makers: dict[str, Callable[[Path], object]] = {
        "FIFO": os.mkfifo, "folder": lambda path: path.mkdir(), "socket": _socket, "device": _device,
    }  # fmt: skip
    for kind, make in makers.items():
        for name, start in ((MODEL, "single"), ("config.json", "single"), (SHARD, "sharded"), (INDEX, "sharded")):
            yield Case(f"special: {name} is a {kind}", _instead(name, make), words=(name,), start=start)
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            codes = {"quantize": 0, "generate": 3}
            yield Case(f"special: {name} is a {kind}", _instead(name, make), codes, (name,))
    for name in ("llmq.json", "quality.json"):
        codes = {"inspect": 0, "generate": 3 if name == "llmq.json" else 0}
        yield Case(f"special: {name} is a FIFO", _instead(name, os.mkfifo), codes, start="output")


def _instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return change


def _socket(path: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)


def _device(path: Path) -> None:
    """A device where root makes one, else a link to it."""
    try:
        os.mknod(path, 0o20666, os.makedev(1, 5))
    except OSError:
        path.symlink_to("/dev/zero")


def _other_formats() -> Iterator[Case]:
    """Weights in formats that llmq does not read, or never opens."""
    pickle = b"\x80\x02cposix\nsystem\nX\x0b\x00\x00\x00touch pwned\x85R."
    unsupported = dict.fromkeys(READERS, 4)
    for name in ("pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"):
        yield Case(f"format: only {name}", _only(name, pickle), unsupported, ("pickled", name), "safetensors")
    for name, start in (("model.gguf", b"GGUF\x03"), ("adapter_model.safetensors", b"")):
        yield Case(f"format: only {name}", _only(name, start + bytes(99)), unsupported, (), " ")
    yield Case("format: nothing", lambda folder: (folder / MODEL).unlink(), words=("no safetensors files",))
    yield Case("format: a scratch folder alone", _unfinished, words=("unfinished",), hint="llmq quantize")
    code = "open('pwned', 'w').write('x')\n"
    for name in ("modeling_llama.py", "sitecustomize.py", "numpy.py", "__init__.py", "tokenization_x.py"):
        yield Case(f"code: {name} is never run", text(name, code), dict.fromkeys(READERS, 0))
    beside = {"pickle": "pytorch_model.bin", "training arguments": "training_args.bin", "optimizer": "optimizer.pt"}
    for name, file in beside.items():
        yield Case(f"code: a {name} beside the weights is never read", text(file, pickle), dict.fromkeys(READERS, 0))


def _only(name: str, content: bytes) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / MODEL).unlink()
        (folder / name).write_bytes(content)

    return change


def _unfinished(folder: Path) -> None:
    (folder / ".llmq").mkdir()
