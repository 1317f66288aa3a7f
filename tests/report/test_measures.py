import doctest

import numpy as np
import pytest

import llmq
from llmq.checkpoint.source import open_source
from llmq.evaluate.grid import positions
from llmq.report import Measures, measures
from llmq.report.measures import TensorMeasure


def quantized(weight, **spec):
    return llmq.quantize_tensor(weight, method="rtn", **spec)


@pytest.fixture
def weight():
    return np.random.default_rng(3).standard_normal((40, 128)).astype(np.float32)


def test_the_examples_are_right():
    assert doctest.testmod(measures).failed == 0


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_what_was_stored_lies_on_its_code(weight, bits, symmetric):
    packed = quantized(weight, bits=bits, group_size=32, symmetric=symmetric)
    assert np.allclose(positions(packed.dequantize(), packed), packed.codes(), atol=1e-3)


def test_a_group_of_zeros_lies_on_its_zero_point():
    packed = quantized(np.zeros((4, 64), np.float32), bits=4, group_size=32)
    placed = positions(np.zeros((4, 64), np.float32), packed)
    assert np.unique(placed).tolist() == [8.0]


def test_figures_are_those_of_the_whole(weight):
    packed = quantized(weight, bits=3, group_size=64)
    measure = TensorMeasure(3)
    measure.add(weight, packed)
    error = (packed.dequantize().astype(np.float64) - weight) ** 2
    row = measure.row()
    assert row["nmse"] == pytest.approx(error.sum() / (weight.astype(np.float64) ** 2).sum(), rel=1e-12)
    assert row["max_error"] == pytest.approx(np.sqrt(error.max()))
    placed = positions(weight, packed)
    assert row["saturation"] == np.mean((placed < -0.5) | (placed > 7.5))
    assert measure.usage.tolist() == np.bincount(packed.codes().ravel(), minlength=8).tolist()


def test_blocks_do_not_matter(weight, monkeypatch):
    packed = quantized(weight, bits=4, group_size=32)
    whole = TensorMeasure(4)
    whole.add(weight, packed)
    monkeypatch.setattr(measures, "_ELEMENTS", 300)
    pieces = TensorMeasure(4)
    pieces.add(weight, packed)
    assert pieces.picture() == whole.picture()
    assert pieces.row() == pytest.approx(whole.row())


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_every_weight_is_in_the_picture_or_counted_beside_it(weight, bits):
    weight[0, 0] = 1e4  # leaves its group to one level
    measure = TensorMeasure(bits)
    measure.add(weight, quantized(weight, bits=bits, group_size=128))
    picture = measure.picture()
    assert sum(picture["counts"]) + picture["below"] + picture["above"] == weight.size
    assert 3 <= len(picture["counts"]) <= 192
    assert picture["first"] <= -1.5
    assert picture["first"] + picture["width"] * len(picture["counts"]) >= 2**bits + 0.5


def test_what_an_earlier_run_wrote_is_read_back(sample_model, tmp_path):
    seen = Measures()
    report = llmq.quantize(sample_model, tmp_path / "out", bits=4, method="rtn", watch=seen)
    elements = {t.name: t.parameters for t in report.plan.quantized}
    lost = Measures()
    lost.tensors = dict(list(seen.tensors.items())[3:])
    with open_source(sample_model) as source, open_source(report.output) as output:
        lost.complete(source, output, elements)
    assert list(lost.tensors) == list(elements)
    for name, measure in lost.tensors.items():
        assert measure.picture() == seen.tensors[name].picture()
        assert measure.row() == pytest.approx(seen.tensors[name].row())
