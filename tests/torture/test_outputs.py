"""Outputs that are odd, cannot be written, or belong to another run: one line, and nothing is harmed."""

import errno
import json
import shutil
from pathlib import Path

import pytest

from llmq.cli.main import status
from tortures.faults import Scene, resume
from tortures.hosting import start
from tortures.shim import Action, Calls, Fault
from tortures.subject import digests, state_of


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
    assert outcome.code == 3
    assert "llmq.json: cannot be opened: Input/output error" in outcome.stderr


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


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_where_nothing_may_be_written(host, subject, tmp_path, number):
    fault = Fault(at=1, action=Action.FAIL, error=number, forever=True, classes=Calls.CREATE)
    outcome = host.run(Scene("read-only", subject).request(tmp_path / "out", fault=fault))
    assert outcome.code == (5 if number == errno.EDQUOT else 2)
    assert f"error: {tmp_path / 'out'}: cannot be written" in outcome.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fields", [{"schema": 9}, {"llmq_version": "0.0.1"}, {"layout": {}}, {"identity": {"x": 1}}])
def test_a_run_of_another_version_or_plan_is_refused_by_name(host, stage, tmp_path, fields):
    scene, out = stage[1], tmp_path / "out"
    scene.prepare(out)
    plan = json.loads((out / ".llmq/plan.json").read_text())
    (out / ".llmq/plan.json").write_text(json.dumps(plan | fields))
    before = digests(out)
    outcome = host.run(scene.request(out))
    assert outcome.code == 2
    assert f"an interrupted run with another {next(iter(fields))}" in outcome.stderr
    assert {name: digest for name, digest in digests(out).items() if name != ".llmq/lock"} == {
        name: digest for name, digest in before.items() if name != ".llmq/lock"
    }
    assert resume(host, Scene("anew", scene.subject, flags=("--no-resume",)), out) == ""


def test_nobody_reads_what_is_printed(subject, tmp_path):
    """As with `| head -c 0`, for stdout and for both."""
    for streams, codes in (({"stdout"}, (141,)), ({"stdout", "stderr"}, (0, 141))):
        out = tmp_path / "-".join(streams)
        with start(subject.arguments(out)) as process:
            for name in streams:
                getattr(process, name).close()
            error = "" if process.stderr.closed else process.stderr.read()
            assert process.wait(60) in codes
        assert "Traceback" not in error
        assert state_of(out, {"whole": subject.expected}) in ("whole", "unfinished", "absent")
