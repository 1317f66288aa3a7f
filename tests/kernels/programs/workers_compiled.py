"""Multiply few tokens and many, on all threads, and print which kernels had to be compiled."""

import numpy as np
from packed_cases import random_packed

from llmq_kernels import jit
from llmq_kernels.dense import matmul_dense
from llmq_kernels.matmul import matmul


def main() -> None:
    """Multiply."""
    jit.on_compile(print)
    matrix = random_packed(np.random.default_rng(0), (512, 1024), (4, 32, True))
    for tokens in (1, 9):
        matmul(np.ones((tokens, 1024), np.float32), matrix)
    matmul_dense(np.ones((1, 1024), np.float32), np.ones((512, 1024), np.float32))


if __name__ == "__main__":
    main()
