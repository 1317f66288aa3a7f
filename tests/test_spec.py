from typing import Any

import numpy as np
import pytest

from llmq.spec import QuantScheme, QuantSpec, Recipe


def test_only_groups_have_a_size() -> None:
    assert QuantSpec(strategy="channel", group_size=64) == QuantSpec(strategy="channel")
    resolved = QuantSpec(strategy="channel").resolve(96, "float16")
    assert (resolved.group_size, resolved.scale_dtype) == (96, "float16")
    assert resolved == QuantSpec(group_size=-1).resolve(96, "float16")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strategy": "row"}, "tensor, channel, group, token"),
        ({"strategy": "token"}, "needs dynamic=True"),
        ({"bits": 8.0}, "bits must be a whole number, not 8.0"),
        ({"bits": True}, "bits must be a whole number, not True"),
        ({"group_size": "64"}, "group_size must be a whole number, not '64'"),
        ({"symmetric": "no"}, "symmetric must be True or False, not 'no'"),
        ({"scale_dtype": "float8"}, "scale_dtype must be float16, bfloat16, float32 or None, not 'float8'"),
    ],
)
def test_specs_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantSpec(**fields)


def test_numbers_of_numpy_are_numbers() -> None:
    spec = QuantSpec(bits=np.int64(8), group_size=np.int32(32))
    assert (type(spec.bits), type(spec.group_size)) == (int, int)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": QuantSpec(strategy="tensor", dynamic=True)}, "weights have fixed ranges"),
        ({"weight": None}, "weight must be a QuantSpec, not None"),
        ({"input": 8}, "input must be a QuantSpec, not 8"),
        ({"input": QuantSpec(strategy="channel")}, "not by channel"),
        ({"input": QuantSpec(strategy="tensor", bits=1)}, "2 to 8 bits"),
        ({"output": QuantSpec(strategy="token", dynamic=True)}, "known beforehand"),
        ({"input": None, "output": QuantSpec(strategy="tensor")}, "integer input"),
    ],
)
def test_schemes_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantScheme(**fields)


def test_checkpoints_hold_groups_and_channels() -> None:
    assert Recipe(spec=QuantSpec(strategy="channel")).spec.group_size == -1
    with pytest.raises(ValueError, match="not by tensor"):
        Recipe(spec=QuantSpec(strategy="tensor"))
