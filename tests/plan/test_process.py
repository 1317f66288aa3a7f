from types import SimpleNamespace

import pytest

from llmq.plan.budget import PROCESS_BYTES, REMOTE_BYTES, TENSOR_BYTES, block_budget, process_bytes
from llmq.plan.process import expected_process_bytes, remember_kernels
from llmq.spec import QuantSpec
from llmq_kernels import jit


def tensor(bits=4, dtype="BF16"):
    spec = QuantSpec(bits=bits).resolve(64, "bfloat16") if bits else None
    return SimpleNamespace(spec=spec, info=SimpleNamespace(dtype=dtype))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(jit, "cache_folder", lambda: tmp_path)
    return tmp_path


def test_less_is_expected_once_the_kernels_have_run(folder):
    cold = expected_process_bytes([tensor(), tensor(0)], "mse", remote=False)
    assert cold == process_bytes(2, remote=False) == PROCESS_BYTES + 2 * TENSOR_BYTES
    remember_kernels([tensor(), tensor(0)], "mse")
    warm = expected_process_bytes([tensor()] * 2, "mse", remote=False)
    assert warm < 0.5 * cold
    assert expected_process_bytes([tensor()] * 2, "mse", remote=True) == warm + REMOTE_BYTES
    for other in ([tensor(3)], [tensor(), tensor(dtype="F16")]):
        assert expected_process_bytes(other, "mse", remote=False) > PROCESS_BYTES
    assert expected_process_bytes([tensor()], "rtn", remote=False) > PROCESS_BYTES


def test_nowhere_to_remember(monkeypatch):
    monkeypatch.setattr(jit, "cache_folder", lambda: None)
    remember_kernels([tensor()], "mse")
    assert expected_process_bytes([tensor()], "mse", remote=False) > PROCESS_BYTES


def test_many_tensors_count_against_the_limit():
    few, many = (block_budget(256 << 20, [], process_bytes(count, remote=False)) for count in (10, 5000))
    assert few.read + few.made > many.read + many.made
