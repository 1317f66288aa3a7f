import json
import re
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner

from llmq import QuantSpec
from llmq.integer import Linear
from llmq.observers import quantize_array, scale_and_zero_point


@pytest.fixture(scope="module")
def tour(script):
    return script("tour")


@pytest.fixture(scope="module")
def lessons(tour, sample):
    """All of them, looked at once."""
    return {name: make(sample) for name, make in tour.LESSONS.items()}


def test_it_reads_well_in_eighty_columns(tour, sample):
    done = CliRunner().invoke(tour.main, ["--folder", str(sample.folder.parent)])
    assert done.exit_code == 0, done.output
    assert [line for line in done.output.splitlines() if len(line) > 80] == []
    headings = [line for line in done.output.splitlines() if line.endswith("]") and line[0].isdigit()]
    assert [line.rpartition("[")[2].rstrip("]") for line in headings] == list(tour.LESSONS)


def test_sections_by_name_and_number(tour, tmp_path):
    def headings(*words):
        done = CliRunner().invoke(tour.main, [*words, "--folder", str(tmp_path)])
        assert done.exit_code == 0, done.output
        return [line for line in done.output.splitlines() if line.endswith("]") and line[0].isdigit()]

    assert headings("sizes", "1") == [
        "13. How big 70 billion parameters are  [sizes]",
        "1. What bits can represent  [bits]",
    ]
    assert list(tmp_path.iterdir()) == []  # they need no model


def test_the_sections_are_listed(tour):
    lines = CliRunner().invoke(tour.main, ["--list"]).stdout.splitlines()
    assert [line.split() for line in lines] == [[str(i), name] for i, name in enumerate(tour.LESSONS, 1)]


@pytest.mark.parametrize("word", ["nothing", "0", "99"])
def test_a_section_that_does_not_exist(tour, word):
    done = CliRunner().invoke(tour.main, [word])
    assert done.exit_code == 2
    assert f"no section '{word}': choose from bits, " in done.output


def test_those_that_need_the_sample_are_named(tour):
    class Nothing:
        """A sample that has nothing to look at."""

    for name, make in tour.LESSONS.items():
        if name in tour.NEED_SAMPLE:
            with pytest.raises(AttributeError):
                make(Nothing())
        else:
            assert make(Nothing()).title


@pytest.mark.parametrize("name", ["asymmetric", "symmetric"])
def test_ten_numbers_worked_in_exact_fractions(lessons, name):
    numbers = [Fraction(n, 100) for n in (-105, -62, -24, 0, 41, 93, 156, 228, 310, 420)]
    low, high = min(numbers), max(numbers)
    if name == "asymmetric":
        scale, zero_point = (high - low) / 15, round(-low / ((high - low) / 15))
    else:
        scale, zero_point = max(-low, high) / 7, 8
    expected = []
    for x in numbers:
        code = round(x / scale) + zero_point
        back = scale * (code - zero_point)
        assert 0 <= code <= 15
        assert abs(back - x) <= scale / 2
        expected.append((f"{float(x):.2f}", str(code - zero_point), str(code), f"{float(back):.2f}"))
    rows = lessons["ten"].tables[f"ten-{name}"].rows
    assert [(row[0], *row[2:5]) for row in rows] == expected
    assert [row[5] for row in rows] == [f"{float(row[4]) - float(row[0]):+.2f}" for row in rows]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_grids_by_hand_are_those_of_the_library(script, bits):
    ranges = script("lesson_ranges")
    x = np.random.default_rng(bits).standard_normal(200).astype(np.float32) + np.float32(0.5)
    specs = {
        ranges.asymmetric_grid: QuantSpec(bits=bits, symmetric=False, strategy="tensor"),
        ranges.symmetric_grid: QuantSpec(bits=bits, range="narrow", strategy="tensor"),
    }
    for grid, spec in specs.items():
        scale, zero_point = grid(x, bits)
        found, zero = scale_and_zero_point(x.min(), x.max(), spec)
        assert float(found) == pytest.approx(scale, rel=1e-6)
        assert zero is None or int(zero) == zero_point
        codes, _ = ranges.by_hand(x, float(found), zero_point, bits)
        assert quantize_array(x, found, zero, spec).tolist() == codes.tolist()


def test_formats_of_floats_are_what_numpy_has(script):
    for form in script("lesson_numbers").FORMATS:
        info = ml_dtypes.finfo(form.dtype)
        assert (form.bits, form.exponent, form.mantissa) == (info.bits, info.nexp, info.nmant)
        limits = (form.largest, form.smallest, form.step)
        assert limits == tuple(float(x) for x in (info.max, info.tiny, info.eps))


@pytest.mark.parametrize("value", [-6.25, 0.1, 1.0, 65504.0])
def test_fields_of_a_float_give_it_back(script, value):
    numbers = script("lesson_numbers")
    for form in numbers.FORMATS:
        sign, exponent, mantissa = numbers.fields(value, form)
        power = 2.0 ** (int(exponent, 2) - form.bias)
        found = (-1) ** int(sign) * power * (1 + int(mantissa, 2) / 2 ** len(mantissa))
        assert found == form.round(value)


