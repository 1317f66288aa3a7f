"""The script: its sections, table and exit code."""

import json

import pytest
from click.testing import CliRunner

import torture
from tortures.shim import NoShimError
from tortures.tally import Tally


@pytest.fixture
def sections(monkeypatch):
    rows = {"faults": [Tally("EIO", 12_000, 0, "a | b")], "kills": [Tally("SIGKILL", 3, 1, "one")]}
    monkeypatch.setattr(torture, "SECTIONS", {name: name for name in rows})
    monkeypatch.setattr(torture, "run_section", lambda name, scratch, quick: (rows[name], 1.0))
    return rows


def call(*arguments):
    return CliRunner().invoke(torture.main, arguments)


def test_counts_are_shown_and_one_wrong_is_a_failure(sections):
    done = call()
    assert done.exit_code == 1
    assert "| faults | EIO | 12,000 | 0 | a \\| b |" in done.stdout
    assert "| all | | 12,003 | 1 | |" in done.stdout
    assert call("--only", "faults").exit_code == 0


def test_as_json_and_into_a_page(sections, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- torture:begin -->\nold\n<!-- torture:end -->\nafter\n")
    done = call("--only", "faults", "--json", "--markdown", str(page))
    assert json.loads(done.stdout) == {"faults": [{"what": "EIO", "runs": 12_000, "wrong": 0, "detail": "a | b"}]}
    text = page.read_text()
    assert text.startswith("before\n<!-- torture:begin -->\n| section")
    assert text.endswith("\n<!-- torture:end -->\nafter\n")
    assert "old" not in text
    page.write_text("no markers")
    assert call("--only", "faults", "--markdown", str(page)).exit_code == 1


def test_counts_of_several_runs_make_one_table(sections, tmp_path):
    kept = tmp_path / "counts.json"
    assert call("--only", "kills", "--counts", str(kept)).exit_code == 1
    done = call("--only", "faults", "--counts", str(kept))
    assert done.exit_code == 1  # one of the earlier run was wrong
    assert done.stdout.index("| faults |") < done.stdout.index("| kills |")
    assert list(json.loads(kept.read_text())) == ["kills", "faults"]


def test_every_section_can_be_imported():
    for name in torture.SECTIONS:
        assert callable(torture.section(name))


def test_no_compiler_is_an_error(sections, monkeypatch):
    def fail(name, scratch, quick):
        raise NoShimError("no C compiler: install cc")

    monkeypatch.setattr(torture, "run_section", fail)
    done = call("--only", "faults")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == "error: no C compiler: install cc"
