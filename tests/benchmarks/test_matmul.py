import numpy as np
import pytest

from llmq.benchmarks.matmul import MatmulSettings, Rotation, bench_matmul
from llmq.benchmarks.weights import Packing, RandomWeights
from llmq.errors import UsageError
from llmq_kernels.jit import set_threads, threads
from llmq_kernels.matmul import matmul_reference

TINY = {"shape": (32, 128), "working_set": 50_000, "runs": 1, "threads": (1,)}


@pytest.fixture(autouse=True)
def same_threads_afterwards():
    before = threads()
    yield
    set_threads(before)


def test_every_combination_has_a_row():
    settings = MatmulSettings(bits=(4, 2), group_sizes=(32, 64), tokens=(1, 3), **TINY)
    table = bench_matmul(settings)
    assert [(r.bits, r.group_size, r.tokens) for r in table.rows] == [
        (bits, group, tokens) for bits in (4, 2) for group in (32, 64) for tokens in (1, 3)
    ]
    row = table.rows[1]
    nbytes = 32 * 64 + 32 * 4 * 2
    assert row.name == "4-bit g32"
    assert row.bytes_per_second == pytest.approx(nbytes / row.seconds)
    assert row.tokens_per_second == pytest.approx(3 / row.seconds)
    assert row.operations_per_second == pytest.approx(2 * 32 * 128 * 3 / row.seconds)
    assert row.ratio == pytest.approx(row.bytes_per_second / row.limit_bytes_per_second)


def test_a_rotation_goes_on_where_it_stopped():
    _, matrices = RandomWeights(50_000).cut((32, 128), Packing(4, 64))
    work = Rotation(matrices, 2, "int8")
    assert work.count == len(matrices)
    work.count = 2
    work()
    np.testing.assert_allclose(work._out, matmul_reference(work._x, matrices[1]), rtol=1e-4, atol=1e-3)
    work()
    np.testing.assert_allclose(work._out, matmul_reference(work._x, matrices[3]), rtol=1e-4, atol=1e-3)


def test_mistakes():
    with pytest.raises(UsageError, match="group size 48 does not divide 128 columns"):
        bench_matmul(MatmulSettings(group_sizes=(48,), **TINY))
    with pytest.raises(UsageError, match="threads must be"):
        bench_matmul(MatmulSettings(group_sizes=(32,), **(TINY | {"threads": (100_000,)})))
