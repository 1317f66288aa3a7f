import html
import json
import re

import pytest

from llmq.errors import ResourceError, UsageError
from llmq.report import Contents, check_writable, page, render, write_page


def test_nothing_from_outside_is_markup(contents, hostile):
    shown = Contents(
        hostile,
        [("what", hostile)],
        contents(hostile).tensors,
        contents(hostile).pictures,
        runs=[{"name": hostile, "perplexity": 3.0}],
        notes=[hostile],
    )
    text = render(shown)
    assert len(re.findall("<script", text)) == len(re.findall("</script", text)) == 2
    assert "<img" not in text
    assert "{{7*7}}" in text
    assert "\x1b" not in text
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
    assert list(json.loads(data)) == [hostile.replace("\x1b", "\\x1b")]


def test_nothing_is_asked_of_anyone(contents):
    text = render(contents())
    assert "default-src 'none'" in html.unescape(text)
    # The only address is the name of SVG's elements in the script.
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\b(src|href)=|@import|url\(", text)


def test_columns_without_figures_are_left_out(contents):
    text = render(contents())
    headings = re.findall(r'<th scope="col" aria-sort="none">(.*?)</th>', text)
    assert headings == ["name", "shape", "bits", "NMSE", "SQNR dB"]


def test_sections_without_anything_are_left_out():
    text = render(Contents("empty", []))
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", text) == ["Summary"]


def test_a_page_is_written_whole(tmp_path, contents):
    path = tmp_path / "page.html"
    path.write_text("old")
    check_writable(path)
    assert path.read_text() == "old"
    write_page(path, contents())
    assert path.read_text(encoding="utf-8") == render(contents())
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_page(tmp_path, monkeypatch, contents):
    path = tmp_path / "page.html"
    path.write_text("old")

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page, "atomic_write", full)
    with pytest.raises(ResourceError, match="No space left"):
        write_page(path, contents())
    assert path.read_text() == "old"


@pytest.mark.parametrize("name", ["absent/page.html", "file/page.html", ".", "x" * 300])
def test_what_cannot_be_written_is_refused_at_once(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--report"):
        check_writable(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
