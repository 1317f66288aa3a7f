"""From `--target-size`, `--target-bpw` or `--ram` to a `Goal`, and from a measured plan to widths that meet it."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llmq.architectures.roles import Role
from llmq.errors import UsageError
from llmq.formats.compressed_tensors import entries
from llmq.plan.allocate import Option, allocate
from llmq.plan.choose import AUTO
from llmq.plan.targets import TARGETS, fused_group
from llmq.spec import Assigned, Goal, QuantSpec
from llmq.system.sizes import format_size
from llmq_kernels.keyvalues import KV_BITS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llmq.plan.plan import Plan, TensorPlan

__all__ = ["RUN_BYTES", "assign", "counted", "make_goal", "part_used", "units"]

RUN_BYTES: Final = 384 << 20
"""A process that runs a model, besides weights and cache: interpreter, libraries, kernels, tokenizer, activations."""

_GROUP_SIZES: Final = (32, 64, 128)
_ROUNDS: Final = 20


def make_goal(
    *,
    target_size: int | None = None,
    target_bpw: float | None = None,
    ram: int | None = None,
    context: int | None = None,
    kv_bits: int | None = None,
    group_size: int | None = None,
    target: str = "llmq",
) -> Goal | None:
    """Check the flags of a budget; None where there is none.

    Raises
    ------
    UsageError
        Several budgets, half a one, or one that is not positive.
    """
    flags = {"--target-size": target_size, "--target-bpw": target_bpw, "--ram": ram}
    given = {flag: value for flag, value in flags.items() if value is not None}
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} cannot both be kept to", hint="give one of them")
    if (ram is None) != (context is None):
        raise UsageError("--ram and --context belong together", hint="--ram 24GiB --context 8192")
    if kv_bits is not None and (ram is None or kv_bits not in KV_BITS):
        raise UsageError("--kv-bits goes with --ram", expected="32, 16, 8 or 4", found=kv_bits)
    for flag, value in (given | ({"--context": context} if context is not None else {})).items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UsageError(f"{flag} must be positive", found=value)
    if not given:
        return None
    reads = TARGETS.get(target)
    sizes: tuple[int, ...] = _GROUP_SIZES if group_size is None else (group_size,)
    if group_size is None and reads is not None and reads.group_sizes is not None:
        sizes = tuple(size for size in sizes if size in reads.group_sizes)
    return Goal(target_size, target_bpw, ram, context, kv_bits or 16, sizes)


@dataclass(frozen=True)
class _Unit:
    """Tensors that share one option, and the sizes of each option they have in common."""

    tensors: tuple[TensorPlan, ...]
    options: tuple[tuple[int, int, bool], ...]
    nbytes: tuple[int, ...]


def units(plan: Plan) -> list[tuple[TensorPlan, ...]]:
    """Tensors with options, those together that the reader of the plan's recipe fuses."""
    fused = TARGETS[plan.recipe.target].fused
    found: defaultdict[str, list[TensorPlan]] = defaultdict(list)
    for tensor in plan.tensors:
        if tensor.options:
            found[(fused_group(tensor.name) if fused else None) or tensor.name].append(tensor)
    return [tuple(tensors) for tensors in found.values()]


def counted(plan: Plan) -> list[TensorPlan]:
    """The tensors that `bits_per_weight` of a goal is about."""
    recipe = plan.recipe
    auto = {Role.HEAD: recipe.lm_head == AUTO, Role.EMBEDDING: recipe.embeddings == AUTO}
    return [t for t in plan.quantized if auto.get(t.role, True)]


def assign(
    plan: Plan,
    costs: Mapping[str, Sequence[float]],
    available: int | None,
    build: Callable[[tuple[Assigned, ...]], Plan],
) -> Plan:
    """Choose an option for every tensor that has several, and return the plan with them.

    Parameters
    ----------
    plan : Plan
        With options; its tensors have their smallest ones.
    costs : mapping
        Of each option by the tensor's name.
    available : int or None
        Bytes for all weight files; None where the goal is bits per weight.
    build : callable
        From what is assigned to the plan of it.

    Raises
    ------
    UsageError
        The goal is out of reach, with the nearest that is not.
    """
    goal = plan.recipe.goal
    assert goal is not None
    found = [_unit(tensors) for tensors in units(plan)]
    options = [[Option(n, c) for n, c in zip(u.nbytes, _costs(u, costs), strict=True)] for u in found]
    smallest = build(_assigned(found, [unit.nbytes.index(min(unit.nbytes)) for unit in found]))
    largest = build(_assigned(found, [unit.nbytes.index(max(unit.nbytes)) for unit in found]))
    _check_reach(goal, available, smallest, largest)
    limit = _limit(goal, available, plan)
    for _ in range(_ROUNDS):
        room = limit - _taken(goal, smallest) + sum(min(u.nbytes) for u in found)
        chosen = allocate(options, room)
        result = smallest if chosen is None else build(_assigned(found, chosen))
        over = _taken(goal, result) - _limit(goal, available, plan)
        if over <= 0:
            return result
        limit -= over  # headers grow with the numbers in them
    return smallest


