"""Runs cases of the table, each in a fork, and tells of each in a line of JSON."""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tortures.attacks import all_cases
from tortures.attacks.case import SHARD
from tortures.attacks.folders import OUTSIDE
from tortures.attacks.sound import write_sound
from tortures.cuts import cut_everywhere
from tortures.forks import in_fork
from tortures.races import RACES, hide_secrets, race
from tortures.watched import CHANGED, OPENED, Watched

if TYPE_CHECKING:
    from tortures.attacks.case import Case
    from tortures.forks import Outcome

__all__ = ["judge", "main"]

_SECONDS: Final = 15.0
_BYTES: Final = 1 << 30
_HIDDEN: Final = "what nobody may read"
_ALLOWED: Final = {-1: (0, 2, 3, 4), -3: (3, 4)}
_STEERING: Final = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--match", default="*", help="names of cases, a pattern")
    parser.add_argument("--every", type=int, default=1, help="take every Nth of them")
    parser.add_argument("--quick", action="store_true", help="fewer cuts and races")
    options = parser.parse_args()
    scratch: Path = options.scratch
    _import_everything()
    scratch.mkdir(parents=True, exist_ok=True)
    sound = scratch / "sound"
    if not sound.exists():
        made = in_fork(lambda: _made(sound), scratch, seconds=600)
        if made.code:
            sys.exit(made.err)
    _warm(sound / "single")
    cases = [case for case in all_cases() if fnmatch.fnmatchcase(case.name, options.match)]
    for case in cases[:: options.every]:
        for command in case.codes:
            _tell(_try(case, command, scratch))
    for name, start in (("cut: model.safetensors", "single"), (f"cut: {SHARD}", "sharded")):
        if fnmatch.fnmatchcase(name, options.match):
            _tell(_cut(name, start, scratch, quick=options.quick))
    for name in RACES:
        if fnmatch.fnmatchcase(f"race: {name}", options.match):
            _tell(_race(name, scratch, times=100 if options.quick else 3000))


def _made(sound: Path) -> int:
    write_sound(sound)
    return 0


def _tell(row: dict[str, Any]) -> None:
    print(json.dumps({"runs": 1} | row), flush=True)


def _place(scratch: Path, start: str) -> Path:
    """A copy of a sound checkpoint, with a folder beside it that holds secrets."""
    place = scratch / "case"
    shutil.rmtree(place, ignore_errors=True)
    (place / OUTSIDE).mkdir(parents=True)
    (place / "work").mkdir()
    for name in ("secret.safetensors", "passwd"):
        (place / OUTSIDE / name).write_text(_HIDDEN)
    shutil.copytree(scratch / "sound" / start, place / "model")
    return place


def _cut(name: str, start: str, scratch: Path, *, quick: bool) -> dict[str, Any]:
    """Cut a shard everywhere."""
    place = _place(scratch, start)

    def work() -> int:
        runs, wrong = cut_everywhere(place / "model", place / "out", name.removeprefix("cut: "), quick=quick)
        print(json.dumps({"runs": runs, "wrong": wrong}))
        return 0

    return _counted(name, in_fork(work, scratch, seconds=900))


def _race(name: str, scratch: Path, *, times: int) -> dict[str, Any]:
    """Swap a file while it is read."""
    place = _place(scratch, "single")
    (place / "model" / "README.md").write_text("what everybody may read")

    def work() -> int:
        done, refused, wrong = race(place / "model", RACES[name], times=times)
        print(json.dumps({"runs": done + refused, "wrong": wrong, "detail": f"{refused} refused"}))
        return 0

    hide_secrets(place / "model", place / OUTSIDE)
    with Watched({place / OUTSIDE: OPENED}) as watched:
        row = _counted(f"race: {name}", in_fork(work, scratch, seconds=900))
        looks = watched.events()
    return row | ({"wrong": f"looked outside: {looks[:3]}"} if looks and not row["wrong"] else {})


def _counted(name: str, outcome: Outcome) -> dict[str, Any]:
    row = {
        "name": name,
        "command": "",
        "code": outcome.code,
        "seconds": outcome.seconds,
        "megabytes": outcome.grown >> 20,
    }
    if outcome.code:
        return row | {"wrong": f"exit code {outcome.code}", "error": outcome.err[-600:]}
    found: dict[str, Any] = json.loads(outcome.out)
    return row | {"error": ""} | found