def test_two_s_complement_patterns(lessons):
    for value, pattern, unsigned, parts in lessons["complement"].tables["complement"].rows:
        bits = int(pattern.replace(" ", ""), 2)
        high, low = (int(part) for part in parts.split(" + "))
        assert (bits, bits % 128) == (int(unsigned), low)
        assert int(value) == high + low == (bits if bits < 128 else bits - 256)


def test_the_integer_layer_is_right(lessons):
    lesson = lessons["integer"]
    scale = float(re.search(r"s_y = ([\d.]+)", lesson.after)[1])
    zero_point = int(re.search(r"z_y = (\d+)", lesson.after)[1])
    assert all(abs(float(row[3]) - float(row[4])) < 0.01 for row in lesson.tables["integer"].rows)
    for total, factor, code, back, exact in lesson.tables["requantize"].rows:
        mantissa, shift = factor.replace(",", "").split(" / 2^")
        steps = int(total.replace(",", "")) * int(mantissa) / 2 ** int(shift)
        assert steps == pytest.approx(int(code) - zero_point, abs=0.5)
        assert float(back) == pytest.approx(scale * (int(code) - zero_point), abs=2e-4)
        assert abs(float(back) - float(exact)) < 0.01 + scale / 2


def test_the_integer_layer_is_that_of_the_library(script, lessons):
    x, weight, bias = (array.astype(np.float32) for array in script("lesson_layers").SMALL_LAYER)
    layer = Linear.quantize(weight, bias, input_range=(x.min(), x.max()))
    codes = layer.grids.input.encode(x[None])
    assert f"q_x - z_x = {codes.centred()[0].tolist()}" in " ".join(lessons["integer"].says.split())
    rows = lessons["integer"].tables["integer"].rows
    assert layer.weight.parts[0].integers().tolist() == [json.loads(row[0]) for row in rows]
    assert [f"{y:.4f}" for y in layer(x[None])[0]] == [row[3] for row in rows]


def test_fixed_point_factors(script):
    fixed_point = script("lesson_layers").fixed_point
    for factor in (0.375, 1e-5, 0.9999, 0.5, 3e-9):
        mantissa, shift = fixed_point(factor)
        assert 2**30 <= mantissa <= 2**31
        assert mantissa / 2**shift == pytest.approx(factor, rel=2**-31)


def test_seventy_billion_parameters(lessons):
    rows = lessons["sizes"].tables["sizes"].rows
    assert [(row[0], row[1]) for row in rows] == [
        ("32", "280"),
        ("16", "140"),
        ("8", "70"),
        ("4", "35"),
        ("2", "17.5"),
    ]
    assert rows[3][2:] == ("36.1", "37.2", "39.4")  # 4.125, 4.25 and 4.5 bits


def test_least_squares_clip_where_no_other_cut_is_better(script):
    clipping = script("lesson_clipping")
    x = clipping.with_outliers()
    for bits in (4, 8):
        found = {name: sum(clipping.errors(x, limit, bits)) for name, limit in clipping.limits(x, bits).items()}
        assert min(found, key=found.get) == "least squared error"
        limit = clipping.limits(x, bits)["percentile 99.9"]
        parts = clipping.errors(x, limit, bits)
        assert sum(parts) == pytest.approx(np.mean((x - clipping.clipped(x, limit, bits)) ** 2.0), rel=1e-6)


def test_dynamic_ranges_are_the_formula_s(script):
    layers, ranges = script("lesson_layers"), script("lesson_ranges")
    rng = np.random.default_rng(5)
    calibration, x = (rng.standard_normal((n, 128)).astype(np.float32) for n in (7, 3))
    found = layers.static_and_dynamic(calibration, x, 4)
    for row, back in zip(x, found["dynamic, a range each token"], strict=True):
        assert back == pytest.approx(ranges.by_hand(row, *ranges.symmetric_grid(row, 4), 4)[1], abs=1e-6)
    parts = x.reshape(-1, 64)
    for part, back in zip(parts, found["dynamic, 64 numbers of a token"].reshape(-1, 64), strict=True):
        assert back == pytest.approx(ranges.by_hand(part, *ranges.symmetric_grid(part, 4), 4)[1], abs=1e-6)
    assert np.abs(found["static, one range"]).max() <= np.abs(calibration).max() * 1.000001


def test_finer_ranges_are_better_on_the_sample(lessons):
    for name in ("channels", "dynamic"):
        (table,) = lessons[name].tables.values()
        columns = list(zip(*table.rows, strict=True))
        finer = [float(cell) for cell in columns[2]]
        assert finer[-1] > finer[-2] > finer[0] + 3


def test_numbers_are_short(script):
    number = script("lesson").number
    assert [number(v) for v in (0.00012345, 0.12, 280.0, 72.1875, 65504.0, 3.4e38, 1e-45)] == [
        "0.000123",
        "0.12",
        "280",
        "72.2",
        "65,504",
        "3.40e+38",
        "1.00e-45",
    ]
