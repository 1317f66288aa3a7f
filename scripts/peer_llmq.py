"""Ours beside llama.cpp: a model that reads prompts and makes tokens, and the quantizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

__all__ = ["LlmqModel", "LlmqQuantizer"]


class LlmqModel:
    """A checkpoint of ours, ready to run on `threads` threads; see `LlamaCpp` for the methods."""

    def __init__(self, path: str, threads: int) -> None:
        from llmq.benchmarks.files import StreamedWeights
        from llmq.benchmarks.generate import Session
        from llmq.benchmarks.timing import use_threads

        use_threads(threads)
        self._session = Session(path)
        self._weights = StreamedWeights(path)

    def streamed_bytes(self) -> int:
        """Bytes of weights that a token reads."""
        return self._weights.nbytes

    def prefill(self, tokens: int) -> float:
        """Seconds until a prompt's first token is there."""
        return self._session.prefill(tokens)

    def decode(self, context: int, tokens: int) -> float:
        """Seconds for `tokens` tokens, the last of which fills the cache to `context`."""
        return self._session.decode(context, tokens)


class LlmqQuantizer:
    """`llmq quantize` from a bfloat16 checkpoint, in a process of its own each time."""

    def __init__(self, source: str, output: str, method: str, threads: int) -> None:
        self._flags: tuple[Any, ...] = (source, "-o", output, "--method", method, "--threads", threads)
        self._output = Path(output)

    def run(self) -> float:
        """Quantize once, into a new folder; seconds, the start of the process apart."""
        from llmq.benchmarks.child import llmq

        shutil.rmtree(self._output, ignore_errors=True)
        return float(llmq("quantize", *self._flags)["seconds"])