def _import_everything() -> None:
    """Import what the commands import, so that forks find it there; nothing is run."""
    import transformers  # noqa: F401

    import llmq.cli.chat
    import llmq.cli.generate
    import llmq.cli.inspect
    import llmq.cli.quantize
    import llmq.evaluate.inventory
    import llmq.pipeline
    import llmq.runtime
    import llmq.runtime.text  # noqa: F401


def _warm(folder: Path) -> None:
    """Have transformers import what it needs for a tokenizer; that runs nothing in parallel."""
    from llmq.runtime.text import load_tokenizer

    load_tokenizer(folder)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "threads do not survive a fork"


def _try(case: Case, command: str, scratch: Path) -> dict[str, Any]:
    """Run one command on one case, and say what was wrong about it."""
    place = _place(scratch, case.start)
    folder, out = place / "model", place / "out"
    case.change(folder)
    (scratch / "stdin").write_text("hi\n")
    arguments = {
        "quantize": [
            "quantize",
            str(folder),
            "-o",
            str(out),
            "--method",
            "rtn",
            "--group-size",
            "32",
            "--lm-head",
            "keep",
        ],
        "inspect": ["inspect", str(folder), *([] if case.group == "large" else ["--tensors"])],
        "generate": ["generate", str(folder), "-p", "hi", "-m", "2"],
        "chat": ["chat", str(folder), "-m", "2"],
    }[command]
    if "--recipe" in case.arguments:
        arguments = arguments[:4]
    arguments += [argument.replace("FOLDER", str(folder)) for argument in case.arguments]
    watches = {place / OUTSIDE: OPENED | CHANGED, folder: CHANGED, place: CHANGED, place / "work": CHANGED}
    with Watched(watches) as watched:
        outcome = in_fork(lambda: _run(arguments, place / "work"), scratch, seconds=6 * _SECONDS)
        events = [event for event in watched.events() if command != "quantize" or not event.startswith("case/out")]
    wrong = judge(case, command, outcome, events, made=out.exists())
    return {
        "name": case.name, "command": command, "code": outcome.code, "wrong": wrong, "seconds": round(outcome.seconds,
        3),
        "megabytes": outcome.grown >> 20, "error": outcome.err[-600:] if wrong else _error_of(outcome.err),
    }  # fmt: skip


def _run(arguments: list[str], work: Path) -> int:
    import warnings

    from llmq.cli.main import status

    os.chdir(work)
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    return status(arguments)


def _error_of(err: str) -> str:
    return next((line for line in err.splitlines() if line.startswith("error: ")), "")


def judge(case: Case, command: str, outcome: Outcome, events: list[str], *, made: bool) -> str:
    """What is wrong, in a few words; nothing if all is well."""
    expected = _ALLOWED.get(case.codes[command], (case.codes[command],))
    lines = outcome.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    hints = [line for line in lines if line.startswith("hint: ")]
    refused = outcome.code != 0
    # transformers is asked about these, in a process with bounds of its own.
    more = 4 if case.group == "unknown" else 1
    checks = {
        f"exit code {outcome.code}, not {' or '.join(map(str, expected))}": outcome.code in expected,
        "took too long": outcome.seconds < _SECONDS * more,
        f"took {outcome.grown >> 20} MB": outcome.grown < _BYTES * more,
        "traceback": "Traceback" not in outcome.err and "panicked" not in outcome.err,
        f"{len(errors)} lines of error": len(errors) == int(refused),
        "steers the terminal": not _STEERING.search(
            outcome.err + ("" if command in ("generate", "chat") else outcome.out)
        ),
        "words missing in the error": not refused or not errors or all(word in errors[0] for word in case.words),
        "no such hint": not refused or not case.hint or any(case.hint in line for line in hints),
        "output made": not (refused and made),
        f"looked outside or wrote: {events[:3]}": not events,
        "secret told": _HIDDEN not in outcome.out,
    }
    return "; ".join(what for what, fine in checks.items() if not fine)


if __name__ == "__main__":
    main()
