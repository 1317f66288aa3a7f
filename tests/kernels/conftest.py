"""Fixtures of the kernel tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest

from llmq_kernels import jit

PROGRAMS = Path(__file__).parent / "programs"

LARGEST_BFLOAT = float.fromhex("0x1.fep127")


@pytest.fixture(scope="session")
def special_weight() -> Callable[..., np.ndarray]:
    """Make float32 (rows, columns), finite, in which every kind of odd group stands somewhere."""

    def make(rows: int, columns: int, group_size: int, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        groups = rng.standard_normal((rows * columns // group_size, group_size))
        groups *= 10.0 ** rng.uniform(-6, 4, (len(groups), 1))
        for group in groups:
            kind = rng.integers(0, 12)
            if kind == 0:
                group[:] = rng.choice([0.0, -0.0], group_size)
            elif kind == 1:
                group[:] = rng.standard_normal()
            elif kind == 2:
                group[rng.integers(group_size)] *= 1000.0
            elif kind == 3:
                group[:] = rng.integers(-9, 9, group_size) * 2.0**-149
            elif kind == 4:
                group[:] = np.abs(group)
            elif kind == 5:
                group[:] = rng.choice([-1.0, 1.0], group_size) * LARGEST_BFLOAT
            elif kind == 6:
                group[:] = rng.integers(-16, 17, group_size) / 2  # ties
        return groups.astype(np.float32).reshape(rows, columns)

    return make


@pytest.fixture
def each_thread_count() -> Iterator[Callable[[Callable[[], list[bytes]]], None]]:
    """Check that a function returns the same bytes on one thread and on all."""
    before = jit.threads()

    def check(work: Callable[[], list[bytes]]) -> None:
        jit.set_threads(1)
        alone = work()
        jit.set_threads(before)
        assert work() == alone

    yield check
    jit.set_threads(before)


@pytest.fixture(scope="session")
def program_environment() -> Callable[..., dict[str, str]]:
    """Environment of a program, with `changes`; None removes a variable."""

    def make(**changes: str | None) -> dict[str, str]:
        paths = [str(Path(jit.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        # Emitted code checks no bounds anyway: programs share what others have compiled.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "NUMBA_BOUNDSCHECK": None} | changes
        return {name: value for name, value in environment.items() if value is not None}

    return make


class RunProgram(Protocol):
    """Signature of the `run_program` fixture."""

    def __call__(self, name: str, *args: object, **changes: str | None) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture(scope="session")
def run_program(program_environment: Callable[..., dict[str, str]]) -> RunProgram:
    """Run one of `programs` in a process of its own, `changes` made to its environment."""

    def run(name: str, *args: object, **changes: str | None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-X", "faulthandler", str(PROGRAMS / f"{name}.py"), *map(str, args)],
            env=program_environment(**changes),
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    return run
