import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import numpy as np
from llmq.system.allocator import keeping_freed
from llmq.system.memory import current_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        together = [np.ones(24 << 20, np.uint8) for _ in range(6)]
        together.clear()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = faults()
with keeping_freed():
    faults()
    kept, within = faults(), current_memory().anon
print(usual, kept, within - current_memory().anon)
"""


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_freed_memory_is_used_again_and_then_given_back():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    usual, kept, given_back = map(int, done.stdout.split())
    assert kept < usual / 4
    assert given_back > 100 << 20
