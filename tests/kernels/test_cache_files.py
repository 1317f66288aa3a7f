import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llmq_kernels import jit
from llmq_kernels.cache_files import CheckedFiles, is_private

SOURCES = Path(jit.__file__).parents[1]

WORK = """
import sys
import numpy as np
from llmq_kernels import jit
compiled = []
jit.on_compile(compiled.append)
from llmq_kernels.pack import pack, unpack
bits = int(sys.argv[1])
codes = (np.arange(64, dtype=np.uint8).reshape(2, 32) * 7) & (2**bits - 1)
assert (unpack(pack(codes, bits), bits, 32) == codes).all()
print(jit.cache_folder(), *compiled)
"""


def start(folder, bits=4):
    changes = {"LLMQ_CACHE_DIR": str(folder), "PYTHONPATH": str(SOURCES), "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {k: v for k, v in (os.environ | changes).items() if k not in ("NUMBA_BOUNDSCHECK", "NUMBA_CACHE_DIR")}
    command = [sys.executable, "-c", WORK, str(bits)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def words_of(process):
    out, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    return out.split()


def test_what_was_saved_is_loaded(tmp_path):
    files = CheckedFiles(tmp_path, "f", "stamp")
    assert files.load(("a", 1)) is None
    for number in range(3):
        files.save(("a", number), {"code": bytes(100), "number": number})
    assert [files.load(("a", n))["number"] for n in range(3)] == [0, 1, 2]
    assert CheckedFiles(tmp_path, "f", "other").load(("a", 1)) is None
    assert CheckedFiles(tmp_path, "g", "stamp").load(("a", 1)) is None
    assert len(list(tmp_path.iterdir())) == 3
    files.flush()
    assert not list(tmp_path.iterdir())


def test_another_keys_file_is_not_taken_for_ones_own(tmp_path):
    files = CheckedFiles(tmp_path, "f", "stamp")
    files.save("a", 1)
    (of_a,) = tmp_path.iterdir()
    files.save("b", 2)
    of_b = next(path for path in tmp_path.iterdir() if path != of_a)
    of_b.write_bytes(of_a.read_bytes())
    assert files.load("a") == 1
    assert files.load("b") is None


def test_every_flipped_bit_and_every_cut_is_a_miss(tmp_path):
    files = CheckedFiles(tmp_path, "f", "stamp")
    files.save("a", ["machine code", 17])
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        wrong = bytearray(data)
        wrong[bit // 8] ^= 1 << bit % 8
        path.write_bytes(wrong)
        assert files.load("a") is None
    for end in range(len(data)):
        path.write_bytes(data[:end])
        assert files.load("a") is None
    files.save("a", 18)
    assert files.load("a") == 18


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    files = CheckedFiles(tmp_path, "f", "stamp")
    files.save("a", 1)

    def full(self, data):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        files.save("a", 2)
    monkeypatch.undo()
    assert files.load("a") == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_threads_save_at_once(tmp_path):
    files = CheckedFiles(tmp_path, "f", "stamp")

    def work(number):
        for key in range(40):
            files.save(key, [key, number])
            assert files.load(key)[0] == key

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(files.load(key)[0] for key in range(40)) == list(range(40))
    assert len(list(tmp_path.iterdir())) == 40


def test_a_broken_cache_is_compiled_anew(tmp_path):
    folder, *compiled = words_of(start(tmp_path))
    assert compiled == ["pack._pack", "pack._unpack"]
    found = sorted(Path(folder).rglob("*.nbc"))
    for number, path in enumerate(found):
        data = bytearray(path.read_bytes())
        data[len(data) * (number + 1) // (len(found) + 1)] ^= 0x10
        path.write_bytes(data)
    assert words_of(start(tmp_path)) == [folder, *compiled]
    assert words_of(start(tmp_path)) == [folder]


@pytest.mark.parametrize("count", [4, pytest.param(16, marks=pytest.mark.slow)])
def test_many_processes_find_an_empty_cache_at_once(tmp_path, count):
    processes = [start(tmp_path, 1 + n % 8) for n in range(count)]
    told = [process.communicate(timeout=250) for process in processes]
    assert [process.returncode for process in processes] == [0] * count, told
    folders = {out.split()[0] for out, _ in told}
    assert len(folders) == 1
    assert words_of(start(tmp_path)) == [*folders]
    assert not [path for path in tmp_path.rglob("*") if ".tmp" in path.name]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="has no owners")
def test_a_folder_that_others_can_write_to_is_not_used(tmp_path, monkeypatch):
    assert is_private(tmp_path)
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert not is_private(tmp_path)
    monkeypatch.undo()
    folder, *_ = words_of(start(tmp_path / "open"))
    Path(folder).chmod(0o777)
    assert words_of(start(tmp_path / "open"))[0] != folder


@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="has no forks")
def test_a_fork_waits_for_a_lock():
    code = """
import os, threading, time
from llmq_kernels.jit import fork_waits_for
lock, held = threading.RLock(), threading.Event()
fork_waits_for(lock)
def hold():
    with lock:
        held.set()
        time.sleep(0.3)
threading.Thread(target=hold).start()
held.wait()
began = time.monotonic()
child = os.fork()
if not child:
    free = lock.acquire(timeout=5)
    os._exit(0 if free else 1)
print(time.monotonic() - began > 0.2, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), lock.acquire(timeout=5))
"""
    environment = os.environ | {"PYTHONPATH": str(SOURCES)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout.split() == ["True", "0", "True"], done.stderr
