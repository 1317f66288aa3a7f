"""Fuzzing: a few executions of every target, and targets that are wrong on purpose."""

import json
import sys
from pathlib import Path
from random import Random

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs `resource`")


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.fixture
def targets():
    from llmq.checkpoint import manifest
    from llmq.formats import patterns
    from llmq.plan import recipe_files
    from tortures.fuzz_targets import TARGETS

    kept = [(manifest, "read_small"), (recipe_files, "read_small"), (patterns, "_SECONDS")]
    before = [getattr(*place) for place in kept]
    yield TARGETS
    for place, value in zip(kept, before, strict=True):
        setattr(*place, value)


def test_shares_add_up(targets):
    from tortures.fuzz import SHARES

    assert SHARES.keys() == targets.keys()
    assert sum(SHARES.values()) == pytest.approx(1)


@pytest.mark.parametrize("name", ["header", "index", "json", "manifest", "config", "recipe", "schemes", "packed"])
def test_targets(name, targets):
    from tortures.mutations import mutated

    target, rng = targets[name], Random(name)
    seeds = target.seeds()
    assert [target.attempt(data) for data in seeds] == [""] * len(seeds)
    for _ in range(150):
        assert target.attempt(mutated(rng.choice(seeds), rng)) == ""


def test_what_goes_wrong_is_counted(tmp_path):
    from tortures.fuzz_child import Counter

    def attempt(data):
        if data == b"crash":
            raise SystemExit(data.decode())
        return "differs" if data == b"differ" else ""

    counter = Counter(attempt, tmp_path / "report.json", 3)
    for data in (b"fine", b"crash", b"differ"):
        counter(data)
    found = json.loads((tmp_path / "report.json").read_text())
    assert (found["runs"], found["crashes"], found["disagreements"], found["hangs"]) == (3, 1, 1, 0)
    assert [example[2] for example in found["examples"]] == [b"crash".hex(), b"differ".hex()]


def test_a_parser_that_accepts_too_much_is_found(targets, monkeypatch):
    """Without its check of holes and overlaps, the parser of headers soon disagrees with the safetensors library."""
    from llmq.checkpoint import header
    from tortures.mutations import mutated

    monkeypatch.setattr(header, "_check_cover", lambda *_: None)
    target, rng = targets["header"], Random(1)
    seeds = target.seeds()
    assert any("safetensors" in target.attempt(mutated(rng.choice(seeds), rng)) for _ in range(3000))


def test_documents_stay_json_mostly(targets):
    from tortures.mutations import mutated

    rng, sound = Random(2), 0
    for _ in range(500):
        try:
            json.loads(mutated(b'{"a": {"b": [1, "x", null]}, "c": 2.5}', rng))
        except ValueError:
            continue
        sound += 1
    assert 250 < sound < 500
