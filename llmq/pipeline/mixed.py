"""Widths by budget: a pass over the model that tells what errors cost, and the plan that spends bytes accordingly."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from llmq.architectures import decoder_config
from llmq.errors import UsageError
from llmq.pipeline.errors_by_option import measure_errors
from llmq.pipeline.shares import measure_shares
from llmq.plan.goals import RUN_BYTES, assign, part_used
from llmq.plan.priors import priors
from llmq.runtime.cache import kv_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmq.checkpoint.source import Source
    from llmq.pipeline.calibration import Calibration
    from llmq.plan import Plan
    from llmq.spec import Assigned, Goal
    from llmq.system.progress import Progress

__all__ = ["available_bytes", "mixed_plan"]

_CLOSE: Final = 0.99

_log = logging.getLogger("llmq")


def available_bytes(goal: Goal, source: Source) -> int | None:
    """Bytes that all weight files may take; None where the goal is bits per weight.

    Raises
    ------
    UsageError
        The cache and the process alone take more than `goal.ram`, or the context is longer than the model's.
    UnsupportedError
        `goal.ram` for an architecture that llmq cannot run.
    """
    if goal.ram is None:
        return goal.size
    assert goal.context is not None
    config = decoder_config(source.config)
    if goal.context > config.max_position_embeddings:
        raise UsageError(
            "--context is longer than the model's",
            expected=f"at most {config.max_position_embeddings}",
            found=goal.context,
        )
    cache = kv_bytes(config, goal.context, goal.kv_bits)
    left = goal.ram - cache - RUN_BYTES
    if left <= 0:
        raise UsageError(
            "--ram is too small",
            expected=f"more than {cache + RUN_BYTES} bytes (cache {cache}, process {RUN_BYTES})",
            found=f"{goal.ram} bytes",
            hint=f"--kv-bits {8 if goal.kv_bits > 8 else 4}, or a smaller --context"
            if goal.kv_bits > 4
            else "a smaller --context",
        )
    return left


def mixed_plan(
    plan: Plan,
    source: Source,
    progress: Progress,
    *,
    importance: Calibration | None,
    max_memory: int | None,
    build: Callable[[tuple[Assigned, ...]], Plan],
) -> Plan:
    """Choose the options of a plan that keep to its goal at the least cost.

    The cost of an option is its relative error times what that costs: the measured share of the tensor, or its prior.

    Parameters
    ----------
    plan : Plan
        With options.
    source : Source
    progress : Progress
    importance : Calibration or None
        A text that tells how much each weight matters; None for priors.
    max_memory : int or None
        Bound on the anonymous memory of the process.
    build : callable
        From what is assigned to the plan of it.

    Raises
    ------
    UsageError
        The goal is out of reach.
    InputError
        The source cannot be read, or holds NaN or infinity.
    """
    goal = plan.recipe.goal
    assert goal is not None
    available = available_bytes(goal, source)
    free = [t for t in plan.tensors if t.options]
    weights = priors([t.name for t in free])
    energies = {}
    shares = measure_shares(source, importance, progress) if importance is not None else {}
    for name, share in shares.items():
        weights[name], energies[name] = share.share, share.energy
    errors = measure_errors(free, source, progress, method=plan.recipe.method, energies=energies, max_memory=max_memory)
    costs = {name: [weights[name] * error for error in found] for name, found in errors.items()}
    result = assign(plan, costs, available, build)
    used = part_used(result, available)
    if used < _CLOSE and goal.ram is None:
        _log.warning("no combination of these widths comes closer to the target than %.1f %% of it", 100 * used)
    return result
