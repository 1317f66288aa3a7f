"""Run a model here, and in processes that are started after that; check that all get the same.

Arguments: folder of a model, how processes start, and how many blocks are to be streamed, about. Prints a word for each
process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor

import numpy as np

import llmq
from llmq.architectures import decoder_config
from llmq.checkpoint.source import open_source
from llmq.runtime import residency
from llmq.runtime.model import Model
from llmq.runtime.residency import HEADROOM, Room, streamable
from llmq.system.memory import current_memory

PROMPT = [5, 6, 7, 8]
PATIENCE = 120
"""Seconds after which a process counts as hanging."""

_model: Model | None = None


def load(folder: str, streamed: int) -> Model:
    """Load the model within too little memory for some of its blocks."""
    if not streamed:
        return llmq.load(folder)
    with open_source(folder) as source:
        config, blocks = decoder_config(source.config), streamable(source.tensors)
        room = Room(limit=1 << 60, tokens=64, kv_bits=16, process=current_memory().rss + HEADROOM)
        plan = residency._planned(source.tensors, config, room, blocks, streamed, residency.CHUNK)
    model = llmq.load(folder, max_memory=plan.peak_bytes, context=64)
    assert model.streams
    return model


def results(folder: str, streamed: int) -> list[np.ndarray]:
    """What the model, quantizing and products give, the latter by kernels of Numba's threads and by ours."""
    global _model
    signal.alarm(PATIENCE)
    if _model is None:
        _model = load(folder, streamed)
    weight = np.random.default_rng(0).standard_normal((96, 256)).astype(np.float32)
    q = llmq.quantize_tensor(weight)
    products = [llmq.matmul(weight[:n], q, compute=how) for n in (1, 9) for how in ("int8", "float32")]
    tokens = np.array(list(_model.generate(PROMPT, max_tokens=4)))
    return [_model(PROMPT), tokens, q.packed, q.scale, q.dequantize(), *products]


def check(folder: str, streamed: int, wanted: list[np.ndarray]) -> str:
    """Compare with another process."""
    for found, expected in zip(results(folder, streamed), wanted, strict=True):
        np.testing.assert_array_equal(found, expected)
    return "right"


def in_child(folder: str, streamed: int, wanted: list[np.ndarray], *, deeper: bool) -> None:
    """Fork, check in the child, and in a child of that one; tell how they end."""
    child = os.fork()
    if not child:
        try:
            print(check(folder, streamed, wanted), flush=True)
            if deeper:
                in_child(folder, streamed, wanted, deeper=False)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        print(f"ended by {status}", flush=True)


def while_others_work(folder: str, streamed: int, wanted: list[np.ndarray]) -> None:
    """Fork while other threads run the model, quantize and compile."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            check(folder, streamed, wanted)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        in_child(folder, streamed, wanted, deeper=False)
    stop.set()
    for thread in threads:
        thread.join()


def main() -> None:
    """Run the model, then start processes."""
    folder, how, streamed = sys.argv[1], sys.argv[2], int(sys.argv[3])
    wanted = results(folder, streamed)
    if how == "os":
        in_child(folder, streamed, wanted, deeper=True)
    elif how == "busy":
        while_others_work(folder, streamed, wanted)
    elif how == "pool":
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
            for word in pool.map(check, [folder] * 4, [streamed] * 4, [wanted] * 4):
                print(word)
    else:
        context = multiprocessing.get_context(how)
        with context.Pool(1) as workers:
            print(workers.apply(check, (folder, streamed, wanted)))
    print(check(folder, streamed, wanted))


if __name__ == "__main__":
    main()
