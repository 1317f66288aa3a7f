import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmq.plan.allocate import Option, allocate, lower_hull

OPTIONS = st.lists(st.builds(Option, st.integers(0, 40), st.integers(0, 1000).map(float)), min_size=1, max_size=4)
UNITS = st.lists(OPTIONS, min_size=1, max_size=4)


def total(units, chosen):
    picked = [options[n] for options, n in zip(units, chosen, strict=True)]
    return sum(o.nbytes for o in picked), sum(o.cost for o in picked)


def best(units, budget):
    """Least cost among all choices that fit, or None."""
    choices = (total(units, c) for c in itertools.product(*(range(len(options)) for options in units)))
    return min((cost for nbytes, cost in choices if nbytes <= budget), default=None)


@given(UNITS, st.integers(0, 160))
def test_it_fits_and_is_within_one_step_of_the_best(units, budget):
    chosen, least = allocate(units, budget), best(units, budget)
    assert (chosen is None) == (least is None)
    if chosen is None:
        return
    nbytes, cost = total(units, chosen)
    steps = [options[a].cost - options[b].cost for options in units for a, b in itertools.pairwise(lower_hull(options))]
    assert nbytes <= budget
    assert least <= cost <= least + max(steps, default=0.0)


@given(UNITS)
def test_room_for_everything_takes_the_least_cost(units):
    chosen = allocate(units, 10_000)
    assert total(units, chosen)[1] == sum(min(o.cost for o in options) for options in units)


@given(UNITS, st.integers(0, 160))
def test_no_single_change_that_fits_would_save_more(units, budget):
    chosen = allocate(units, budget)
    if chosen is None:
        return
    nbytes, cost = total(units, chosen)
    for unit, options in enumerate(units):
        for number in range(len(options)):
            other = [*chosen[:unit], number, *chosen[unit + 1 :]]
            found, changed = total(units, other)
            assert found > budget or changed >= cost or found < nbytes


@given(OPTIONS, st.floats(0.01, 100))
def test_the_hull_holds_what_any_price_of_a_byte_would_choose(options, price):
    costs = [o.cost + price * o.nbytes for o in options]
    on_hull = [costs[n] for n in lower_hull(options)]
    assert min(on_hull) == pytest.approx(min(costs))


def test_bytes_go_where_they_save_most():
    coarse, fine = Option(10, 8.0), Option(20, 2.0)
    cheap, dear = [coarse, fine], [Option(10, 80.0), Option(20, 20.0)]
    assert allocate([cheap, dear], 30) == [0, 1]
    assert allocate([cheap, dear], 40) == [1, 1]
    assert allocate([cheap, dear], 19) is None
