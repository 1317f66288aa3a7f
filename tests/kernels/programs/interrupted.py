"""Multiply many tokens again and again until interrupted, and print how long the longest call took, in seconds."""

import time

import numpy as np
from packed_cases import random_packed

from llmq_kernels.matmul import matmul


def main() -> None:
    """Say when the work has begun, and go on with it."""
    matrix = random_packed(np.random.default_rng(0), (4096, 4096), (4, 32, True))
    x = np.ones((2048, 4096), np.float32)
    matmul(x[:300], matrix)
    print("begun", flush=True)
    longest = 0.0
    while True:
        before = time.perf_counter()
        try:
            matmul(x, matrix)
        except KeyboardInterrupt:
            # What was interrupted leaves nothing behind that harms the next product.
            np.testing.assert_array_equal(matmul(x[:9], matrix), matmul(x[-9:], matrix))
            print(longest, flush=True)
            raise
        longest = max(longest, time.perf_counter() - before)


if __name__ == "__main__":
    main()
