import pytest

from llmq.errors import UnsupportedError
from llmq.onnx.matmul_nbits import Blocks, blocks_of, has_fast_kernel
from llmq.spec import QuantSpec


@pytest.mark.parametrize(
    ("bits", "group_size", "expected"),
    [
        (4, 64, Blocks(4, 64, 1)),
        (8, 128, Blocks(8, 128, 1)),
        (2, 256, Blocks(2, 128, 2)),  # no kernel of 2 bits takes larger blocks
        (4, 4096, Blocks(4, 128, 32)),
        (4, 48, Blocks(4, 16, 3)),
        (4, 11008, Blocks(4, 128, 86)),
        (3, 32, Blocks(4, 32, 1, widened=4)),
        (1, 32, Blocks(2, 32, 1, widened=1)),
        (6, 32, Blocks(8, 32, 1, widened=96)),
    ],
)
def test_blocks(bits, group_size, expected):
    assert blocks_of(QuantSpec(bits=bits, group_size=group_size), "m") == expected


@pytest.mark.parametrize("group_size", [8, 24, 100])
def test_groups_without_blocks(group_size):
    with pytest.raises(UnsupportedError, match="lm_head: groups that ONNX Runtime cannot multiply"):
        blocks_of(QuantSpec(group_size=group_size), "lm_head")


def test_fast_kernels():
    assert has_fast_kernel(Blocks(4, 16, 1), "float32")
    assert not has_fast_kernel(Blocks(8, 64, 1), "float32")
    assert not has_fast_kernel(Blocks(2, 16, 1), "int8")
    assert all(has_fast_kernel(Blocks(bits, 32, 1), "int8") for bits in (2, 4, 8))
