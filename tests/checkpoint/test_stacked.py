import pytest

from llmq.checkpoint.header import TensorInfo
from llmq.checkpoint.stacked import per_expert
from llmq.errors import InputError


def info(name, shape, offset=0, dtype="BF16"):
    nbytes = 2
    for size in shape:
        nbytes *= size
    return TensorInfo(name, dtype, shape, "model.safetensors", offset, nbytes)


def test_each_part_stands_where_it_stood():
    tensors = {
        t.name: t
        for t in (
            info("model.layers.0.mlp.experts.gate_up_proj", (3, 8, 5), 1000),
            info("model.layers.0.mlp.experts.down_proj", (3, 5, 4), 2000),
            info("model.layers.0.mlp.gate.weight", (3, 5), 9000),
        )
    }
    found = per_expert(tensors, {"model_type": "qwen3_moe"})
    assert len(found) == 10
    up = found["model.layers.0.mlp.experts.2.up_proj.weight"]
    assert (up.shape, up.offset, up.nbytes) == ((4, 5), 1000 + 5 * 40, 40)
    down = found["model.layers.0.mlp.experts.1.down_proj.weight"]
    assert (down.shape, down.offset, down.nbytes) == ((5, 4), 2040, 40)
    offsets = [t.offset for t in found.values()]
    assert offsets == sorted(offsets), "in the order of their bytes"
    renamed = per_expert(tensors, {"model_type": "mixtral"})
    assert "model.layers.0.block_sparse_moe.gate.weight" in renamed
    assert renamed["model.layers.0.block_sparse_moe.experts.0.w3.weight"].offset == 1040


def test_other_checkpoints_stay_as_they_are():
    stacked = {"a.mlp.experts.down_proj": info("a.mlp.experts.down_proj", (3, 5, 4))}
    assert per_expert(stacked, {"model_type": "llama4_text"}) is stacked
    apart = {"a.mlp.experts.0.down_proj.weight": info("a.mlp.experts.0.down_proj.weight", (5, 4))}
    assert per_expert(apart, {"model_type": "qwen3_moe"}) is apart


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 4), (2, 2, 2, 2)])
def test_what_is_no_stack(shape):
    tensors = {"a.mlp.experts.gate_up_proj": info("a.mlp.experts.gate_up_proj", shape)}
    with pytest.raises(InputError, match="not a stack of experts"):
        per_expert(tensors, {"model_type": "qwen3_moe"})


def test_both_ways_at_once():
    names = {"a.mlp.experts.down_proj": (1, 5, 4), "a.mlp.experts.0.down_proj.weight": (5, 4)}
    tensors = {name: info(name, shape) for name, shape in names.items()}
    with pytest.raises(InputError, match="both stacked and alone"):
        per_expert(tensors, {"model_type": "qwen3_moe"})
