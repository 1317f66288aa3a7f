"""`recipe.json`: what became of every weight of a run, by exact name, so that another run can do the same."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

import llmq
from llmq.architectures.roles import Role
from llmq.checkpoint import json_strict
from llmq.checkpoint.companions import RECIPE_FILE
from llmq.checkpoint.safe_open import allowed_roots, read_small
from llmq.errors import InputError, UnsupportedError, UsageError
from llmq.plan.targets import TARGETS
from llmq.spec import Assigned, QuantSpec, Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from llmq.plan.plan import Plan

__all__ = ["check_replay", "read_recipe", "recipe_json", "replay_recipe"]

_SCHEMA: Final = 1
_KEYS: Final = {"schema", "llmq_version", "method", "for", "range", "signed_scale", "goal", "tensors"}
_FIELDS: Final = {"bits", "group_size", "symmetric"}
_SHOWN: Final = 3


def recipe_json(plan: Plan) -> dict[str, Any]:
    """Return the content of the file for a plan without open options."""
    recipe = plan.recipe
    tensors = {t.name: _options(t.spec) for t in plan.tensors if t.role is not Role.OTHER}
    return {
        "schema": _SCHEMA,
        "llmq_version": llmq.__version__,
        "method": recipe.method,
        "for": recipe.target,
        "range": recipe.spec.range,
        "signed_scale": recipe.spec.signed_scale,
        "goal": asdict(recipe.goal) if recipe.goal else None,
        "tensors": dict(sorted(tensors.items())),
    }


def _options(spec: QuantSpec | None) -> dict[str, Any] | None:
    return None if spec is None else {name: getattr(spec, name) for name in ("bits", "group_size", "symmetric")}


def read_recipe(path: Path) -> Recipe:
    """Read a recipe: a file, or the folder of an output.

    Nothing in it is taken for a pattern: names are compared as they are.

    Raises
    ------
    InputError
        No such file, or not a recipe.
    UnsupportedError
        Written by a newer version, or for a method that this one does not have.
    """
    file = path / RECIPE_FILE if path.is_dir() else path
    if not file.is_file():
        hint = "a file, or the folder of an output of llmq quantize" if path.exists() else None
        raise InputError("no recipe there", file=file, hint=hint)
    real = file.resolve()
    value = json_strict.loads(read_small(real, allowed_roots(real.parent)), file)
    if (
        not isinstance(value, dict)
        or type(value.get("schema")) is not int
        or not isinstance(value.get("tensors"), dict)
    ):
        raise InputError("not a recipe of llmq", file=file)
    if value["schema"] != _SCHEMA:
        raise UnsupportedError(
            "written by another version of llmq", file=file, expected=f"schema {_SCHEMA}", found=value["schema"]
        )
    if value.keys() != _KEYS:
        odd = sorted(value.keys() ^ _KEYS)
        raise InputError("not a recipe of llmq: keys missing or unknown", file=file, found=str(odd)[:100])
    return _recipe(value, file)


def _recipe(value: dict[str, Any], file: Path) -> Recipe:
    from llmq.methods import METHODS

    if not value["tensors"]:
        raise InputError("the recipe names no weights", file=file)
    if value["method"] not in list(METHODS) or value["for"] not in list(TARGETS):
        raise UnsupportedError(
            "unknown method or reader", file=file, found=f"{str(value['method'])[:40]}, {str(value['for'])[:40]}"
        )
    try:
        base = QuantSpec(range=value["range"], signed_scale=value["signed_scale"])
        assigned = tuple(_assigned(name, options, base) for name, options in value["tensors"].items())
    except (ValueError, TypeError) as error:
        raise InputError(f"not a recipe of llmq: {str(error)[:200]}", file=file) from None
    return Recipe(
        spec=base, method=value["method"], lm_head=None, embeddings=None, target=value["for"], assigned=assigned
    )


def _assigned(name: str, options: Any, base: QuantSpec) -> Assigned:
    if options is None:
        return Assigned(name, None)
    if not isinstance(options, dict) or options.keys() != _FIELDS:
        raise ValueError(f"{name[:80]!r} needs bits, group_size and symmetric, or null")
    spec = QuantSpec(range=base.range, signed_scale=base.signed_scale, **options)
    return Assigned(name, spec.bits, spec.group_size, spec.symmetric)


def replay_recipe(path: Path, method: str | None, *, beside: Mapping[str, Any]) -> Recipe:
    """Read what an earlier run did.

    Parameters
    ----------
    path : Path
        As for `read_recipe`.
    method : str or None
        Instead of the recipe's.
    beside : mapping
        Flags, by name with their values, that say what a recipe says already.

    Raises
    ------
    UsageError
        One of those was given.
    LlmqError
        As for `read_recipe`.
    """
    for flag, value in beside.items():
        if value is not None and value is not False and value != () and value != []:
            raise UsageError(f"--recipe says that already: {flag}", hint="leave one of them out")
    found = read_recipe(path)
    return replace(found, method=method) if method else found


def check_replay(plan: Plan, label: str) -> None:
    """Refuse a replayed recipe that does not fit the checkpoint called `label`.

    Raises
    ------
    UsageError
        Weights that the recipe does not name, names that the checkpoint has not, or groups that do not divide rows.
    """
    assigned = {a.name: a for a in plan.recipe.assigned}
    weights = {t.name: t for t in plan.tensors if t.role is not Role.OTHER}
    for names, what in (
        (assigned.keys() - weights.keys(), "the recipe names weights that the model has not"),
        (weights.keys() - assigned.keys(), "the recipe does not name weights that the model has"),
    ):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            hint = "the recipe is of another model"
            raise UsageError(what, file=label, found=", ".join(sorted(names)[:_SHOWN]) + more, hint=hint)
    for name, tensor in weights.items():
        if assigned[name].bits is not None and tensor.spec is None:
            raise UsageError(f"the recipe does not fit: {tensor.reason}", file=label, tensor=name)
