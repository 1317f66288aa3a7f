"""Multiply, run a model, generate and quantize from many Python threads at once, and check every result.

Arguments: folder of a model, calls of each thread. Prints the threading layer, and how many results were right.
"""

from __future__ import annotations

import sys
import threading

import numba
import numpy as np

import llmq

THREADS = 8
PROMPT = [5, 6, 7, 8]


def main() -> None:
    """Take every result alone, then all at once, again and again."""
    folder, calls = sys.argv[1], int(sys.argv[2])
    model = llmq.load(folder)
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((96, 256)).astype(np.float32), rng.standard_normal((3, 256)).astype(np.float32)
    q = llmq.quantize_tensor(weight)

    def quantized() -> np.ndarray:
        found = llmq.quantize_tensor(weight)
        return np.concatenate([found.packed.ravel(), found.scale.view(np.uint8).ravel()])

    works = (
        (lambda: llmq.matmul(x, q), 20),
        (lambda: llmq.matmul(x, q, compute="float32"), 20),
        (lambda: model(PROMPT), 1),
        (lambda: np.array(list(model.generate(PROMPT, max_tokens=4))), 1),
        (quantized, 4),
        (q.dequantize, 8),
    )
    wanted = [work() for work, _ in works]
    right: list[int] = []
    failed: list[BaseException] = []

    def take(first: int) -> None:
        try:
            for call in range(calls):
                number = (first + call) % len(works)
                work, times = works[number]
                for _ in range(times):
                    np.testing.assert_array_equal(work(), wanted[number])
                right.append(times)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=take, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    print(numba.threading_layer(), sum(right))


if __name__ == "__main__":
    main()
