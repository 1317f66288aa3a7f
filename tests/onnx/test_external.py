import numpy as np
import pytest
from onnx import TensorProto

from llmq.checkpoint.header import TensorInfo
from llmq.errors import UnsupportedError
from llmq.onnx.external import OwnData, checkpoint_tensor
from llmq.system.progress import NullProgress


def test_own_data_is_planned_then_written(tmp_path):
    own = OwnData("m.onnx.data")
    one = own.add("one", np.uint8, (3, 5), lambda: (np.full((3, 5), 7, np.uint8),))
    two = own.add("two", np.float32, (2, 2), lambda: (np.ones((1, 2), np.float32), np.zeros((1, 2), np.float32)))
    assert (one.offset, one.nbytes, two.offset, two.nbytes, own.nbytes) == (0, 15, 64, 16, 80)
    own.write(tmp_path / "data", NullProgress())
    held = (tmp_path / "data").read_bytes()
    assert len(held) == 80
    assert held[:15] == bytes([7] * 15)
    assert np.frombuffer(held[64:], np.float32).tolist() == [1, 1, 0, 0]


def test_tensors_of_a_checkpoint():
    info = TensorInfo("w", "BF16", (6, 4), "model.safetensors", 100, 48)
    proto = checkpoint_tensor(info).proto()
    assert (proto.data_type, list(proto.dims)) == (TensorProto.BFLOAT16, [6, 4])
    assert {e.key: e.value for e in proto.external_data} == {
        "location": "model.safetensors",
        "offset": "100",
        "length": "48",
    }
    part = checkpoint_tensor(info).part(2, 6, 2)
    assert (part.shape, part.offset, part.nbytes) == ((2, 2, 4), 116, 32)
    with pytest.raises(UnsupportedError, match=r"model\.safetensors: w: dtype I32"):
        checkpoint_tensor(TensorInfo("w", "I32", (1,), "model.safetensors", 0, 4))
