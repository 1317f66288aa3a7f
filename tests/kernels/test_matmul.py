import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_cases import FEW, VARIANTS, check_product, placed, random_packed

from llmq_kernels import matmul as module
from llmq_kernels.activations import activation_group, quantize_activations
from llmq_kernels.bundle import Bundle
from llmq_kernels.layout import SCALE_KINDS, Grid, PackedMatrix
from llmq_kernels.matmul import matmul, matmul_reference
from llmq_kernels.pack import pack
from llmq_kernels.quantize import dequantize, dequantize_reference, quantize
from llmq_kernels.ranges import range_scales

VARIANT = {(variant.bits, variant.group): variant for variant in VARIANTS}


def draw_x(rng, tokens, columns):
    """Tokens of very different sizes, some of them zero."""
    x = rng.standard_normal((tokens, columns)) * 10.0 ** rng.uniform(-3, 3, (tokens, 1))
    x[rng.random(tokens) < 0.1] = 0.0
    return x.astype(np.float32)


@pytest.mark.emitted
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@settings(max_examples=40)
@given(data=st.data())
def test_agrees_with_the_reference(variant, data):
    tokens = data.draw(st.sampled_from(variant.tokens))
    symmetric = data.draw(st.sampled_from(variant.symmetric) if tokens > FEW else st.booleans())
    group_size = data.draw(st.sampled_from(variant.group_sizes))
    shape = data.draw(st.integers(1, 40)), group_size * data.draw(st.integers(1, 6))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    kind, beside = data.draw(st.sampled_from(sorted(SCALE_KINDS))), data.draw(st.sampled_from((0, 1, 4, 8, 33)))
    matrix = random_packed(rng, shape, (variant.bits, group_size, symmetric), kind=kind, beside=beside)
    assert activation_group(group_size) == variant.group
    assert Bundle.serves(matrix)
    check_product(draw_x(rng, tokens, shape[1]), matrix)


@pytest.mark.parametrize("group_size", [1, 7, 8, 18, 24, 40, 250])
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_that_fill_no_vector(bits, group_size, symmetric):
    rng = np.random.default_rng(group_size)
    for tokens, rows, kind in ((1, 3, "float16"), (4, 20, "float32"), (7, 1, "bfloat16")):
        shape = rows, group_size * int(rng.integers(1, 9))
        matrix = random_packed(rng, shape, (bits, group_size, symmetric), kind=kind, beside=tokens)
        assert not Bundle.serves(matrix)
        check_product(draw_x(rng, tokens, shape[1]), matrix)


@pytest.mark.parametrize("columns", [512, 520, 1024, 1544, 2056, 2816])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_scale_for_a_whole_row(bits, columns):
    rng = np.random.default_rng(columns)
    for group_size in (columns, 256):
        if columns % group_size == 0:
            for tokens in (1, 9):
                matrix = random_packed(rng, (33, columns), (bits, group_size, bits % 2 == 0))
                check_product(draw_x(rng, tokens, columns), matrix)


@pytest.mark.parametrize("tokens", [255, 256, 257, 300, 515])
def test_many_tokens(tokens):
    rng = np.random.default_rng(tokens)
    matrix = random_packed(rng, (37, 320), (4, 32, False))
    check_product(draw_x(rng, tokens, 320), matrix)


def test_few_tokens_of_each_number():
    rng = np.random.default_rng(0)
    for rows in (*range(12), 31, 100):
        matrix = random_packed(rng, (rows, 224), (4, 32, True))
        for tokens in range(7):
            check_product(draw_x(rng, tokens, 224), matrix)


@pytest.mark.parametrize("kind", sorted(SCALE_KINDS))
@pytest.mark.parametrize("tokens", [1, 8])
def test_scales_at_the_ends_of_their_range(kind, tokens):
    rng = np.random.default_rng(0)
    values = {
        "float16": [2.0**-24, 2.0**-15, 65504.0, -(2.0**-24), 0.0],
        "bfloat16": [2.0**-133, 2.0**-126, 2.0**100, -(2.0**-127), 0.0],
        "float32": [2.0**-149, 2.0**-126, 2.0**100, -(2.0**-140), 0.0],
    }
    for size in (1.0, 1e-30, 1e5):
        matrix = random_packed(rng, (20, 320), (4, 32, True), kind=kind)
        chosen = rng.choice(values[kind], (20, 10)).astype(np.float32)
        if kind == "float16":
            matrix.scale[...] = chosen.astype(np.float16).view(np.uint16)
        else:
            words = chosen.view(np.uint16)
            matrix.scale[...] = words if kind == "float32" else words[:, 1::2]
        check_product((size * rng.standard_normal((tokens, 320))).astype(np.float32), matrix)


@pytest.mark.parametrize("tokens", [1, 3, 8])
def test_activations_at_the_ends_of_their_range(tokens):
    rng = np.random.default_rng(0)
    matrix = random_packed(rng, (20, 320), (4, 32, False))
    for size in (2.0**-149, 2.0**-130, 1e30):
        check_product((size * rng.integers(-100, 100, (tokens, 320))).astype(np.float32), matrix)
    assert not matmul(np.zeros((tokens, 320), np.float32), matrix).any()


