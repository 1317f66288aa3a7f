"""What a page does in a real browser."""

import re

import pytest

from llmq.report import Contents, write_page
from llmq.report.charts import frontier, timeline

PROJECTIONS = {"self_attn": "qkvo", "mlp": ("gate", "up", "down")}
SIZES = [{"width": 1280, "height": 900}, {"width": 375, "height": 800}]


def model(blocks):
    """A page of a model of many blocks, with everything a page may have."""
    names = [
        f"model.layers.{i}.{part}.{p}_proj.weight"
        for i in range(blocks)
        for part, ps in PROJECTIONS.items()
        for p in ps
    ]
    tensors = [
        {
            "name": name,
            "shape": [64, i + 1],
            "elements": 64 * (i + 1),
            "quantized": True,
            "bits": 4 if i % 3 else 8,
            "group_size": 64,
            "bytes": 4096 - i,
            "nmse": 10.0 ** -(1 + i % 7),
            "sqnr_db": 10.0 * (1 + i % 7),
        }
        for i, name in enumerate(names)
    ]
    pictures = {
        name: {"first": -3.0, "width": 0.5, "counts": list(range(40)), "below": 1, "above": 2, "usage": [i + 1] * 16}
        for i, name in enumerate(names)
    }
    runs = [{"name": f"run {i}", "bits_per_weight": 3.0 + i, "kl_mean": 0.1 / (i + 1)} for i in range(3)]
    return Contents(
        "llmq quantize: a model",
        [("size", "2 MB"), ("bits per weight", "4.25")],
        tensors,
        pictures,
        runs=runs,
        timeline=timeline([(i / 10, 50_000_000 + 1000 * i) for i in range(100)], {"budget": 80_000_000}),
        frontier=frontier(runs, "kl_mean", "mean KL divergence, nats"),
    )


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "large.html"
    write_page(path, model(80))
    return path


@pytest.mark.parametrize("viewport", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_silent_alone_and_fits(open_page, large, viewport, scheme):
    opened = open_page(large, viewport=viewport, color_scheme=scheme)
    assert opened.complaints == []
    assert opened.requests == [large.as_uri()]
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert opened.page.locator("#heatmap .cell").count() == 80 * 7
    for chart in ("#frontier", "#timeline", "#picture svg"):
        assert opened.page.locator(chart).bounding_box()["height"] > 50


def numbers(page, column):
    return page.locator(f"#tensors tbody tr:not([hidden]) > :nth-child({column})").evaluate_all(
        "cells => cells.map(cell => cell.dataset.key)"
    )


@pytest.mark.parametrize(("heading", "column"), [("bytes", 5), ("NMSE", 6), ("SQNR dB", 7), ("shape", 2)])
def test_a_heading_sorts_up_and_then_down(open_page, large, heading, column):
    page = open_page(large).page
    button = page.locator("#tensors thead button", has_text=re.compile(f"^{heading}$"))
    button.click()
    up = [float(x) for x in numbers(page, column)]
    assert up == sorted(up)
    assert up[0] < up[-1]
    assert button.locator("..").get_attribute("aria-sort") == "ascending"
    button.click()
    assert [float(x) for x in numbers(page, column)] == up[::-1]
    assert button.locator("..").get_attribute("aria-sort") == "descending"


def test_names_are_sorted_with_their_numbers(open_page, large):
    page = open_page(large).page
    page.locator("#tensors thead button", has_text="name").click()
    layers = [int(re.search(r"layers\.(\d+)", name)[1]) for name in numbers(page, 1)]
    assert layers == sorted(layers)


def test_filters_by_name_and_width(open_page, large):
    page = open_page(large).page
    page.fill("#query", "LAYERS.7.")
    assert page.locator("#tensors tbody tr:visible").count() == 7
    assert page.locator("#shown").inner_text() == "7 of 560"
    page.select_option("#width", "8")
    widths = numbers(page, 3)
    assert 0 < len(widths) < 7
    assert set(widths) == {"8"}
    page.fill("#query", "no such weight")
    assert page.locator("#tensors tbody tr:visible").count() == 0


def ground(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_light_and_dark(open_page, large):
    light, dark = (open_page(large, color_scheme=scheme).page for scheme in ("light", "dark"))
    assert ground(light) == "rgb(255, 255, 255)"
    assert ground(dark) == "rgb(18, 22, 27)"
    for page in (light, dark):
        before = ground(page)
        page.click("#theme")
        assert ground(page) == ground(dark if page is light else light) or page is dark
        assert ground(page) != before
        page.click("#theme")
        assert ground(page) == before


def test_a_field_tells_its_figures_and_opens_its_histogram(open_page, large):
    page = open_page(large).page
    cell = page.locator("#heatmap tbody tr").nth(2).locator(".cell").nth(4)
    name = "model.layers.2.mlp.gate_proj.weight"
    cell.hover()
    assert name in page.inner_text("#told")
    assert "dB" in page.inner_text("#told")
    cell.click()
    assert page.input_value("#choice") == name
    assert name in page.locator("#picture svg").get_attribute("aria-label")
    assert page.locator("#picture .rung").count() == 16
    assert page.locator("#picture .bar:not(.used)").count() == 40


def test_the_heatmap_goes_by_keyboard(open_page, large):
    page = open_page(large).page
    assert page.locator("#heatmap .cell[tabindex='0']").count() == 1
    page.locator("#heatmap .cell").first.focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"):
        page.keyboard.press(key)
    assert "model.layers.1.self_attn.k_proj.weight" in page.inner_text("#told")
    page.keyboard.press("Enter")
    assert page.input_value("#choice") == "model.layers.1.self_attn.k_proj.weight"
    assert page.locator("#heatmap .cell[tabindex='0']").count() == 1


def test_without_javascript_figures_are_there(open_page, large):
    page = open_page(large, java_script_enabled=False).page
    assert page.locator("#tensors tbody tr:visible").count() == 560
    assert page.locator("#heatmap .cell:visible").count() == 560
    assert page.locator("#timeline").is_visible()
    assert "drawn by JavaScript" in page.inner_text("#histogram")
    assert not page.locator("#filter").is_visible()


def test_hostile_names_stay_text(open_page, tmp_path, contents, hostile):
    path = tmp_path / "hostile.html"
    name = f"model.layers.0.{hostile}"
    found = contents(name)
    runs = [{"name": hostile, "bits_per_weight": 3.0 + i, "kl_mean": 0.1} for i in range(2)]
    chart = frontier(runs, "kl_mean", "KL")
    page = Contents(hostile, [("model", hostile)], found.tensors, found.pictures, runs=runs, frontier=chart)
    write_page(path, page)
    opened = open_page(path)
    shown = name.replace("\x1b", "\\x1b")
    assert opened.complaints == []
    assert opened.requests == [path.as_uri()]
    assert opened.page.locator("img").count() == 0
    assert opened.page.locator("script").count() == 2
    assert opened.page.locator("#tensors tbody th").inner_text() == shown
    opened.page.locator("#heatmap .cell").hover()
    assert shown in opened.page.inner_text("#told")
    assert opened.page.input_value("#choice") == shown


def test_a_page_prints(open_page, large):
    page = open_page(large).page
    page.emulate_media(media="print")
    assert not page.locator("#theme").is_visible()
    assert page.pdf()[:4] == b"%PDF"
