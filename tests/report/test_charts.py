import doctest
import math

import pytest

from llmq.report import charts, colours, heatmap
from llmq.report.charts import frontier, timeline


@pytest.mark.parametrize("module", [charts, colours, heatmap])
def test_the_examples_are_right(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


def test_ink_is_readable_on_every_colour():
    for i in range(101):
        ground = tuple(int(colours.colour(i / 100)[j : j + 2], 16) for j in (1, 3, 5))
        text = (255,) * 3 if colours.ink(i / 100) == "#ffffff" else (0,) * 3
        assert colours.contrast(ground, text) >= 4.5


def test_colours_grow_lighter():
    light = [colours.contrast(stop, (0, 0, 0)) for stop in colours.STOPS]
    assert light == sorted(light)


def tensor(name, sqnr, **more):
    return {"name": name, "quantized": True, "bits": 4, "sqnr_db": sqnr, "nmse": 0.1} | more


def test_blocks_go_down_and_projections_across():
    found = heatmap.heatmap(
        [
            tensor("model.layers.1.mlp.down_proj.weight", 10.0),
            tensor("model.layers.0.self_attn.q_proj.weight", 20.0),
            tensor("model.layers.0.mlp.down_proj.weight", 15.0),
            tensor("lm_head.weight", 40.0),
            tensor("model.layers.0.norm.weight", math.inf, quantized=False),
        ]
    )
    assert found.columns == ("q", "down")
    assert [layer for layer, _ in found.rows] == [0, 1]
    assert found.rows[1][1][0] is None
    assert (found.low, found.high) == (10.0, 20.0)
    assert found.rows[0][1][0].colour == colours.colour(1.0)
    assert found.rows[1][1][1].colour == colours.colour(0.0)
    assert [text for _, text in found.legend if text] == ["10.0", "15.0", "20.0"]


def test_the_worst_of_several_experts_is_shown():
    names = [f"model.layers.0.mlp.experts.{i}.up_proj.weight" for i in range(3)]
    found = heatmap.heatmap([tensor(name, 10.0 - i) for i, name in enumerate(names)])
    cell = found.rows[0][1][0]
    assert (cell.name, cell.count, cell.sqnr_db) == (names[2], 3, 8.0)


def test_a_name_with_a_huge_number_takes_no_more_room():
    found = heatmap.heatmap([tensor(f"model.layers.{i}.mlp.up_proj.weight", 9.0) for i in (0, 10**9)])
    assert [layer for layer, _ in found.rows] == [0, 10**9]


@pytest.mark.parametrize("sqnr", [math.inf, -math.inf, 12.0])
def test_one_field_of_any_value_has_a_colour(sqnr):
    cell = heatmap.heatmap([tensor("model.layers.0.mlp.up_proj.weight", sqnr)]).rows[0][1][0]
    assert len(cell.colour) == 7


def test_nothing_quantized_has_no_heatmap():
    assert heatmap.heatmap([tensor("lm_head.weight", 3.0)]) is None
    assert heatmap.heatmap([]) is None


def test_the_budget_is_above_what_stays_below_it():
    chart = timeline([(0.0, 100_000), (1.0, 500_000), (2.0, 300_000)], {"budget": 900_000, "predicted": 400_000})
    points = [tuple(map(float, pair.split(","))) for pair in chart.path.split()]
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    budget, predicted = chart.levels
    assert budget.at < min(y for _, y in points)  # pixels count downwards
    assert points[1][1] < predicted.at < points[2][1]
    assert "peak 500 kB" in chart.text


def test_nothing_sampled_has_no_timeline():
    assert timeline([], {"budget": 5}) is None
    assert timeline([(0.0, 0)], {}) is not None


def run(name, bits, kl):
    return {"name": name, "bits_per_weight": bits, "kl_mean": kl}


def test_the_frontier_joins_what_none_beats():
    runs = [run("a", 4.0, 0.01), run("b", 3.0, 0.1), run("c", 4.5, 0.02), run("d", 2.0, 1.0)]
    chart = frontier(runs, "kl_mean", "KL")
    assert [mark.best for mark in chart.marks] == [True, True, False, True]
    assert len(chart.path.split()) == 3
    assert chart.marks[0].y > chart.marks[1].y > chart.marks[3].y
    assert chart.marks[0].x > chart.marks[1].x > chart.marks[3].x


@pytest.mark.parametrize("errors", [(0.1, 0.01), (33.9, 32.4), (1e-7, 40.0), (5.0, 5.0)])
def test_errors_of_any_spread_have_room_and_marks(errors):
    chart = frontier([run(str(i), 4.0 + i, error) for i, error in enumerate(errors)], "kl_mean", "KL")
    assert 3 <= len(chart.y) <= 12
    assert all(chart.top < mark.y < chart.bottom for mark in chart.marks)
    assert all(chart.top <= tick.at <= chart.bottom for tick in chart.y)
    # A mark of the axis stands where a run of that error would.
    assert sorted((tick.at for tick in chart.y), reverse=True) == [tick.at for tick in chart.y]


@pytest.mark.parametrize("bad", [None, 0.0, math.inf, math.nan, -1.0, "0.1"])
def test_runs_without_an_error_are_left_out(bad):
    assert frontier([run("a", 4.0, 0.1), run("b", 3.0, bad)], "kl_mean", "KL") is None
    assert len(frontier([run("a", 4.0, 0.1), run("b", 3.0, bad), run("c", 4.0, 0.1)], "kl_mean", "KL").marks) == 2
