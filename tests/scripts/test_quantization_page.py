import doctest
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "quantization.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def drawing(script):
    return script("draw_pictures")


def test_the_python_examples_run():
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert all(block.startswith(">>> ") for block in blocks)
    examples = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "quantization.md", None, None)
    report = []
    found = doctest.DocTestRunner(verbose=False).run(examples, out=report.append)
    assert found.attempted > 20
    assert found.failed == 0, "".join(report)


def test_every_table_is_what_the_lessons_find(script, sample):
    tour, update = script("tour"), script("update_docs")
    exact = [name for name in tour.LESSONS if name not in tour.MEASURED]
    assert update.quantization(PAGE, exact, sample) == PAGE
    for name in tour.MEASURED:
        for section in tour.LESSONS[name](sample).tables:
            assert len(PAGE.partition(f"<!-- {section}:begin -->")[2].partition(f"<!-- {section}:end -->")[0]) > 100


def test_headings_follow_the_tour(script):
    tour = script("tour")
    titles = [tour.LESSONS[name](None).title for name in tour.LESSONS if name not in tour.NEED_SAMPLE]
    headings = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert [heading for heading in headings if heading in titles] == titles


def test_links_lead_to_headings_and_files():
    anchors = {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)
    }
    prose = re.sub(r"^```python\n.*?^```|`[^`\n]+`", "code", PAGE, flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)]+)\)", prose):
        path, _, anchor = target.partition("#")
        if path:
            assert (DOCS / path).exists(), target
        else:
            assert anchor in anchors, target


def test_the_page_shows_every_picture(drawing):
    shown = re.findall(r"\]\(pictures/(\w+)\.svg\)", PAGE)
    assert sorted(shown) == sorted(drawing.PICTURES)
    others = re.findall(r"\]\(pictures/(\w+)\.svg\)", (DOCS / "quality.md").read_text(encoding="utf-8"))
    assert sorted(path.stem for path in (DOCS / "pictures").iterdir()) == sorted([*shown, *others])


@pytest.mark.parametrize(
    "name", ["complement", "floats", "spacing", "ten", "staircase", "clipping", "layer", "sizes", "gradients"]
)
def test_pictures_are_the_same_at_every_run(drawing, name):
    first, second = drawing.draw(name, None), drawing.draw(name, None)
    assert first == second
    root = ElementTree.fromstring(first)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "fill: #ffffff" in first  # words stay readable where the page is dark
    assert len(first) < 60_000
    words = {word for element in root.iter("{http://www.w3.org/2000/svg}text") for word in (element.text or "").split()}
    stored = (DOCS / "pictures" / f"{name}.svg").read_text(encoding="utf-8")
    assert words
    assert all(word in stored for word in words)


def test_pictures_of_the_sample(drawing, sample):
    for name in ("channels", "dynamic", "costs"):
        made = drawing.draw(name, sample)
        assert len(made) < 60_000
        assert ElementTree.fromstring(made).get("width") == "504pt"


def test_the_picture_of_training_is_the_same_at_every_run(script):
    picture = script("picture_training")
    rng = np.random.default_rng(0)
    weight, scale = rng.normal(size=(4, 50)), np.full((4, 1), 0.6)
    one = picture.OnGrid(weight, scale, np.rint(weight / scale).clip(-2, 1))
    other = picture.OnGrid(one.codes * scale, scale, one.codes)
    with script("picture").style():
        first, second = (script("picture").svg(picture.histograms(one, other)) for _ in range(2))
    assert first == second
    assert "what they round to, 0 % off" in first
    assert ElementTree.fromstring(first).get("width") == "504pt"