def integer_weight(rng, rows, columns, variant, group_size, symmetric):
    """Codes at random, scales that are small powers of two: products of integers are exact in any order."""
    matrix = random_packed(rng, (rows, columns), (variant.bits, group_size, symmetric), kind="float32")
    scale = rng.choice([-2.0, -1.0, 0.5, 1.0], (rows, columns // group_size)).astype(np.float32)
    matrix.scale[...] = scale.view(np.uint16)
    return matrix


@pytest.mark.emitted
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_integers_are_exact(variant):
    rng = np.random.default_rng(0)
    for group_size in variant.group_sizes:
        columns = group_size * max(1, 768 // group_size)
        for tokens in variant.tokens:
            for symmetric in variant.symmetric:
                matrix = integer_weight(rng, 21, columns, variant, group_size, symmetric)
                x = rng.integers(-20, 21, (tokens, columns)).astype(np.float32)
                x[:, :: variant.group] = rng.choice([-127.0, 127.0], x[:, :: variant.group].shape)
                weight = dequantize_reference(matrix).astype(np.float64)
                np.testing.assert_array_equal(matmul(x, matrix), x @ weight.T)


@pytest.mark.emitted
@pytest.mark.parametrize("bits", range(1, 9))
def test_the_largest_sums(bits):
    top = (1 << bits) - 1
    for group in (16 if bits in (2, 5, 8) else 32, 256):
        codes = np.zeros((6, 1024), np.uint8)
        codes[::2] = top
        codes[1, ::2] = top
        scale = np.ones((6, 1024 // group), np.float32).view(np.uint16)
        zero = np.full((6, 1024 // group), top // 2, np.uint8)
        variant = VARIANT[bits, group]
        for symmetric in variant.symmetric:
            matrix = PackedMatrix(
                pack(codes, bits), scale, None if symmetric else zero, bits, group, 1024, SCALE_KINDS["float32"]
            )
            for tokens in variant.tokens:
                x = np.full((tokens, 1024), -127.0, np.float32)
                x[::2] = 127.0
                x[-1, ::2] = -127.0
                expected = x @ dequantize_reference(matrix).astype(np.float64).T
                # The largest sums have more digits than float32.
                np.testing.assert_allclose(matmul(x, matrix), expected, rtol=1e-6, atol=8)


def test_the_largest_products_of_a_long_group():
    weight = np.full((1, 16381), 255.0, np.float32)  # a prime: the group is taken whole
    grid = Grid(8, 16381, symmetric=False)
    matrix = quantize(weight, grid, *range_scales(weight, grid))
    x = np.full((1, 16381), -127.0, np.float32)
    assert matmul(x, matrix).item() == pytest.approx(-127.0 * 255.0 * 16381, rel=1e-6)


@pytest.mark.parametrize("tokens", [1, 3, 9])
def test_the_documented_error_of_quantized_activations(tokens):
    rng = np.random.default_rng(tokens)
    matrix = random_packed(rng, (30, 320), (4, 32, True), spread=0.0)
    x = rng.standard_normal((tokens, 320)).astype(np.float32)
    weight = dequantize_reference(matrix).astype(np.float64)
    _, scale, _ = quantize_activations(x, 32)
    limit = np.repeat(scale.astype(np.float64) / 2, 32, axis=1) @ np.abs(weight).T
    off = np.abs(matmul(x, matrix) - x @ weight.T)
    assert (off <= 1.01 * limit).all()
    assert (off > limit / 1000).any()


@settings(max_examples=40)
@given(
    tokens=st.integers(0, 9),
    rows=st.integers(0, 40),
    bits=st.integers(1, 8),
    group_size=st.integers(1, 70),
    n_groups=st.integers(1, 12),
    symmetric=st.booleans(),
    kind=st.sampled_from(sorted(SCALE_KINDS)),
    seed=st.integers(0, 2**32 - 1),
)
def test_exact_activations(tokens, rows, bits, group_size, n_groups, symmetric, kind, seed):
    rng = np.random.default_rng(seed)
    matrix = random_packed(rng, (rows, group_size * n_groups), (bits, group_size, symmetric), kind=kind)
    x = rng.standard_normal((tokens, matrix.columns)).astype(np.float32)
    weight = dequantize(matrix).astype(np.float64)
    off = np.abs(matmul(x, matrix, compute="float32") - matmul_reference(x, matrix, "float32"))
    assert (off <= 1.1e-5 * np.abs(x).astype(np.float64) @ np.abs(weight).T + 1e-30).all()


@pytest.mark.parametrize("columns", [512, 520, 1544])
def test_exact_activations_of_rows_longer_than_a_tile(columns):
    rng = np.random.default_rng(columns)
    matrix = random_packed(rng, (33, columns), (3, columns, True))
    x = rng.standard_normal((6, columns)).astype(np.float32)
    weight = dequantize(matrix).astype(np.float64)
    off = np.abs(matmul(x, matrix, compute="float32") - x @ weight.T)
    assert (off <= 1e-5 * np.abs(x).astype(np.float64) @ np.abs(weight).T).all()


@pytest.mark.parametrize("compute", ["int8", "float32"])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 6, 20])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_stay_in_their_token(compute, tokens, value):
    matrix = random_packed(np.random.default_rng(0), (21, 96), (4, 32, False))
    clean = np.ones((tokens, 96), np.float32)
    expected = matmul(clean, matrix, compute=compute)
    for bad in range(tokens):
        x = clean.copy()
        x[bad, 40] = value
        found = matmul(x, matrix, compute=compute)
        assert not np.isfinite(found[bad]).any()
        others = np.arange(tokens) != bad
        np.testing.assert_array_equal(found[others], expected[others])
    # What an earlier call left behind harms no later one.
    np.testing.assert_array_equal(matmul(clean, matrix, compute=compute), expected)


def test_nan_in_a_scale_stays_in_its_row():
    for tokens in (1, 2, 4, 9):
        matrix = random_packed(np.random.default_rng(0), (40, 96), (4, 32, True))
        matrix.scale[[5, 39], [0, 2]] = 0x7E00
        found = matmul(np.ones((tokens, 96), np.float32), matrix)
        assert np.flatnonzero(np.isnan(found).all(axis=0)).tolist() == [5, 39]
        assert np.isnan(found).sum() == 2 * tokens


@pytest.mark.parametrize("compute", ["int8", "float32"])
@pytest.mark.parametrize("tokens", [1, 2, 4, 7])
def test_one_thread_or_all_change_no_byte(compute, tokens, each_thread_count, monkeypatch):
    rng = np.random.default_rng(0)
    matrix = random_packed(rng, (100, 4096), (4, 32, False))
    x = rng.standard_normal((tokens, 4096)).astype(np.float32)
    alone = matmul(x, matrix, compute=compute)
    monkeypatch.setattr(module, "_PARALLEL", 0)
    np.testing.assert_array_equal(matmul(x, matrix, compute=compute), alone)
    each_thread_count(lambda: [matmul(x, matrix, compute=compute).tobytes()])


FORMS_IN_COMPANY = [(2, 16, False), (4, 256, True), (6, 128, True), (7, 256, False), (8, 256, True)]
CASES_IN_COMPANY = [((4, 32, symmetric), edges) for symmetric in (True, False) for edges in ((1, FEW), (FEW + 1, 300))]
CASES_IN_COMPANY += [(form, (1, FEW)) for form in FORMS_IN_COMPANY]


@pytest.mark.parametrize(("form", "edges"), CASES_IN_COMPANY, ids=str)
def test_company_changes_no_byte(form, edges):
    # Few tokens and many are summed in different orders; among themselves it does not matter how many there are.
    rng, (least, most) = np.random.default_rng(0), edges
    matrix = random_packed(rng, (50, 768), form)
    x = rng.standard_normal((most, 768)).astype(np.float32)
    together = matmul(x, matrix)
    for tokens in {least, (least + most) // 2, most - 1}:
        np.testing.assert_array_equal(matmul(x[:tokens], matrix), together[:tokens])
        np.testing.assert_array_equal(matmul(x[most - tokens :], matrix), together[-tokens:])


def test_where_a_weight_lies_changes_no_byte():
    rng = np.random.default_rng(0)
    matrix = random_packed(rng, (50, 608), (4, 32, False))
    x = rng.standard_normal((6, 608)).astype(np.float32)
    for tokens in (1, 4, 6):
        expected = matmul(x[:tokens], matrix)
        for beside in (1, 2, 4, 7, 60):
            moved = PackedMatrix(
                placed(matrix.packed, beside),
                placed(matrix.scale, 2 * beside),
                placed(matrix.zero_point, beside),
                *matrix.form[:2],
                matrix.columns,
                matrix.scale_kind,
            )
            np.testing.assert_array_equal(matmul(placed(x[:tokens], 4 * beside), moved), expected)


def test_writes_where_it_is_told_and_reads_any_layout():
    rng = np.random.default_rng(0)
    matrix = random_packed(rng, (20, 64), (4, 32, True))
    for tokens in (1, 2, 6):
        x = rng.standard_normal((tokens, 64)).astype(np.float32)
        out = np.full((tokens, 20), np.nan, np.float32)
        for compute in ("int8", "float32"):
            assert matmul(x, matrix, compute=compute, out=out) is out
            np.testing.assert_array_equal(out, matmul(np.asfortranarray(x), matrix, compute=compute))
            np.testing.assert_array_equal(out, matmul(np.repeat(x, 2, axis=1)[:, ::2], matrix, compute=compute))


def test_mistakes():
    matrix = random_packed(np.random.default_rng(0), (4, 64), (4, 32, True))
    x = np.zeros((2, 64), np.float32)
    with pytest.raises(ValueError, match="shape"):
        matmul(x[:, :32], matrix)
    with pytest.raises(ValueError, match="compute"):
        matmul(x, matrix, compute="int4")
    for out in (np.zeros((2, 5), np.float32), np.zeros((2, 4)), np.zeros((4, 2), np.float32).T):
        with pytest.raises(ValueError, match="out must be"):
            matmul(x, matrix, out=out)
