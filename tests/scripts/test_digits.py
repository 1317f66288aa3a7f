from dataclasses import replace

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def digits(script):
    return script("digits")


@pytest.fixture
def subject(digits):
    few = [digits.Images(part.x[:100], part.y[:100], part.hot[:100]) for part in digits.split(0)]
    torch.manual_seed(0)
    return digits.Subject(digits.Network().eval(), *few[1:])


def test_no_image_is_in_two_parts(digits):
    parts = digits.split(3)
    assert [len(part.x) for part in parts] == [898, 180, 719]
    together = torch.cat([part.x for part in parts]).flatten(1)
    assert len(together.unique(dim=0)) == len(digits.load_digits().images) == 1797
    assert together.max() == 1
    other = digits.split(4)[0]
    assert not torch.equal(parts[0].x, other.x)
    assert all(torch.equal(a.x, b.x) for a, b in zip(parts, digits.split(3), strict=True))


def test_hot_pixels(digits):
    clean = digits.split(0)[1]
    hot = clean.with_hot_pixels(7)
    changed = (hot.x != clean.x).flatten(1).sum(1)
    assert torch.equal(changed, hot.hot.long())
    assert changed.sum() == 4  # 2 % of 180
    assert hot.x.max() == digits.HOT
    assert not clean.hot.any()


def test_bits_cost_size_and_exactness(digits, subject):
    unquantized = subject.unquantized()
    eight, four = (subject.quantized(digits.weights(bits)) for bits in (8, 4))
    assert unquantized.sqnr_db == np.inf
    assert eight.sqnr_db > four.sqnr_db + 12 > 25
    assert 3 < unquantized.nbytes / eight.nbytes < 4 < 5 < unquantized.nbytes / four.nbytes < 8


def test_images_with_hot_pixels_count_for_accuracy_only(digits, subject):
    few = replace(subject.test, hot=torch.arange(100) >= 30)
    images = [digits.Images(few.x[part], few.y[part], few.hot[part] & False) for part in (few.hot, ~few.hot)]
    whole, rest, kept = (
        digits.Subject(subject.network, subject.calibration, test).quantized(digits.SCHEME) for test in (few, *images)
    )
    assert whole.sqnr_db == kept.sqnr_db != rest.sqnr_db
    assert whole.accuracy == pytest.approx((70 * rest.accuracy + 30 * kept.accuracy) / 100)


def test_every_figure_has_its_place(digits):
    figures = (digits.Figures(90 + i / 7, 30 + i / 7, 1000 + i) for i in range(1000))
    names = ["float", "hot float", *digits.RANGES]
    names += [f"{bits} {strategy}" for bits in digits.WIDTHS for strategy in digits.WAYS]
    names += [f"{hot}{o} {b}" for b in digits.INPUT_WIDTHS for o in digits.OBSERVERS for hot in ("", "hot ")]
    found = dict(zip(names, figures, strict=False))
    text = digits.markdown(found, 3)
    assert all(f"{figure.accuracy:.2f} %" in text for figure in found.values())
    assert "means over 3 seeds" in text


def test_means(digits):
    mean = digits.Figures.mean([digits.Figures(90.0, 10.0, 4.0), digits.Figures(91.0, 20.0, 4.0)])
    assert mean == digits.Figures(90.5, 15.0, 4.0)


def test_the_page_has_a_place_for_it(digits):
    page = digits.Path(digits.__file__).parents[1] / "docs" / "quantization.md"
    assert "\nx\n" in digits.put(page.read_text(encoding="utf-8"), "digits", "x")
