"""How one tensor is to be quantized, by the recipe: the options it has, or why it is kept."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from llmq.architectures.roles import Role, TensorRole
from llmq.errors import UsageError
from llmq.plan.targets import TARGETS
from llmq.spec import Goal, QuantSpec, Recipe

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["AUTO", "WIDTHS", "Choose", "chooser"]

AUTO: Final = "auto"
"""In place of bits: the goal chooses them."""

WIDTHS: Final = range(2, 9)
"""Bits that a goal chooses from."""

Choose = Callable[[str, TensorRole], tuple[tuple[QuantSpec, ...], str]]
"""From a tensor's name and role to its specs, unresolved, the smallest first; none, with the reason, to keep it."""


def chooser(recipe: Recipe, keep: Collection[str]) -> Choose:
    """Return what decides by a tensor's name and role; see `Choose`."""
    ignore = [re.compile(pattern) for pattern in recipe.ignore]
    overrides = [(re.compile(o.pattern), o) for o in recipe.overrides]
    assigned = {a.name: a for a in recipe.assigned}
    by_role = {Role.HEAD: recipe.lm_head, Role.EMBEDDING: recipe.embeddings}

    def choose(name: str, role: TensorRole) -> tuple[tuple[QuantSpec, ...], str]:
        if role.role is Role.OTHER:
            return (), role.reason
        if name in keep:
            return (), "holds NaN or infinity"
        if name in assigned:
            given = assigned[name]
            if given.bits is None:
                return (), "holds NaN or infinity" if recipe.goal else "recipe"
            return (_changed(recipe.spec, name, bits=given.bits, group_size=given.group_size,
                             symmetric=given.symmetric),), ""  # fmt: skip
        if any(pattern.search(name) for pattern in ignore):
            return (), "--ignore"
        matching = [o for pattern, o in overrides if pattern.search(name)]
        bits = by_role.get(role.role, AUTO if recipe.goal else recipe.spec.bits)
        if bits is None and not matching:
            return (), "head" if role.role is Role.HEAD else "embedding table"
        changes: dict[str, Any] = {}
        for override in matching:
            changes |= override.changes()
        if recipe.goal is not None and bits == AUTO and "bits" not in changes:
            return _options(recipe, recipe.goal, name, changes), ""
        width = recipe.spec.bits if bits is None or bits == AUTO else bits
        return (_changed(recipe.spec, name, **({"bits": width} | changes)),), ""

    return choose


def _options(recipe: Recipe, goal: Goal, name: str, changes: dict[str, Any]) -> tuple[QuantSpec, ...]:
    """All widths and group sizes that the reader reads and the goal may choose from."""
    sizes = (changes["group_size"],) if "group_size" in changes else goal.group_sizes
    pairs = [(bits, size) for bits in WIDTHS if bits in TARGETS[recipe.target].bits for size in sorted(sizes)[::-1]]
    return tuple(_changed(recipe.spec, name, **(changes | {"bits": b, "group_size": size})) for b, size in pairs)


def _changed(spec: QuantSpec, name: str, **changes: Any) -> QuantSpec:
    try:
        return replace(spec, **changes)
    except ValueError as error:
        raise UsageError(str(error), tensor=name, hint="change --set, --lm-head, --embeddings or --range") from None
