"""A sample of the faults, kills and signals of `make torture`."""

import random
import signal
from pathlib import Path

import pytest

from tortures import interrupts, kills, room, writers
from tortures.faults import KINDS, Scene, sweep
from tortures.kills import Chain
from tortures.shim import Action, Fault

STRIDE = 67


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_fault_at_some_calls(host, stage, tmp_path, kind):
    """Each kind in one of the scenes, and beginning elsewhere."""
    number = KINDS.index(kind)
    scene = stage[number % len(stage)]
    tally = sweep(host, scene, kind, tmp_path / "out", calls=range(3 + 5 * number % 20, 520, STRIDE))
    assert tally.runs
    assert tally.wrong == 0, tally.detail


def test_a_sweep_ends_behind_the_last_call(host, stage, tmp_path):
    calls = host.run(stage[0].request(tmp_path / "out")).calls
    assert 300 < calls < 1000
    kind = next(kind for kind in KINDS if kind.name == "killed after")
    tally = sweep(host, stage[0], kind, tmp_path / "out", calls=range(calls - 1, calls + 9))
    assert (tally.runs, tally.wrong) == (2, 0)


def test_what_is_wrong_is_found(host, subject, tmp_path):
    """A section that always says 0 would not do."""
    expected = dict(subject.expected) | {"config.json": "other"}
    scene = Scene("spoiled", type(subject)(subject.source, subject.flags, expected))
    tally = sweep(host, scene, KINDS[0], tmp_path / "out", calls=range(300, 302))
    assert (tally.runs, tally.wrong) == (2, 2)
    assert "the next run left" in tally.detail


def test_a_source_that_cannot_be_read_is_named(host, subject, tmp_path):
    calls = _log(host, subject, tmp_path / "out")
    for name, path in (
        ("open", "config.json"),
        ("preadv", "model-00002-of-00003.safetensors"),
        ("stat", "config.json"),
    ):
        at = next(
            number for number, (call, where) in calls.items() if call == name and where.endswith(f"source/{path}")
        )
        request = Scene("named", subject).request(tmp_path / "faulty", fault=Fault(at=at, action=Action.FAIL))
        outcome = host.run(request)
        assert outcome.code == 3
        assert path in outcome.stderr.splitlines()[-1]
        assert not (tmp_path / "faulty").exists()


def test_data_is_on_the_disk_before_its_name_is(host, subject, tmp_path):
    """No file is published before it is synced, and its folder is synced before the next is, the manifest last."""
    out = tmp_path / "out"
    _log(host, subject, out)
    dirty, unsynced, published = set(), set(), []
    for line in host.log.read_text().splitlines():
        _, name, path, second, _, result = line.split("\t")
        if int(result) < 0 or not path.startswith(str(out)):
            continue
        if name in ("write", "pwrite", "ftruncate", "fallocate"):
            dirty.add(path)
        elif name in ("fsync", "fdatasync"):
            dirty.discard(path)
            unsynced = {renamed for renamed in unsynced if str(Path(renamed).parent) != path}
        elif name == "rename":
            assert path not in dirty, f"{path} is renamed before it is synced"
            if Path(second).parent == out:
                assert not unsynced, f"{second} is published before {unsynced} is durable"
                published.append(Path(second).name)
            unsynced.add(second)
        elif name == "unlink" and path.endswith("plan.json"):
            assert not unsynced
    assert published[-1] == "llmq.json"
    assert set(published) == set(subject.expected)
    assert not {path for path in unsynced if ".llmq" not in path}


def _log(host, subject, out):
    assert host.run(Scene("logged", subject).request(out), logged=True).code == 0
    lines = [line.split("\t") for line in host.log.read_text().splitlines()]
    return {int(line[0]): (line[1], line[2]) for line in lines}


def test_killed_at_random(host, subject, tmp_path):
    draw = random.Random(3)
    chain = Chain(host, Scene("killed", subject), tmp_path / "out", (-signal.SIGKILL, 0))
    for _ in range(8):
        signals = [(draw.uniform(0, chain.seconds), signal.SIGKILL)]
        chain.add(host.run(chain.scene.request(chain.out, signals=signals)))
    tally = chain.tally("killed")
    assert (tally.runs, tally.wrong) == (8, 0), tally.detail


@pytest.mark.parametrize("section", [interrupts, kills, room, writers], ids=lambda section: section.__name__)
def test_a_section(shim, tmp_path, section):
    told = []
    tallies = section.run(tmp_path, quick=True, tell=told.append)
    assert len(told) == len(tallies)
    assert sum(tally.runs for tally in tallies) >= 2
    assert [tally for tally in tallies if tally.wrong] == []
