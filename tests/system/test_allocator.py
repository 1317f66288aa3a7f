import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import numpy as np
from llmq.system.allocator import keeping_freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        np.ones(40 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def held():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))

with keeping_freed():
    np.ones(40 << 20, np.uint8)
    inside, kept = faults(), held()
print(inside, kept - held())
"""


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_freed_memory_is_used_again_and_then_given_back():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    faults, given_back = map(int, done.stdout.split())
    pages = (40 << 20) // 4096
    assert faults < pages  # 50 blocks in the pages of one
    assert given_back > 32 << 20
