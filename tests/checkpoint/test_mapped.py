import os

import numpy as np
import pytest

from llmq.checkpoint.mapped import MappedCheckpoint
from llmq.checkpoint.source import open_source
from llmq.errors import InputError


@pytest.mark.parametrize("fixture", ["pico", "sharded"])
def test_views(request, fixture):
    folder, tensors = request.getfixturevalue(fixture)
    with open_source(folder) as source:
        mapped = MappedCheckpoint(source)
        views = {name: mapped.tensor(name) for name in tensors}
    for name, tensor in tensors.items():
        assert views[name].dtype == tensor.dtype
        assert views[name].shape == tensor.shape
        assert views[name].tobytes() == tensor.tobytes()
        assert not views[name].flags.writeable
        assert not views[name].flags.owndata


def test_unaligned_tensors(tmp_path, make_raw):
    data = np.arange(1, 20, dtype=np.uint8).tobytes()
    header = {
        "u": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "h": {"dtype": "BF16", "shape": [2], "data_offsets": [3, 7]},
        "p": {"dtype": "I32", "shape": [1, 3], "data_offsets": [7, 19]},
    }
    text = str(header).replace("'", '"').encode()
    text += b" " * (-len(text) % 8)
    (tmp_path / "model.safetensors").write_bytes(make_raw(text, data))
    with open_source(tmp_path) as source:
        mapped = MappedCheckpoint(source)
        half, packed = mapped.tensor("h"), mapped.tensor("p")
    assert half.tobytes() == data[3:7]
    assert half.flags.aligned
    assert not half.flags.writeable
    assert packed.tobytes() == data[7:]
    assert packed.base is not None
    assert np.shares_memory(packed, mapped.bytes_of("p"))
    assert np.shares_memory(packed.view(np.uint8), mapped.bytes_of("p"))


def test_truncated_after_opening(pico):
    folder, _ = pico
    with open_source(folder) as source:
        os.truncate(folder / "model.safetensors", 2000)
        with pytest.raises(InputError, match="became shorter"):
            MappedCheckpoint(source).tensor("model.norm.weight")
        with pytest.raises(KeyError):
            MappedCheckpoint(source).tensor("absent")
