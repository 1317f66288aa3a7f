from typing import Any

import pytest

from llmq.spec import QuantScheme, QuantSpec, Recipe


def test_only_groups_have_a_size() -> None:
    assert QuantSpec(strategy="channel", group_size=64) == QuantSpec(strategy="channel")
    resolved = QuantSpec(strategy="channel").resolve(96, "float16")
    assert (resolved.group_size, resolved.scale_dtype) == (96, "float16")
    assert resolved == QuantSpec(group_size=-1).resolve(96, "float16")


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"strategy": "row"}, "tensor, channel, group, token"), ({"strategy": "token"}, "needs dynamic=True")],
)
def test_specs_that_make_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantSpec(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": QuantSpec(strategy="tensor", dynamic=True)}, "weights have fixed ranges"),
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
