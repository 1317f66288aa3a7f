"""A run from its very start, in a process of its own: `python -m llmq.benchmarks.stages MODEL PROMPT TOKENS [LIMIT]`.

Prints one JSON object: for every stage when it began, its seconds and the peaks of memory in it.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from llmq.errors import LlmqError
from llmq.system.memory import PeakMemory

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmq.runtime import Model

__all__ = ["FIRST_MATMUL", "LOAD", "STAGES", "Stage", "run"]

FIRST_MATMUL, LOAD, PROMPT, TOKENS = "import and first matmul", "load", "prompt", "tokens"
STAGES = (FIRST_MATMUL, LOAD, PROMPT, TOKENS)


@dataclass(frozen=True)
class Stage:
    """What a stage took.

    Parameters
    ----------
    began : float
        Of `time.time`.
    seconds : float
    peak_anon, peak_rss : int
        Bytes.
    predicted : int or None
        Of resident bytes of the whole run, as they are planned for when the model is loaded.
    """

    began: float
    seconds: float
    peak_anon: int
    peak_rss: int
    predicted: int | None = None


def run(model: str, prompt: int, tokens: int, limit: int | None = None) -> dict[str, Stage]:
    """Import the kernels and multiply once, load a model, read `prompt` tokens, make `tokens` more, within a limit."""
    loaded: Model | None = None
    cache = None

    def load() -> None:
        nonlocal loaded, cache
        from llmq.runtime import load

        loaded = load(model, max_memory=limit, context=prompt + tokens + 1)
        cache = loaded.new_cache(prompt + tokens)
        loaded.warm_up(prompt)

    def make(ids: list[int], count: int) -> None:
        assert loaded is not None
        list(loaded.generate(ids, max_tokens=count, stop_tokens=(), cache=cache))

    found = {
        FIRST_MATMUL: _staged(_first_matmul),
        LOAD: _staged(load),
        PROMPT: _staged(lambda: make([1] * prompt, 1)),
        TOKENS: _staged(lambda: make([1], tokens)),
    }
    assert loaded is not None
    if loaded.residency is not None:
        found[LOAD] = replace(found[LOAD], predicted=loaded.residency.expected_bytes)
    return found


def _staged(work: Callable[[], None]) -> Stage:
    with PeakMemory() as memory:
        stamp, began = time.time(), time.perf_counter()
        work()
        seconds = time.perf_counter() - began
    return Stage(stamp, seconds, memory.peak_anon, memory.peak_rss)


def _first_matmul() -> None:
    import numpy as np

    from llmq_kernels.layout import SCALE_KINDS, PackedMatrix
    from llmq_kernels.matmul import matmul

    matrix = PackedMatrix(
        packed=np.zeros((1024, 512), np.uint8),
        scale=np.zeros((1024, 16), np.uint16),
        zero_point=None,
        bits=4,
        group_size=64,
        columns=1024,
        scale_kind=SCALE_KINDS["float16"],
    )
    matmul(np.zeros((1, 1024), np.float32), matrix)


def main() -> None:
    """Run as a program; an error of ours is told as the command line tells it."""
    try:
        stages = run(sys.argv[1], *map(int, sys.argv[2:5]))
    except LlmqError as error:
        sys.stderr.write(f"error: {error}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        sys.exit(error.exit_code)
    sys.stdout.write(json.dumps({name: asdict(stage) for name, stage in stages.items()}))


if __name__ == "__main__":
    main()
