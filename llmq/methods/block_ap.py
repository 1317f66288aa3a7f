"""Block-AP: all parameters of a block's linears are trained together; only calibrating a whole model can do that."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import numpy as np

    from llmq.observers.inputs import InputStatistics
    from llmq.spec import QuantSpec


def block_ap(weight: np.ndarray, spec: QuantSpec, statistics: InputStatistics | None = None) -> NoReturn:  # noqa: ARG001
    """Refuse: weights, scales and zero points are trained block by block; see `llmq.learn.tune`.

    Raises
    ------
    ValueError
        Always.
    """
    raise ValueError(
        "block-ap trains the linears of a decoder block together and quantizes no single tensor: "
        "use llmq.quantize(model, output, method='block-ap'), or method='gptq' here"
    )
