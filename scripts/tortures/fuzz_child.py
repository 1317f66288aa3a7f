"""Executes one target many times, guided by atheris where it is installed, and tells what came of it.

python -m tortures.fuzz_child header 100000 FOLDER
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Counter", "main"]

_TELL: Final = 500
_LONGEST: Final = 20_000
_HANG: Final = 1.0


class Counter:
    """Counts executions of a target, and keeps the first few that went wrong; written to a file now and then.

    libFuzzer leaves the process without a word to Python.
    """

    def __init__(self, attempt: Callable[[bytes], str], report: Path, runs: int) -> None:
        self._attempt = attempt
        self._report = report
        self._runs = runs
        self.found: dict[str, Any] = {
            "runs": 0,
            "crashes": 0,
            "hangs": 0,
            "disagreements": 0,
            "slowest": 0.0,
            "examples": [],
        }

    def __call__(self, data: bytes) -> None:
        """Execute once."""
        began = time.thread_time()
        try:
            wrong = self._attempt(data)
        # Anything that is not ours is what we look for; a panic in Rust is no Exception.
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self._note("crashes", f"{type(error).__name__}: {error}", data)
        else:
            if wrong:
                self._note("disagreements", wrong, data)
        seconds = time.thread_time() - began
        if seconds > _HANG:
            self._note("hangs", f"{seconds:.1f} s", data)
        self.found["slowest"] = max(self.found["slowest"], seconds)
        self.found["runs"] += 1
        if self.found["runs"] % _TELL == 0 or self.found["runs"] == self._runs:
            self.write()

    def _note(self, kind: str, what: str, data: bytes) -> None:
        self.found[kind] += 1
        if len(self.found["examples"]) < 10:
            self.found["examples"].append([kind, what[:300], data[:2000].hex()])

    def write(self) -> None:
        """Write what was counted."""
        import resource

        self.found["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        self._report.write_text(json.dumps(self.found))


def main() -> None:
    """Run what the command line asks for."""
    logging.disable(logging.CRITICAL)
    name, runs, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    if find_spec("atheris"):
        import atheris

        from tortures.instrumented import INSTRUMENTED

        with atheris.instrument_imports(include=list(INSTRUMENTED)):
            from tortures.fuzz_targets import TARGETS
    else:
        from tortures.fuzz_targets import TARGETS
    target = TARGETS[name]
    counter = Counter(target.attempt, folder / f"{name}.json", runs)
    seeds = target.seeds()
    if find_spec("atheris"):
        _guided(counter, seeds, runs, folder / name)
    else:
        _blind(counter, seeds, runs)


def _blind(counter: Counter, seeds: list[bytes], runs: int) -> None:
    """Mutate seeds, and what mutation made of them."""
    rng = Random(runs)  # noqa: S311
    pool = list(seeds)
    from tortures.mutations import mutated

    for data in seeds[:runs]:
        counter(data)
    for _ in range(runs - len(seeds[:runs])):
        data = mutated(rng.choice(pool), rng)[:_LONGEST]
        if rng.random() < 0.02:
            pool[rng.randrange(len(pool))] = data
        if rng.random() < 0.02:
            pool[rng.randrange(len(pool))] = rng.choice(seeds)
        counter(data)


def _guided(counter: Counter, seeds: list[bytes], runs: int, corpus: Path) -> None:
    """Let libFuzzer choose what to mutate by the branches that it reached."""
    import atheris

    from tortures.mutations import mutated

    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds):
        (corpus / f"seed{number}").write_bytes(data[:_LONGEST])

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng = Random(seed)  # noqa: S311
        return atheris.Mutate(data, most) if rng.random() < 0.1 else mutated(data, rng)[:most]

    flags = [f"-runs={runs}", f"-max_len={_LONGEST}", "-timeout=60", "-rss_limit_mb=4096", "-seed=8", "-verbosity=0"]
    prefix = f"-artifact_prefix={corpus.parent}{os.sep}"
    atheris.Setup([sys.argv[0], *flags, prefix, str(corpus)], counter, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
