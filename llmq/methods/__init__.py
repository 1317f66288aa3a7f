"""How codes are chosen. To add a method, write one file and one row of `METHODS`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypedDict, Unpack

import numpy as np

from llmq.methods.block_ap import block_ap
from llmq.methods.clipped import entropy, percentile
from llmq.methods.gptq import gptq
from llmq.methods.hqq import hqq
from llmq.methods.imatrix import imatrix
from llmq.methods.mse import mse
from llmq.methods.protocol import Method
from llmq.methods.rtn import rtn
from llmq.spec import FLOAT_DTYPES, QuantizedTensor, QuantSpec, ScaleDtype

if TYPE_CHECKING:
    from llmq.observers.inputs import InputStatistics

__all__ = ["DATA_FREE", "METHODS", "Method", "quantize_tensor"]

DATA_FREE: Final = "mse"
"""What weights get where nothing else is said, or calibration made them no better."""

METHODS: Final[dict[str, Method]] = {
    "rtn": Method(rtn),
    "percentile": Method(percentile),
    "entropy": Method(entropy),
    "hqq": Method(hqq),
    "mse": Method(mse),
    "imatrix": Method(imatrix, "energy"),
    "gptq": Method(gptq, "moments"),
    "block-ap": Method(block_ap, "block"),
}
"""Ways to choose codes by name; those that need statistics are calibrated, and one that needs a
whole block can do nothing but that."""


class SpecFields(TypedDict, total=False):
    """The further fields of `QuantSpec` that `quantize_tensor` takes as keywords."""

    symmetric: bool
    range: Literal["full", "narrow"]
    signed_scale: bool
    scale_dtype: ScaleDtype | None


def quantize_tensor(
    weight: np.ndarray,
    bits: int = 4,
    group_size: int = 64,
    *,
    method: str = "mse",
    statistics: InputStatistics | None = None,
    **spec_fields: Unpack[SpecFields],
) -> QuantizedTensor:
    """Quantize one weight held in memory.

    Parameters
    ----------
    weight : float (out_features, in_features)
        float16, bfloat16 (ml_dtypes), float32 or float64, of either byte order and any layout.
    bits : int
        Width of a code, 1 to 8.
    group_size : int
        Elements of a row that share a scale; -1 for the whole row.
    method : str
        A key of `METHODS` that needs no whole block.
    statistics : InputStatistics, optional
        Of the weight's inputs, for methods that need them: `llmq.observers.InputMoments` collects them.
    **spec_fields
        Further fields of `QuantSpec`: `symmetric`, `range`, `signed_scale`, `scale_dtype` (the weight's own by
        default).

    Returns
    -------
    QuantizedTensor

    Raises
    ------
    TypeError
        The weight is not a 2-D float array.
    ValueError
        Fields that make no sense, a group size that does not divide `in_features`, an unknown method or one for whole
        blocks, missing statistics, or a weight with NaN or infinity.
    """
    weight = np.asarray(weight)
    native = weight.dtype.newbyteorder("=")
    names = [name for name, dtype in FLOAT_DTYPES.items() if dtype == native]
    if weight.ndim != 2 or not (names or native == np.float64):
        raise TypeError(f"weight must be a 2-D float array, not {weight.dtype} of shape {weight.shape}")
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    spec = QuantSpec(bits=bits, group_size=group_size, **spec_fields)
    if weight.shape[1] == 0 or not spec.divides(weight.shape[1]):
        raise ValueError(f"group size {group_size} does not divide rows of {weight.shape[1]}")
    with np.errstate(over="ignore"):  # beyond float32 is infinity, which is refused
        rows = np.ascontiguousarray(weight, dtype=native if names else np.float32)
    scale_dtype: ScaleDtype = names[0] if names else "float32"  # type: ignore[assignment]
    try:
        return METHODS[method].quantize(rows, spec.resolve(weight.shape[1], scale_dtype), statistics)
    except FloatingPointError as error:
        raise ValueError(str(error)) from None
