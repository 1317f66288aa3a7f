"""Run a decoder's graph in ONNX Runtime, in a process of its own, and tell its memory; prints one JSON object.

python scripts/peer_onnx.py GRAPH [--tokens 8] [--prompt 8] [--piece N] [--no-arena] [--no-prepacking]
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime as ort


def memory(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def feed(session: ort.InferenceSession, ids: np.ndarray, past: list[np.ndarray]) -> dict[str, np.ndarray]:
    """What one call takes: ids, int64 (1, n), and caches."""
    caches = [i.name for i in session.get_inputs() if i.name.startswith("past_key_values.")]
    seen = past[0].shape[2]
    length = seen + ids.shape[1]
    found = {
        "input_ids": ids,
        "attention_mask": np.ones((1, length), np.int64),
        "position_ids": np.arange(seen, length)[None],
    }
    return found | dict(zip(caches, past, strict=True))


@click.command()
@click.argument("graph", type=click.Path(exists=True))
@click.option("--tokens", type=int, default=8)
@click.option("--prompt", type=int, default=8)
@click.option("--piece", type=int, help="Tokens of the prompt in a call.")
@click.option("--no-arena", is_flag=True)
@click.option("--no-prepacking", is_flag=True)
def main(graph: str, tokens: int, prompt: int, piece: int | None, no_arena: bool, no_prepacking: bool) -> None:
    """Read a prompt, and write some tokens."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = not no_arena
    if no_prepacking:
        options.add_session_config_entry("session.disable_prepacking", "1")
    found: dict[str, Any] = {"versions": {"onnxruntime": ort.__version__}, "before": memory("VmRSS")}
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    found["loaded"] = memory("VmRSS")
    caches = [i for i in session.get_inputs() if i.name.startswith("past_key_values.")]
    past = [np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in caches]
    ids = np.arange(prompt)[None] + 3
    for start in range(0, prompt, piece or prompt):
        logits, *past = session.run(None, feed(session, ids[:, start : start + (piece or prompt)], past))
    began = time.process_time()
    for _ in range(tokens):
        logits, *past = session.run(None, feed(session, np.array([[int(logits[0, -1].argmax())]]), past))
    found |= {"token_seconds": (time.process_time() - began) / tokens, "cache": sum(a.nbytes for a in past)}
    found |= {"after": memory("VmRSS"), "anonymous": memory("RssAnon"), "peak": memory("VmHWM")}
    click.echo(json.dumps(found))


if __name__ == "__main__":
    main()
