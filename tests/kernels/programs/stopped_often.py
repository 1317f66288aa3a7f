"""Multiply, be interrupted at a thousand odd moments, and check that products stay right and on all threads.

Prints how often another thread helped afterwards.
"""

from __future__ import annotations

import random
import signal
from types import FrameType

import numpy as np
from packed_cases import random_packed

from llmq_kernels import bundle
from llmq_kernels.crew import launch
from llmq_kernels.matmul import matmul
from llmq_kernels.memory import next_number
from llmq_kernels.workers import worker_address


class Stop(Exception):
    """What the signal raises."""


def stop(number: int, frame: FrameType | None) -> None:
    """Handle the signal."""
    raise Stop


def meet(p: np.ndarray, number: int, variant: object) -> None:
    """Wait, for seconds but not for ever, until another worker is here."""
    if number:
        p[1] = number
    for _ in range(1 << 30):
        if next_number(p[0]) < 0 or p[1]:
            return


def main() -> None:
    """Multiply, stop, meet."""
    bundle._PARALLEL = bundle._MOST = 1
    rng, draws = np.random.default_rng(0), random.Random(0)
    matrix = random_packed(rng, (64, 256), (4, 32, True))
    x = rng.standard_normal((9, 256)).astype(np.float32)
    many, one = matmul(x, matrix), matmul(x[:1], matrix)
    address, stopped, helped = worker_address(meet, 1), 0, 0
    signal.signal(signal.SIGALRM, stop)
    for _ in range(1000):
        try:
            signal.setitimer(signal.ITIMER_REAL, draws.uniform(1e-5, 1e-3))
            # Not for ever: an exception in a destructor is swallowed.
            for _ in range(1000):
                assert (matmul(x, matrix) == many).all()
                assert (matmul(x[:1], matrix) == one).all()
        except Stop:
            stopped += 1
    assert stopped > 900
    for _ in range(10):
        counter = np.zeros(1, np.int64)
        p = np.array([counter.ctypes.data, 0])
        launch(address, p.ctypes.data, 2)
        helped += int(p[1])
    print(helped)


if __name__ == "__main__":
    main()
