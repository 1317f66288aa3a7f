"""The table of malformed checkpoints: a part of it, in the manner of `make torture`."""

import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks and inotify")


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


def test_a_part_of_the_table(tmp_path):
    from tortures.hostile import run

    said = []
    tallies = run(tmp_path / "scratch", quick=True, tell=said.append)
    assert not [tally for tally in tallies if tally.wrong]
    assert sum(tally.runs for tally in tallies) > 300
    assert said


def test_cases_have_names_of_their_own_and_say_what_is_expected():
    from tortures.attacks import all_cases

    cases = all_cases()
    assert len(cases) > 1200
    for case in cases:
        assert case.codes
        assert set(case.codes) <= {"quantize", "inspect", "generate", "chat"}
        assert case.start in {"single", "sharded", "packed", "asymmetric", "output"}


@pytest.mark.parametrize(
    "name", ["took too long", "looked outside", "steers the terminal", "lines of error", "output made"]
)
def test_what_is_wrong_is_noticed(name):
    """A judge that finds nothing would let everything pass."""
    from tortures.attacks.case import Case
    from tortures.forks import Outcome
    from tortures.hostile_child import judge

    case = Case("x: y", lambda _: None, words=("model",))
    fine = Outcome(3, "", "error: model: no\n", 0.1, 0)
    assert judge(case, "quantize", fine, [], made=False) == ""
    worse = {
        "took too long": Outcome(3, "", fine.err, 99.0, 0),
        "steers the terminal": Outcome(3, "", "error: model \x1b[31m\n", 0.1, 0),
        "lines of error": Outcome(3, "", "", 0.1, 0),
    }
    events = ["outside/secret: 0x20"] if name == "looked outside" else []
    found = judge(case, "quantize", worse.get(name, fine), events, made=name == "output made")
    assert name in found
