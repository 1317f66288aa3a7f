import errno
import json
import os
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from llmq.checkpoint import folder_source
from llmq.checkpoint.source import open_source, select_copies
from llmq.errors import InputError, UnsupportedError, UsageError

INDEX = "model.safetensors.index.json"


def rewrite_index(folder: Path, change) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def bytes_of(source, name: str, start=0, count=None) -> bytes:
    info = source.tensors[name]
    buffer = bytearray(info.nbytes - start if count is None else count)
    source.read_into(info, start, memoryview(buffer))
    return bytes(buffer)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("kept_open", [0, 1, 200])
def test_reads_what_the_library_wrote(tmp_path, make_pico, monkeypatch, shards, kept_open):
    monkeypatch.setattr(folder_source, "_KEPT_OPEN", kept_open)
    tensors = make_pico(tmp_path, shards)
    with open_source(tmp_path) as source:
        assert set(source.tensors) == set(tensors)
        for name, tensor in tensors.items():
            assert bytes_of(source, name) == tensor.tobytes()
            assert bytes_of(source, name, tensor.nbytes // 2, 0) == b""
        assert bytes_of(source, "model.norm.weight", 4, 8) == tensors["model.norm.weight"].tobytes()[4:12]
        source.check_unchanged()
        assert source.config["model_type"] == "llama"
        assert source.other_files == ("config.json", "modeling_evil.py", "tokenizer.json")
        assert select_copies(source) == ({"tokenizer.json": tmp_path / "tokenizer.json"}, ("modeling_evil.py",))
        with pytest.raises(ValueError, match="of a tensor of"):
            bytes_of(source, "model.norm.weight", 0, 257)
    assert not source._descriptors


def test_tensors_are_ordered_by_file_and_offset(sharded):
    with open_source(sharded[0]) as source:
        places = [(info.file, info.offset) for info in source.tensors.values()]
    assert places == sorted(places)


def test_single_file(pico):
    folder, tensors = pico
    with open_source(str(folder / "model.safetensors")) as source:
        assert set(source.tensors) == set(tensors)
        assert source.config == {}
        assert source.other_files == ()


def test_identity_is_json_and_tells_changes(pico):
    folder, _ = pico
    with open_source(folder) as source:
        before = source.identity()
    assert json.loads(json.dumps(before)) == before
    os.utime(folder / "model.safetensors", ns=(1, 1))
    with open_source(folder) as source:
        assert source.identity() != before
    (folder / "config.json").write_text("{}")
    with open_source(folder) as source:
        assert source.identity()["config"] != before["config"]


def test_nothing_there(tmp_path):
    for model in (str(tmp_path / "absent"), tmp_path / "absent", "absent", "a/b/c", "../x/y"):
        with pytest.raises(InputError, match="no such folder"):
            open_source(model)
    with pytest.raises(InputError, match="no safetensors files"):
        open_source(tmp_path)
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(InputError, match=r"neither a folder nor a \.safetensors file"):
        open_source(tmp_path / "x.txt")
    with pytest.raises(UsageError, match="a revision needs a repository"):
        open_source(tmp_path, revision="main")


@pytest.mark.parametrize(
    ("names", "kind", "what"),
    [
        (["pytorch_model.bin"], UnsupportedError, "only pickled weights"),
        (["x.gguf"], UnsupportedError, "only GGUF"),
        (["adapter_model.safetensors"], UnsupportedError, "holds an adapter"),
        (["a.safetensors", "b.safetensors"], InputError, "2 safetensors files but no"),
        ([".llmq"], InputError, "unfinished output"),
    ],
)
def test_folders_without_a_model(tmp_path, names, kind, what):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(kind, match=what) as error:
        open_source(tmp_path)
    assert error.value.hint


def test_pickles_are_named_and_refused(tmp_path):
    (tmp_path / "m.bin").write_bytes(b"\x80\x02")
    with pytest.raises(UnsupportedError, match=r"\.bin files are not supported"):
        open_source(tmp_path / "m.bin")


def test_missing_shards_are_named(sharded):
    folder, _ = sharded
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=r"^model-00002-of-00003\.safetensors: missing shard \(found 2 of 3 shards\)"):
        open_source(folder)
    (folder / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(InputError, match=r"missing shards: model-00002-of-00003.safetensors, model-00003"):
        open_source(folder)


def test_index_and_shards_must_agree(sharded):
    folder, tensors = sharded
    original = (folder / INDEX).read_text()
    name = next(iter(tensors))
    rewrite_index(folder, lambda m: m.update(ghost="model-00001-of-00003.safetensors"))
    with pytest.raises(InputError, match=r"ghost: the index names it .*found in no shard"):
        open_source(folder)
    (folder / INDEX).write_text(original)
    rewrite_index(folder, lambda m: m.update({name: "model-00002-of-00003.safetensors"}))
    with pytest.raises(InputError, match=r"expected in model-00002.*found in model-00001"):
        open_source(folder)
    (folder / INDEX).write_text(original)
    rewrite_index(folder, lambda m: m.pop(name))
    with pytest.raises(InputError, match=f"{name}: missing in {INDEX}"):
        open_source(folder)


def test_a_tensor_in_two_shards(sharded):
    folder, tensors = sharded
    name = next(iter(tensors))
    save_file({name: tensors[name]}, folder / "extra.safetensors")
    rewrite_index(folder, lambda m: m.update(other="extra.safetensors"))
    with pytest.raises(InputError, match=rf"{name}: also stands in extra.safetensors"):
        open_source(folder)


def test_stale_single_file_beside_an_index(sharded):
    folder, _ = sharded
    save_file({"x": np.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"both model.safetensors and an index"):
        open_source(folder)


@pytest.mark.parametrize(
    "text", ['{"weight_map": {}}', "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"a": 1, "a": 1}', ""]
)
def test_malformed_index(sharded, text):
    folder, _ = sharded
    (folder / INDEX).write_text(text)
    with pytest.raises(InputError, match=INDEX):
        open_source(folder)


@pytest.mark.parametrize(
    "target",
    [
        "../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "a/../x.safetensors", "./x.safetensors", "..",
        "C:\\x.safetensors", "\\\\host\\s.safetensors", "x.safetensors\n", "x.bin", "", ".safetensors/",
        "x\0.safetensors", "sub\\x.safetensors",
        "~/x.safetensors", "%2e%2e/x.safetensors", "http://h/x.safetensors", "x.safetensors ", "..\\x.safetensors",
    ],
)  # fmt: skip
def test_weight_map_must_name_plain_files(sharded, target):
    folder, tensors = sharded
    (folder.parent / "outside.safetensors").write_bytes((folder / "model-00001-of-00003.safetensors").read_bytes())
    rewrite_index(folder, lambda m: m.update({next(iter(tensors)): target}))
    with pytest.raises(InputError, match="weight_map must name plain"):
        open_source(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_links_out_of_the_folder_are_refused(pico, name):
    folder, _ = pico
    (folder / name).rename(folder.parent / "outside")
    (folder / name).symlink_to("../outside")
    with pytest.raises(InputError, match=f"^{name}: it leads out of the checkpoint's folder") as error:
        open_source(folder)
    assert error.value.hint


def test_link_through_a_linked_folder(pico):
    folder, _ = pico
    (folder.parent / "elsewhere").mkdir()
    (folder / "model.safetensors").rename(folder.parent / "elsewhere/m.safetensors")
    (folder / "sub").symlink_to(folder.parent / "elsewhere")
    (folder / "model.safetensors").symlink_to("sub/m.safetensors")
    with pytest.raises(InputError, match="leads out"):
        open_source(folder)


def test_links_inside_the_folder_and_a_linked_folder_are_fine(pico):
    folder, tensors = pico
    (folder / "model.safetensors").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")
    (folder.parent / "link").symlink_to(folder)
    with open_source(folder.parent / "link") as source:
        assert bytes_of(source, "model.norm.weight") == tensors["model.norm.weight"].tobytes()
        source.check_unchanged()


def test_companions_that_lead_out_are_left_out(pico):
    folder, _ = pico
    (folder / "README.md").symlink_to("/etc/passwd")
    (folder / "LICENSE").symlink_to("/nowhere")
    (folder / "NOTICE").symlink_to("NOTICE")
    with open_source(folder) as source:
        assert source.other_files == ("config.json", "modeling_evil.py", "tokenizer.json")


@pytest.mark.parametrize("shared", [False, True])
def test_hub_cache_snapshots(tmp_path, make_pico, shared):
    repo = tmp_path / "hub/models--org--name"
    snapshot = repo / "snapshots/0123"
    make_pico(snapshot)
    (repo / "blobs").mkdir()
    for number, path in enumerate(snapshot.iterdir()):
        blob = repo / f"blobs/{number}"
        path.rename(blob)
        if shared:
            (tmp_path / "hub/blobs/ab").mkdir(parents=True, exist_ok=True)
            blob.rename(tmp_path / f"hub/blobs/ab/{number}")
            blob.symlink_to(f"../../blobs/ab/{number}")
        path.symlink_to(f"../../blobs/{number}")
    with open_source(snapshot) as source:
        assert source.other_files == ("config.json", "modeling_evil.py", "tokenizer.json")
    secret = repo / "secret.safetensors"
    secret.write_bytes((snapshot / "model.safetensors").read_bytes())
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../secret.safetensors")
    with pytest.raises(InputError, match="leads out"):
        open_source(snapshot)


def make_fifo(path):
    os.mkfifo(path)


def make_folder(path):
    path.mkdir()


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(path.parent)
        server.bind(path.name)


def make_device(path):
    path.symlink_to("/dev/zero")


def make_loop(path):
    path.symlink_to(path.name)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("make", [make_fifo, make_folder, make_socket, make_device, make_loop])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_things_that_are_no_files(pico, make, name, monkeypatch):
    folder, _ = pico
    monkeypatch.chdir(folder)
    (folder / name).unlink()
    make(folder / name)
    with pytest.raises(InputError, match=f"^{name}: "):
        open_source(folder)


@pytest.mark.parametrize("text", ["[]", "{", '{"a": 1, "a": 2}', '{"a": NaN}'])
def test_config_must_be_sound(pico, text):
    (pico[0] / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"^config\.json: "):
        open_source(pico[0])


def test_error_names_the_truncated_shard(sharded):
    path = sharded[0] / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"^model-00002-of-00003\.safetensors: truncated: "):
        open_source(sharded[0])


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def touch(path):
    os.utime(path, ns=(1, 1))


def swap(path):
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes())
    copy.rename(path)


def remove(path):
    path.unlink()


@pytest.mark.parametrize("change", [truncate, touch, swap, remove])
@pytest.mark.parametrize("kept_open", [0, 200])
def test_a_source_that_changes_is_noticed(pico, monkeypatch, change, kept_open):
    monkeypatch.setattr(folder_source, "_KEPT_OPEN", kept_open)
    folder, _ = pico
    with open_source(folder) as source:
        change(folder / "model.safetensors")
        with pytest.raises(InputError, match="changed while it was read"):
            source.check_unchanged()
        if kept_open == 0:
            with pytest.raises(InputError, match=r"changed while it was read|no such file"):
                bytes_of(source, "model.norm.weight")


def test_reading_past_a_truncation(pico):
    folder, _ = pico
    with open_source(folder) as source:
        os.truncate(folder / "model.safetensors", 100)
        with pytest.raises(InputError, match="became shorter"):
            bytes_of(source, "model.norm.weight")


def test_reading_from_several_threads(sharded):
    folder, tensors = sharded
    wrong = []

    def read(source):
        wrong.extend(name for name in tensors if bytes_of(source, name) != tensors[name].tobytes())

    with open_source(folder) as source:
        threads = [threading.Thread(target=read, args=(source,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_disk_that_cannot_be_read(pico, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    folder, _ = pico
    with open_source(folder) as source:
        monkeypatch.setattr(os, "preadv", refuse)
        with pytest.raises(InputError, match=r"model\.norm\.weight: cannot be read: Input/output error"):
            bytes_of(source, "model.norm.weight")
    with pytest.raises(InputError, match=r"^config\.json: cannot be read"):
        open_source(folder)
    with pytest.raises(InputError, match=r"^model\.safetensors: cannot be read"):
        open_source(folder / "model.safetensors")


def test_a_config_without_end(pico):
    os.truncate(pico[0] / "config.json", 1 << 40)
    with pytest.raises(InputError, match=r"^config\.json: too long"):
        open_source(pico[0])
