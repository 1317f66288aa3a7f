"""Multiply on all threads, and again in a forked child, whose parent's threads are gone."""

import os
import sys

import numpy as np
from packed_cases import check_product, random_packed


def main() -> None:
    """Multiply, fork, multiply."""
    rng = np.random.default_rng(0)
    matrix = random_packed(rng, (600, 1024), (4, 32, True))
    x = rng.standard_normal((1, 1024)).astype(np.float32)
    check_product(x, matrix)
    child = os.fork()
    for _ in range(20):
        check_product(x, matrix)
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    print("right")
    sys.stdout.flush()
    if not child:
        os._exit(0)


if __name__ == "__main__":
    main()
