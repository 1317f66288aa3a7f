"""A sample of the faults, kills and signals of `make torture`."""

import random
import shutil
import signal
from pathlib import Path

import pytest

from llmq.cli.main import status
from tortures import interrupts, kills, room, writers
from tortures.faults import KINDS, Scene, scenes, sweep
from tortures.kills import Chain
from tortures.shim import Action, Calls, Fault

STRIDE = 67


@pytest.fixture(scope="module")
def stage(host, subject, tmp_path_factory):
    return scenes(host, subject, tmp_path_factory.mktemp("scenes"))


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


def test_ctrl_c_is_heard_between_blocks(host, subject, tmp_path):
    fault = Fault(at=30, classes=Calls.WRITE, action=Action.SIGNAL, error=signal.SIGINT)
    outcome = host.run(Scene("stopped", subject).request(tmp_path / "out", fault=fault))
    assert outcome.code == 75
    assert outcome.stderr.splitlines()[-2:] == [
        f"error: {tmp_path / 'out'}: stopped",
        "hint: the same command goes on from here",
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_hang_up_ends_a_run_as_sigterm_does(host, subject, tmp_path, number):
    fault = Fault(at=30, classes=Calls.WRITE, action=Action.SIGNAL, error=number)
    assert host.run(Scene("stopped", subject).request(tmp_path / "out", fault=fault)).code == 75


def test_a_second_signal_ends_the_process_at_once(host, subject, tmp_path):
    fault = Fault(at=25, classes=Calls.WRITE, action=Action.SIGNAL, error=signal.SIGINT, forever=True)
    outcome = host.run(Scene("stopped", subject).request(tmp_path / "out", fault=fault))
    assert outcome.code == -signal.SIGINT
    assert "Traceback" not in outcome.stderr


def test_permissions_are_the_umask_s(host, subject, tmp_path):
    for umask in (0o077, 0o000):
        out = tmp_path / f"{umask}"
        assert host.run(Scene("mask", subject).request(out, umask=umask)).code == 0
        assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o666 & ~umask}


def test_an_unreadable_old_manifest_is_no_reason_to_leave_old_files(host, stage, tmp_path):
    scene = stage[2]
    assert scene.name == "replaced"
    scene.prepare(tmp_path / "out")
    host.run(scene.request(tmp_path / "out"), logged=True)
    lines = [line.split("\t") for line in host.log.read_text().splitlines()]
    at = next(int(line[0]) for line in lines if line[1] == "open" and line[2].endswith("out/llmq.json"))
    scene.prepare(tmp_path / "out")
    outcome = host.run(scene.request(tmp_path / "out", fault=Fault(at=at, action=Action.FAIL)))
    assert outcome.code == 5
    assert "Input/output error" in outcome.stderr


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (lambda out: out.write_text("a file"), 2, "not a folder"),
        (lambda out: out.symlink_to("nowhere/at/all"), 2, "cannot be written"),
        (lambda out: out.mkdir() or (out / ".llmq").write_text("a file"), 2, "must be a folder"),
        (lambda out: out.mkdir() or (out / ".llmq").symlink_to("elsewhere"), 2, "must be a folder"),
        (lambda out: out.mkdir() or (out / ".llmq").symlink_to(out.parent), 2, "must be a folder"),
        (lambda out: (out / ".llmq").mkdir(parents=True) or (out / ".llmq/tmp").symlink_to("/"), 2, "must be a folder"),
        (lambda out: out.mkdir() or (out / ".llmq").mkdir() or (out / ".llmq/lock").symlink_to("x"), 2, ""),
    ],
    ids=[
        "a file",
        "a link to nowhere",
        "scratch is a file",
        "scratch is a dangling link",
        "scratch is a link",
        "part of it is a link",
        "lock is a link",
    ],
)
def test_odd_outputs_are_refused_in_one_line(subject, tmp_path, capsys, make, code, words):
    out = tmp_path / "out"
    make(out)
    assert status(subject.arguments(out)) == code
    err = capsys.readouterr().err
    assert [line for line in err.splitlines() if line.startswith("error: ") and words in line]
    assert not (tmp_path / "elsewhere").exists()


def test_a_linked_output_is_written_where_it_leads(subject, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    assert status(subject.arguments(tmp_path / "out")) == 0
    assert (tmp_path / "out").is_symlink()
    assert set(subject.expected) == {path.name for path in (tmp_path / "real").iterdir()}


def test_a_path_that_is_too_long_or_not_text(subject, tmp_path, capsys):
    assert status(subject.arguments(tmp_path / ("x" * 300))) == 2
    assert "File name too long" in capsys.readouterr().err
    odd = Path(str(tmp_path) + "/\udcff\x1b[2J")
    assert status(subject.arguments(odd)) == 0
    assert "\x1b" not in capsys.readouterr().err
    shutil.rmtree(odd)
