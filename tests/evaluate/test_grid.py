import doctest

import numpy as np

import llmq
from llmq.evaluate import grid
from llmq.evaluate.grid import GridUse


def test_doctest():
    found = doctest.testmod(grid)
    assert found.attempted > 0
    assert found.failed == 0


def test_what_is_rounded_to_nearest_is_clipped_nowhere_and_used_at_the_ends():
    weight = np.random.default_rng(0).standard_normal((16, 128)).astype(np.float32)
    use = GridUse(4)
    assert (use.saturation, use.end_codes) == (0, 0)
    q = llmq.quantize_tensor(weight, bits=4, group_size=32, symmetric=False, method="rtn")
    use.add(weight, q)
    assert use.saturation == 0
    assert 2 / 32 <= use.end_codes < 0.2
    use.add(4 * weight, q)
    assert 0.1 < use.saturation < 0.5
