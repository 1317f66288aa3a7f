"""Spending bytes where they save the most error: one option for each unit, least cost in all, never over budget."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Option", "allocate", "lower_hull"]


@dataclass(frozen=True)
class Option:
    """One way to store a unit: a tensor, or tensors that must be stored alike.

    Parameters
    ----------
    nbytes : int
    cost : float
        Expected damage; not negative, comparable between units.
    """

    nbytes: int
    cost: float


def lower_hull(options: Sequence[Option]) -> list[int]:
    """Numbers of the options on the lower convex hull of cost over bytes, by rising bytes and falling cost.

    >>> lower_hull([Option(4, 1.0), Option(2, 8.0), Option(3, 7.0), Option(8, 0.0), Option(5, 2.0)])
    [1, 0, 3]
    """
    hull: list[int] = []
    for number in sorted(range(len(options)), key=lambda n: (options[n].nbytes, options[n].cost, n)):
        if hull and options[number].cost >= options[hull[-1]].cost:
            continue
        while len(hull) > 1 and _gain(options, hull[-2], hull[-1]) <= _gain(options, hull[-2], number):
            hull.pop()
        hull.append(number)
    return hull


def allocate(units: Sequence[Sequence[Option]], budget: int) -> list[int] | None:
    """Choose an option for each unit.

    Minimizing ``cost + price * bytes`` for a price of a byte takes points of each unit's lower convex hull (Everett,
    1963). From a price so high that every unit has its smallest option, the price falls until the next step along some
    hull does not fit; steps that still fit are taken after it, and what is left is filled by the best single changes
    to any option. The cost is above the least possible by less than the saving of the first step that did not fit.

    Parameters
    ----------
    units : sequence of sequence of Option
        Each of at least one.
    budget : int
        Bytes that all chosen options together may take.

    Returns
    -------
    list of int or None
        Number of the option of each unit; None where not even the smallest fit.
    """
    hulls = [lower_hull(options) for options in units]
    chosen = [hull[0] for hull in hulls]
    left = budget - sum(options[n].nbytes for options, n in zip(units, chosen, strict=True))
    if left < 0:
        return None
    left = _descend(units, hulls, chosen, left)
    _fill(units, chosen, left)
    return chosen


def _gain(options: Sequence[Option], a: int, b: int) -> float:
    """Cost saved per byte by going from one option to another, infinite where it takes none."""
    nbytes = options[b].nbytes - options[a].nbytes
    return (options[a].cost - options[b].cost) / nbytes if nbytes else float("inf")


def _descend(units: Sequence[Sequence[Option]], hulls: list[list[int]], chosen: list[int], left: int) -> int:
    """Go along the hulls by falling gain as long as steps fit; bytes that are left."""
    steps = [(-_gain(units[u], hull[0], hull[1]), u, 1) for u, hull in enumerate(hulls) if len(hull) > 1]
    heapq.heapify(steps)
    while steps:
        _, unit, place = heapq.heappop(steps)
        options, hull = units[unit], hulls[unit]
        extra = options[hull[place]].nbytes - options[chosen[unit]].nbytes
        if extra > left:
            continue
        left -= extra
        chosen[unit] = hull[place]
        if place + 1 < len(hull):
            heapq.heappush(steps, (-_gain(options, hull[place], hull[place + 1]), unit, place + 1))
    return left


def _fill(units: Sequence[Sequence[Option]], chosen: list[int], left: int) -> None:
    """Change single units to any option that fits and saves cost, the largest saving per byte first."""
    moves: list[tuple[float, int, int, int]] = []
    for unit in range(len(units)):
        _push_moves(moves, units[unit], unit, chosen[unit])
    while moves:
        _, unit, start, end = heapq.heappop(moves)
        extra = units[unit][end].nbytes - units[unit][start].nbytes
        if start != chosen[unit] or extra > left:
            continue
        left -= extra
        chosen[unit] = end
        _push_moves(moves, units[unit], unit, end)


def _push_moves(moves: list[tuple[float, int, int, int]], options: Sequence[Option], unit: int, start: int) -> None:
    for end, option in enumerate(options):
        if option.cost < options[start].cost and option.nbytes >= options[start].nbytes:
            heapq.heappush(moves, (-_gain(options, start, end), unit, start, end))
