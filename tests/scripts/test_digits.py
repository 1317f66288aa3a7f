from dataclasses import replace

import numpy as np
import pytest
import torch

from llmq.torch.fake_layers import fake_layers


@pytest.fixture(scope="module")
def digits(script):
    return script("digits")


@pytest.fixture(scope="module")
def network(script):
    return script("digits_network")


@pytest.fixture(scope="module")
def qat(script):
    return script("digits_qat")


@pytest.fixture
def few(network):
    return [network.Images(part.x[:100], part.y[:100], part.hot[:100]) for part in network.split(0)]


@pytest.fixture
def subject(network, few):
    torch.manual_seed(0)
    return network.Subject(network.Network().eval(), *few[1:])


def test_no_image_is_in_two_parts(network):
    parts = network.split(3)
    assert [len(part.x) for part in parts] == [898, 180, 719]
    together = torch.cat([part.x for part in parts]).flatten(1)
    assert len(together.unique(dim=0)) == len(network.load_digits().images) == 1797
    assert together.max() == 1
    other = network.split(4)[0]
    assert not torch.equal(parts[0].x, other.x)
    assert all(torch.equal(a.x, b.x) for a, b in zip(parts, network.split(3), strict=True))


def test_hot_pixels(network):
    clean = network.split(0)[1]
    hot = clean.with_hot_pixels(7)
    changed = (hot.x != clean.x).flatten(1).sum(1)
    assert torch.equal(changed, hot.hot.long())
    assert changed.sum() == 4  # 2 % of 180
    assert hot.x.max() == network.HOT
    assert not clean.hot.any()


def test_bits_cost_size_and_exactness(digits, subject):
    unquantized = subject.unquantized()
    eight, four = (subject.quantized(digits.weights(bits)) for bits in (8, 4))
    assert unquantized.sqnr_db == np.inf
    assert eight.sqnr_db > four.sqnr_db + 12 > 25
    assert 3 < unquantized.nbytes / eight.nbytes < 4 < 5 < unquantized.nbytes / four.nbytes < 8


def test_images_with_hot_pixels_count_for_accuracy_only(network, digits, subject):
    few = replace(subject.test, hot=torch.arange(100) >= 30)
    images = [network.Images(few.x[part], few.y[part], few.hot[part] & False) for part in (few.hot, ~few.hot)]
    whole, rest, kept = (
        network.Subject(subject.network, subject.calibration, test).quantized(digits.SCHEME) for test in (few, *images)
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


def test_every_figure_of_training_has_its_place(network, qat):
    names = ["float", *(f"{way} {w}/{a}" for w, a in qat.WIDTHS for way in qat.WAYS)]
    found = {name: network.Figures(50 + i / 7, 30, 1000 * i) for i, name in enumerate(names)}
    text = qat.markdown(found, 5)
    assert all(f"{figure.accuracy:.2f} %" in text for figure in found.values())
    assert "the same 5 seeds" in text


def test_training_for_few_bits_gains_on_calibration(qat, few, subject):
    """Of a network that is not trained at all: what is learned, is learned in integers."""
    two_bits = qat.scheme(2, 2)
    calibrated = subject.quantized(two_bits)
    training = qat.train_for(two_bits, subject.network, few[0], 0, epochs=40)
    trained = subject.integers(qat.convert(training))
    assert trained.accuracy > calibrated.accuracy + 25
    assert trained.nbytes == calibrated.nbytes
    layers = fake_layers(training)
    assert len(layers) == 5
    assert {(layer.scheme.weight.bits, layer.scheme.input.bits) for layer in layers.values()} == {(2, 2)}


def test_means(network):
    mean = network.Figures.mean([network.Figures(90.0, 10.0, 4.0), network.Figures(91.0, 20.0, 4.0)])
    assert mean == network.Figures(90.5, 15.0, 4.0)


@pytest.mark.parametrize("section", ["digits", "digits-qat"])
def test_the_page_has_a_place_for_it(digits, section):
    page = digits.Path(digits.__file__).parents[1] / "docs" / "quantization.md"
    assert "\nx\n" in digits.put(page.read_text(encoding="utf-8"), section, "x")
