import errno
import tempfile

import numpy as np
import pytest

from llmq.errors import ResourceError
from llmq.runtime import states as module
from llmq.runtime.states import HiddenStates


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_what_is_written_is_read(budget, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    x = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    with HiddenStates(7, 5, budget) as states:
        assert states.in_file == (budget == 0)
        states.write(0, x[:3])
        states.write(3, x[3:])
        assert np.array_equal(states.read(2, 6), x[2:6])
        changed = states.read(0, 3)
        changed *= 2
        states.write(0, changed)
        assert np.array_equal(states.read(0, 7), np.concatenate([2 * x[:3], x[3:]]))
        assert list(tmp_path.iterdir()) == []


def test_no_room(monkeypatch):
    def full(fd, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "preallocate", full)
    with pytest.raises(ResourceError, match="No space left") as error:
        HiddenStates(7, 5, 0)
    assert "TMPDIR" in error.value.hint
