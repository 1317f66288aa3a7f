import click
import pytest


@pytest.fixture
def update(script):
    return script("update_performance")


def test_every_section_stands_on_the_page(update):
    page = update.PAGE.read_text(encoding="utf-8")
    for section in update.SECTIONS:
        assert update.put(page, section, "x").count("\nx\n") == 1


def test_only_what_stands_between_the_markers_changes(update):
    page = "a\n<!-- one:begin -->\nold\n<!-- one:end -->\nb\n"
    assert update.put(page, "one", "| new |") == "a\n<!-- one:begin -->\n\n| new |\n\n<!-- one:end -->\nb\n"
    with pytest.raises(click.ClickException, match="no section two"):
        update.put(page, "two", "")


def test_figures_that_do_not_exist_are_dashes(update):
    rows = [{"name": "a", "threads": 1, "bytes_per_second": 2e9, "limit_bytes_per_second": 4e9, "ratio": None}]
    last = update.figures(rows, update._WHAT | update._RATIO).splitlines()[-1]
    assert [cell.strip() for cell in last.strip("|").split("|")] == ["a", "1", "2.0", "4.0", "-"]


def test_a_pivot_has_a_column_for_each_contestant(update):
    ours = update.Result("generate", "decode", "llmq", 1, 2.0, 1000, 8, 1.0)
    theirs = update.Result("generate", "decode", "llama.cpp", 1, 3.0, 2000, 8, 1.5)
    other = update.Result("generate", "prefill", "llmq", 1, 2.0, None, 8, 1.0)
    lines = update.pivot([ours, theirs, other], lambda r: f"{r.seconds} s").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["what", "threads", "llmq", "llama.cpp"]
    assert cells[2] == ["decode", "1", "2.0 s, 1.00 kB", "3.0 s (1.50x), 2.00 kB"]
    assert cells[3] == ["prefill", "1", "2.0 s", "-"]
