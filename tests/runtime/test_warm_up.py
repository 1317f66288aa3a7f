"""What `Model.warm_up` leaves to compile: nothing. Asked in a process of its own, where nothing is compiled yet."""

import json
import subprocess
import sys

import pytest

import llmq

PROGRAM = """
import gc, json, sys
from numba.core.dispatcher import Dispatcher
import llmq
from llmq.runtime.sampling import Sampling
from llmq_kernels import workers

def ready():
    kernels = [thing for thing in gc.get_objects() if issubclass(type(thing), Dispatcher)]
    ours = [k for k in kernels if k.py_func.__module__.startswith("llmq_kernels.")]
    return set(workers._workers) | {(k.py_func, signature) for k in ours for signature in k.signatures}

model, prompt, temp = llmq.load(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
rules = Sampling(temp=temp)
begun = ready()
model.warm_up(prompt, rules)
warm = ready()
list(model.generate([1] * prompt, max_tokens=3, sampling=rules, stop_tokens=()))
named = [sorted({kernel.__name__ for kernel, *_ in kernels}) for kernels in (warm - begun, ready() - warm)]
print(json.dumps(named))
"""


@pytest.fixture(scope="module")
def mixed(write_pico, tmp_path_factory):
    """A model whose blocks are of different kinds."""
    folder = tmp_path_factory.mktemp("mixed")
    source = write_pico(folder / "source", max_position_embeddings=512)
    overrides = [r"layers\.1\.mlp=bits:8,group:16"]
    return llmq.quantize(source, folder / "out", group_size=32, overrides=overrides).output


@pytest.mark.parametrize(("prompt", "temp"), [(3, 0.0), (40, 0.8), (258, 0.0)])
def test_generating_compiles_nothing_more(mixed, prompt, temp):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(mixed), str(prompt), str(temp)], capture_output=True, text=True, check=True
    )
    warm, more = json.loads(done.stdout)
    assert {"attend", "decode_rows", "encode_rows"} <= set(warm)
    assert more == []