def part_used(plan: Plan, available: int | None) -> float:
    """How much of its goal a plan takes up, at most 1; `available` as for `assign`."""
    assert plan.recipe.goal is not None
    return _taken(plan.recipe.goal, plan) / max(1, _limit(plan.recipe.goal, available, plan))


def _unit(tensors: tuple[TensorPlan, ...]) -> _Unit:
    keys = [{_key(spec): spec for spec in t.options} for t in tensors]
    shared = [key for key in keys[0] if all(key in other for other in keys)]
    sizes = [sum(_stored_bytes(t, by[key]) for t, by in zip(tensors, keys, strict=True)) for key in shared]
    return _Unit(tensors, tuple(shared), tuple(sizes))


def _key(spec: QuantSpec) -> tuple[int, int, bool]:
    return spec.bits, spec.group_size, spec.symmetric


def _stored_bytes(tensor: TensorPlan, spec: QuantSpec) -> int:
    rows, columns = tensor.info.shape
    return sum(output.nbytes for output in entries("", spec, (rows, columns)))


def _costs(unit: _Unit, costs: Mapping[str, Sequence[float]]) -> list[float]:
    """Cost of each option that the tensors of a unit share."""
    sums = [0.0] * len(unit.options)
    for tensor in unit.tensors:
        by_key = {_key(spec): cost for spec, cost in zip(tensor.options, costs[tensor.name], strict=True)}
        sums = [total + by_key[key] for total, key in zip(sums, unit.options, strict=True)]
    return sums


def _assigned(found: Sequence[_Unit], chosen: Sequence[int]) -> tuple[Assigned, ...]:
    pairs = [(t, unit.options[n]) for unit, n in zip(found, chosen, strict=True) for t in unit.tensors]
    return tuple(Assigned(t.name, *option) for t, option in sorted(pairs, key=lambda pair: pair[0].name))


def _taken(goal: Goal, plan: Plan) -> int:
    """Bytes that count for the goal."""
    return plan.file_bytes if goal.bits_per_weight is None else sum(t.output_bytes for t in counted(plan))


def _limit(goal: Goal, available: int | None, plan: Plan) -> int:
    if goal.bits_per_weight is None:
        assert available is not None
        return available
    return int(goal.bits_per_weight * sum(t.parameters for t in counted(plan)) / 8)


def _check_reach(goal: Goal, available: int | None, smallest: Plan, largest: Plan) -> None:
    limit = _limit(goal, available, smallest)
    flag = "--target-bpw" if goal.bits_per_weight is not None else "--target-size" if goal.size else "--ram"
    least, most = _taken(goal, smallest), _taken(goal, largest)
    if least > limit:
        raise UsageError(
            f"{flag} is too small",
            expected=f"at least {_reached(goal, smallest, least, limit)}",
            found=_asked(goal),
            hint=_hint_for_less(smallest),
        )
    if most < 0.99 * limit and goal.ram is None:
        raise UsageError(
            f"{flag} is more than the widest options take",
            expected=f"at most {_reached(goal, largest, most, limit)}",
            found=_asked(goal),
            hint="--bits 8 is the most that there is",
        )


def _reached(goal: Goal, plan: Plan, taken: int, limit: int) -> str:
    if goal.bits_per_weight is not None:
        return f"{8 * taken / max(1, sum(t.parameters for t in counted(plan))):.4f}"
    extra = goal.ram - limit if goal.ram is not None else 0
    return f"{taken + extra} bytes ({format_size(taken + extra)})"


def _asked(goal: Goal) -> str:
    if goal.bits_per_weight is not None:
        return f"{goal.bits_per_weight:g}"
    size = goal.size if goal.size is not None else goal.ram
    return f"{size} bytes" + (f" with a context of {goal.context}" if goal.ram is not None else "")


def _hint_for_less(plan: Plan) -> str | None:
    """What else could become smaller."""
    flags = {Role.EMBEDDING: "--embeddings auto", Role.HEAD: "--lm-head auto"}
    fixed = {t.role for t in plan.tensors} & flags.keys()
    auto = {Role.HEAD: plan.recipe.lm_head == AUTO, Role.EMBEDDING: plan.recipe.embeddings == AUTO}
    wanted = [flags[role] for role in sorted(fixed) if not auto[role] and role in TARGETS[plan.recipe.target].roles]
    if plan.recipe.goal is None or plan.recipe.goal.bits_per_weight is not None or not wanted:
        return None
    return f"{' '.join(wanted)} lets them become smaller too"
