"""Multiply where every array touches a page that must not be: a read or write beyond one ends the process.

Arguments: `packed` or `dense`. Prints how many products were right.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator

import numpy as np
from packed_cases import FEW, VARIANTS, Variant, check_product, random_packed

from llmq_kernels.bundle import Bundle
from llmq_kernels.dense import matmul_dense, matmul_dense_reference
from llmq_kernels.floats import narrow
from llmq_kernels.layout import SCALE_KINDS, PackedMatrix
from llmq_kernels.matmul import matmul

_mprotect = ctypes.CDLL(None, use_errno=True).mprotect
_mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
PAGE = mmap.PAGESIZE


def fenced(array: np.ndarray, at_end: bool) -> np.ndarray:
    """Copy between two pages that cannot be touched: so that the array ends, or begins, right beside one."""
    inner = -(-max(array.nbytes, 1) // PAGE) * PAGE
    pages = np.frombuffer(mmap.mmap(-1, inner + 2 * PAGE), np.uint8)
    for start in (0, PAGE + inner):
        if _mprotect(pages.ctypes.data + start, PAGE, 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    start = PAGE + (inner - array.nbytes if at_end else 0)
    found = pages[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    found[...] = array
    return found


def fenced_matrix(matrix: PackedMatrix, at_end: bool) -> PackedMatrix:
    """Fence all arrays of a weight."""
    arrays = (matrix.packed, matrix.scale, matrix.zero_point)
    packed, scale, zero = (None if array is None else fenced(array, at_end) for array in arrays)
    return PackedMatrix(packed, scale, zero, matrix.bits, matrix.group_size, matrix.columns, matrix.scale_kind)


def shapes(variant: Variant) -> Iterator[tuple[int, int, int]]:
    """Rows, columns and size of a group: around the rows of a step and a tile, and rows that fill no chunk."""
    for number, rows in enumerate((1, 2, 3, 5, 8, 15, 16, 17, 33)):
        group_size = variant.group_sizes[number % len(variant.group_sizes)]
        for groups in {1, 1 + number % 5, 11 if group_size < 256 else 3}:
            yield rows, group_size * groups, group_size


def packed_products() -> int:
    """Multiply by packed weights of all variants."""
    rng = np.random.default_rng(0)
    done = 0
    for variant in VARIANTS:
        tokens = sorted({n for n in variant.tokens if n <= FEW} | {5, 9})
        for rows, columns, group_size in shapes(variant):
            for n in tokens:
                at_end, kind = bool(done % 2), sorted(SCALE_KINDS)[done // 2 % 3]
                symmetric = variant.symmetric[done // 6 % len(variant.symmetric)]
                matrix = random_packed(rng, (rows, columns), (variant.bits, group_size, symmetric), kind=kind)
                x = rng.standard_normal((n, columns)).astype(np.float32)
                out = fenced(np.zeros((n, rows), np.float32), at_end)
                check_product(x, matrix, matmul(fenced(x, at_end), fenced_matrix(matrix, at_end), out=out))
                done += 1
    return done


def bundles() -> int:
    """Multiply by several weights at once."""
    rng = np.random.default_rng(0)
    done = 0
    for rows in ((1, 1), (3, 1, 2), (40, 7), (16, 16, 5)):
        for tokens in (1, 3, 9):
            at_end = bool(done % 2)
            matrices = [random_packed(rng, (n, 352), (4, 32, False)) for n in rows]
            x = rng.standard_normal((tokens, 352)).astype(np.float32)
            outs = [fenced(np.zeros((tokens, n), np.float32), at_end) for n in rows]
            Bundle([fenced_matrix(matrix, at_end) for matrix in matrices]).multiply(fenced(x, at_end), outs)
            for matrix, out in zip(matrices, outs, strict=True):
                check_product(x, matrix, out)
            done += 1
    return done


def dense_products() -> int:
    """Multiply by weights that are not quantized."""
    rng = np.random.default_rng(0)
    done = 0
    for kind in sorted(SCALE_KINDS):
        for tokens in (1, 2, 3, 4, 5):
            for rows in (1, 2, 4, 7, 19):
                for columns in (1, 3, 8, 13, 16, 63, 517):
                    at_end = bool(done % 2)
                    weight = rng.standard_normal((rows, columns)).astype(np.float32)
                    stored = weight if kind == "float32" else narrow(weight, kind)
                    x = rng.standard_normal((tokens, columns)).astype(np.float32)
                    out = fenced(np.zeros((tokens, rows), np.float32), at_end)
                    matmul_dense(fenced(x, at_end), fenced(stored, at_end), kind, out=out)
                    off = np.abs(out - matmul_dense_reference(x, stored, kind))
                    assert (off <= 1e-5 * (1e-30 + np.abs(x) @ np.abs(weight).T)).all(), (kind, tokens, rows, columns)
                    done += 1
    return done


def main() -> None:
    """Prove the fences, or multiply."""
    what = sys.argv[1]
    if what == "beyond":
        array = fenced(np.zeros(3, np.float32), at_end=True)
        print(ctypes.c_float.from_address(array.ctypes.data + array.nbytes))
    print(dense_products() if what == "dense" else packed_products() + bundles())


if __name__ == "__main__":
    main()
