import threading

import numpy as np
import pytest
from packed_cases import check_product, random_packed

from llmq_kernels import bundle as module
from llmq_kernels.bundle import Bundle
from llmq_kernels.layout import PackedMatrix
from llmq_kernels.matmul import matmul
from llmq_kernels.simd import target
from llmq_kernels.tiles import tile_rows
from llmq_kernels.workers import Turns

pytestmark = pytest.mark.emitted

ROWS = [(1, 1), (40, 7), (3, 1, 2), (64, 16, 16), (0, 9), (33, 0, 1, 500)]


def draw(rng, rows, tokens, columns=352, symmetric=False):
    matrices = [random_packed(rng, (n, columns), (4, 32, symmetric)) for n in rows]
    outs = [np.full((tokens, n), np.nan, np.float32) for n in rows]
    return matrices, rng.standard_normal((tokens, columns)).astype(np.float32), outs


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("parallel", [1, 1 << 60])
def test_equals_one_weight_after_the_other(rows, parallel, monkeypatch):
    monkeypatch.setattr(module, "_PARALLEL", parallel)
    rng = np.random.default_rng(0)
    for tokens in (0, 1, 2, 3, 4, 5, 9):
        matrices, x, outs = draw(rng, rows, tokens)
        bundle = Bundle(matrices)
        for _ in range(3):
            for out in outs:
                out[...] = np.nan
            bundle.multiply(x, outs)
            for matrix, out in zip(matrices, outs, strict=True):
                np.testing.assert_array_equal(out, matmul(x, matrix))
                check_product(x, matrix, out)


def test_many_tokens():
    matrices, x, outs = draw(np.random.default_rng(0), (20, 35), 600, 96)
    Bundle(matrices).multiply(x, outs)
    for matrix, out in zip(matrices, outs, strict=True):
        np.testing.assert_array_equal(out, matmul(x, matrix))


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_stops_between_tiles_change_nothing(rows, monkeypatch):
    matrices, x, outs = draw(np.random.default_rng(0), rows, 11)
    bundle = Bundle(matrices)
    bundle.multiply(x, outs)
    whole = [out.copy() for out in outs]
    for out in outs:
        out[...] = np.nan
    monkeypatch.setattr(module, "_MOST", 1)
    stops = []
    monkeypatch.setattr(Turns, "go_on", lambda *given, go_on=Turns.go_on: (stops.append(given[1]), go_on(*given)))
    bundle.multiply(x, outs)
    for out, expected in zip(outs, whole, strict=True):
        np.testing.assert_array_equal(out, expected)
    tiles = sum(-(-n // tile_rows(target())) for n in rows)
    assert stops == list(range(1, tiles))


def test_a_product_between_the_parts_of_another(monkeypatch):
    # As a signal handler might: both need scratch and parameters of the same form.
    matrices, x, outs = draw(np.random.default_rng(0), (90, 40), 9)
    bundle, expected = Bundle(matrices), [matmul(x, matrix) for matrix in matrices]
    others = [np.empty_like(out) for out in outs]
    monkeypatch.setattr(module, "_MOST", 1)
    go_on, inside = Turns.go_on, []

    def interrupted(*given):
        if not inside:
            inside.append(True)
            bundle.multiply(-x, others)
        go_on(*given)

    monkeypatch.setattr(Turns, "go_on", interrupted)
    bundle.multiply(x, outs)
    assert inside
    for out, other, product in zip(outs, others, expected, strict=True):
        np.testing.assert_array_equal(out, product)
        np.testing.assert_array_equal(other, -product)


def test_weights_of_one_form_share_what_was_prepared():
    # Scratch and parameters are kept for a form: two weights of one form must not read each other's bytes.
    rng = np.random.default_rng(0)
    for symmetric in (True, False):
        first, second = (Bundle([random_packed(rng, (50, 352), (4, 32, symmetric))]) for _ in range(2))
        for tokens in (1, 2, 7):
            x = rng.standard_normal((tokens, 352)).astype(np.float32)
            alone = np.empty((3, tokens, 50), np.float32)
            first.multiply(x, [alone[0]])
            second.multiply(x, [alone[1]])
            first.multiply(x, [alone[2]])
            np.testing.assert_array_equal(alone[0], alone[2])
            assert (alone[0] != alone[1]).any()


def test_more_forms_than_are_kept():
    rng = np.random.default_rng(0)
    matrices = [random_packed(rng, (n, 64), (4, 32, True)) for n in range(1, 140)]
    for _ in range(2):
        for matrix in matrices:
            check_product(rng.standard_normal((1, 64)).astype(np.float32), matrix)


def test_python_threads_do_not_disturb_each_other(monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(module, "_PARALLEL", 1)
    matrices, _, _ = draw(rng, (70, 33), 1)
    cases = [rng.standard_normal((tokens, 352)).astype(np.float32) for tokens in (1, 2, 4, 5, 9, 1)]
    expected = [[matmul(x, matrix) for matrix in matrices] for x in cases]
    wrong = []

    def work(x, right):
        bundle = Bundle(matrices)
        for _ in range(30):
            outs = [np.empty_like(out) for out in right]
            bundle.multiply(x, outs)
            wrong.extend(1 for out, expect in zip(outs, right, strict=True) if (out != expect).any())

    threads = [threading.Thread(target=work, args=case) for case in zip(cases, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_weights_live_as_long_as_their_bundle():
    rng = np.random.default_rng(0)
    matrices, x, outs = draw(rng, (500, 500), 2)
    expected = [matmul(x, matrix) for matrix in matrices]
    bundle = Bundle(matrices)
    del matrices
    rubbish = [np.full((500, 176), 255, np.uint8) for _ in range(8)]
    bundle.multiply(x, outs)
    del rubbish
    for out, right in zip(outs, expected, strict=True):
        np.testing.assert_array_equal(out, right)


def test_weights_of_different_forms_are_refused():
    rng = np.random.default_rng(0)
    matrix = random_packed(rng, (4, 96), (4, 32, True))
    for shape, form, kind in (
        ((4, 64), (4, 32, True), "float16"),
        ((4, 96), (8, 32, True), "float16"),
        ((4, 96), (4, 96, True), "float16"),
        ((4, 96), (4, 32, False), "float16"),
        ((4, 96), (4, 32, True), "bfloat16"),
    ):
        with pytest.raises(ValueError, match="one form"):
            Bundle([matrix, random_packed(rng, shape, form, kind=kind)])


def test_what_microkernels_serve():
    def serves(bits, group_size):
        columns = group_size
        packed = np.zeros((1, 4 * -(-columns * bits // 32)), np.uint8)
        scale = np.ones((1, 1), np.float16).view(np.uint16)
        return Bundle.serves(PackedMatrix(packed, scale, None, bits, group_size, columns, 0))

    for bits in range(1, 9):
        for group_size in (32, 48 * 2, 64, 128, 160, 256, 4096, 11008):
            assert serves(bits, group_size)
        assert serves(bits, 16) == serves(bits, 48) == (bits > 1)
        for group_size in (1, 8, 18, 24, 40, 1000):
            assert not serves(bits, group_size)
