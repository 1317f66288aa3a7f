import subprocess
import sys

import pytest

from llmq.benchmarks import sampling
from llmq.benchmarks.child import watched
from llmq.benchmarks.sampling import Sampler
from llmq.errors import LlmqError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

GROWS = """
import time
x = bytearray(64 << 20)
time.sleep(0.6)
del x
time.sleep(0.3)
print("{}")
"""


def test_the_course_of_a_process():
    result, sampler = watched("-c", GROWS)
    assert result == {}
    anon = [sample.anon for sample in sampler.samples]
    assert max(anon) > 64 << 20 > anon[-1] > 0
    assert sampler.peak_pss > 64 << 20
    times = [sample.time for sample in sampler.samples]
    assert times == sorted(times)
    assert times[-1] - times[0] > 0.5


def test_many_samples_become_few_and_keep_the_peak(monkeypatch):
    monkeypatch.setattr(sampling, "_KEPT", 8)
    monkeypatch.setattr(sampling, "_INTERVAL", 0.002)
    _, sampler = watched("-c", GROWS)
    assert len(sampler.samples) <= 8
    assert max(sample.anon for sample in sampler.samples) > 64 << 20


def test_a_process_that_has_ended():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with Sampler(process.pid) as sampler:
        pass
    assert sampler.samples == []
    assert sampler.peak_pss is None


def test_an_error_is_raised_as_it_was_told():
    with pytest.raises(LlmqError, match="something"):
        watched("-c", "import sys; sys.exit('error: something')")
