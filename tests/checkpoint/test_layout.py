import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import deserialize

from llmq.checkpoint.dtypes import NUMPY_DTYPES, bytes_per_element
from llmq.checkpoint.header import parse_header
from llmq.checkpoint.layout import OutputTensor, index_of, lay_out

shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
tensors = st.lists(st.tuples(st.sampled_from(sorted(NUMPY_DTYPES)), shapes), max_size=8).map(
    lambda pairs: [OutputTensor(f"t{n}.é", dtype, shape) for n, (dtype, shape) in enumerate(pairs)]
)


@given(tensors, st.integers(1, 2000))
def test_layouts_are_sound(planned, size):
    shards = lay_out(planned, size)
    assert [tensor for shard in shards for tensor in shard.tensors] == planned
    for shard in shards:
        content = shard.header + bytes(shard.data_bytes)
        assert len(content) == shard.size
        assert len(shard.header) % 64 == 0
        length = int.from_bytes(content[:8], "little")
        header = parse_header(content[8 : 8 + length], file=shard.file, file_size=len(content))
        assert {i.name: (i.dtype, i.shape, i.offset, i.nbytes) for i in header.tensors} == {
            t.name: (t.dtype, t.shape, shard.offsets[t.name], t.nbytes) for t in shard.tensors
        }
        assert len(deserialize(content)) == len(shard.tensors)
        assert shard.data_bytes <= size or len(shard.tensors) == 1


def test_names_of_shards():
    one = [OutputTensor("a", "U8", (8,))]
    assert [shard.file for shard in lay_out(one, 1)] == ["model.safetensors"]
    assert [shard.file for shard in lay_out([], 1)] == ["model.safetensors"]
    two = [*one, OutputTensor("b", "U8", (1,))]
    shards = lay_out(two, 8)
    assert index_of(shards) == {
        "metadata": {"total_size": 9},
        "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
    }


def test_refused():
    tensor = OutputTensor("a", "U8", (1,))
    for planned, size in (([tensor, tensor], 9), ([OutputTensor("__metadata__", "U8", ())], 9), ([tensor], 0)):
        with pytest.raises(ValueError, match=r"duplicate or reserved|positive"):
            lay_out(planned, size)


def test_dtypes():
    for code, dtype in NUMPY_DTYPES.items():
        assert bytes_per_element(code) == dtype.itemsize
