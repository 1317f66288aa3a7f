"""How weights are quantized, a quantized weight, and what a user asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, Literal, get_args

import ml_dtypes
import numpy as np

from llmq_kernels.layout import SCALE_KINDS, PackedMatrix

__all__ = [
    "FLOAT_DTYPES",
    "Assigned",
    "Goal",
    "Override",
    "QuantScheme",
    "QuantSpec",
    "QuantizedTensor",
    "Recipe",
    "Watch",
]

ScaleDtype = Literal["float16", "bfloat16", "float32"]
Strategy = Literal["tensor", "channel", "group", "token"]

FLOAT_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
}
"""NumPy dtypes of the float formats by name."""


@dataclass(frozen=True)
class QuantSpec:
    """How the values of a weight or of activations map to codes: `x = scale * (code - zero_point)`.

    Parameters
    ----------
    bits : int
        Width of a code, 1 to 8. One bit is the sign grid `{-s, +s}`.
    group_size : int
        Elements along `in_features` that share a scale; -1 means the whole row (per channel). Counts for the strategy
        `group` only, and is -1 for others.
    symmetric : bool
        Symmetric grids have their zero point at `2**(bits-1)`; asymmetric ones store a zero point for each group,
        and their range always includes zero.
    range : {"full", "narrow"}
        `narrow` leaves the most negative code of a symmetric grid out (the textbook's range).
    signed_scale : bool
        Whether a method may choose negative scales, so that the spare code of a full symmetric range faces the
        longer tail.
    scale_dtype : {"float16", "bfloat16", "float32"} or None
        How scales are stored; None takes the dtype of the weight (float32 for float64).
    grid : {"uniform"}
        Which values the codes stand for, before scaling.
    strategy : {"tensor", "channel", "group", "token"}
        What shares a scale: everything, an output channel of a weight (a row, a filter), a group of a row, or one
        token (sample) of activations. The words are those of compressed-tensors.
    dynamic : bool
        Whether ranges of activations are found at run time; else calibration finds them (static).
    observer : str
        A key of `llmq.observers.OBSERVERS`: what chooses static ranges.

    Raises
    ------
    ValueError
        A width or group size out of range, a narrow range of one bit, a value of another type, or a combination that
        makes no sense.
    """

    bits: int = 4
    group_size: int = 64
    symmetric: bool = True
    range: Literal["full", "narrow"] = "full"
    signed_scale: bool = True
    scale_dtype: ScaleDtype | None = None
    grid: Literal["uniform"] = "uniform"
    strategy: Strategy = "group"
    dynamic: bool = False
    observer: str = "minmax"

    def __post_init__(self) -> None:
        self._check_types()
        if self.bits not in range(1, 9):
            raise ValueError(f"bits must be 1 to 8, not {self.bits}")
        if self.group_size != -1 and self.group_size < 1:
            raise ValueError(f"group size must be positive, or -1 for the whole row, not {self.group_size}")
        if self.range == "narrow" and (self.bits == 1 or not self.symmetric):
            raise ValueError("a narrow range needs a symmetric grid of at least 2 bits")
        if self.range not in ("full", "narrow") or self.grid != "uniform":
            raise ValueError(f"unknown range {self.range!r} or grid {self.grid!r}")
        if self.strategy not in get_args(Strategy):
            raise ValueError(f"unknown strategy {self.strategy!r}: choose one of {', '.join(get_args(Strategy))}")
        if self.strategy == "token" and not self.dynamic:
            raise ValueError("tokens have ranges at run time only: the strategy token needs dynamic=True")
        if self.strategy != "group":
            object.__setattr__(self, "group_size", -1)

    def _check_types(self) -> None:
        for name in ("bits", "group_size"):
            object.__setattr__(self, name, _whole(name, getattr(self, name)))
        for name in ("symmetric", "signed_scale", "dynamic"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, not {getattr(self, name)!r}")
        if self.scale_dtype is not None and self.scale_dtype not in FLOAT_DTYPES:
            raise ValueError(f"scale_dtype must be {', '.join(FLOAT_DTYPES)} or None, not {self.scale_dtype!r}")

    def resolve(self, columns: int, dtype: ScaleDtype) -> QuantSpec:
        """Fill in what depends on the weight: a channel is a group as long as a row, and scales have its dtype."""
        group_size = columns if self.group_size == -1 else self.group_size
        return replace(self, strategy="group", group_size=group_size, scale_dtype=self.scale_dtype or dtype)

    def divides(self, columns: int) -> bool:
        """Whether rows of `columns` elements split into whole groups."""
        return self.group_size == -1 or columns % self.group_size == 0


def _whole(name: str, value: Any) -> int:
    """Value as an int; True and 8.0 are none."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    return int(value)


@dataclass(frozen=True)
class QuantScheme:
    """How the tensors of one layer are quantized.

    Parameters
    ----------
    weight : QuantSpec
        By default 8 bits, a scale for each output channel, symmetric, narrow range.
    input : QuantSpec or None
        By default 8 bits, one scale for the whole tensor, asymmetric, static. None keeps activations in floating point.
    output : QuantSpec or None
        Of a layer whose results go on as integers; None gives results in floating point.

    Raises
    ------
    ValueError
        No spec, or one that its tensor cannot have: weights that are dynamic or by token, activations by channel or by
        group, activations of one bit, or outputs with ranges at run time.
    """

    weight: QuantSpec = QuantSpec(bits=8, range="narrow", signed_scale=False, scale_dtype="float32", strategy="channel")
    input: QuantSpec | None = QuantSpec(bits=8, symmetric=False, scale_dtype="float32", strategy="tensor")
    output: QuantSpec | None = None

    def __post_init__(self) -> None:
        for name in ("weight", "input", "output"):
            found = getattr(self, name)
            if not isinstance(found, QuantSpec) and (name == "weight" or found is not None):
                raise ValueError(f"{name} must be a QuantSpec, not {found!r}")
        if self.weight.dynamic or self.weight.strategy == "token":
            raise ValueError("weights have fixed ranges: neither dynamic nor by token")
        for name, spec in (("input", self.input), ("output", self.output)):
            if spec is None:
                continue
            if spec.strategy not in ("tensor", "token"):
                raise ValueError(f"{name}: activations are quantized by tensor or token, not by {spec.strategy}")
            if spec.bits == 1:
                raise ValueError(f"{name}: activations have 2 to 8 bits, not 1")
        if self.output is not None and (self.output.dynamic or self.input is None):
            raise ValueError("output: integers need an integer input and a range known beforehand, not a dynamic one")


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A quantized weight of shape `(out_features, in_features)`.

    Parameters
    ----------
    spec : QuantSpec
        Resolved: `group_size` divides `in_features` and `scale_dtype` is set.
    shape : (int, int)
        `(out_features, in_features)`.
    packed : uint8 (out_features, row_bytes)
        Dense little-endian bit stream of unsigned codes, rows padded to 32 bits.
    scale : float16, bfloat16 or float32 (out_features, n_groups)
        Scales, of either sign.
    zero_point : uint8 (out_features, n_groups) or None
        None for symmetric grids.
    """

    spec: QuantSpec
    shape: tuple[int, int]
    packed: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray | None = None

    @cached_property
    def matrix(self) -> PackedMatrix:
        """The same bytes as kernels take them, checked and not copied; ValueError or TypeError if they do not fit."""
        name = str(self.spec.scale_dtype)
        if self.scale.dtype != FLOAT_DTYPES.get(name):
            raise TypeError(f"scale must be {name}, not {self.scale.dtype}")
        return PackedMatrix(
            packed=self.packed,
            scale=self.scale.view(np.uint16),
            zero_point=self.zero_point,
            bits=self.spec.bits,
            group_size=self.spec.group_size,
            columns=self.shape[1],
            scale_kind=SCALE_KINDS[name],
        )

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points; zero points count as stored, `bits` bits each."""
        zero_points = 0 if self.zero_point is None else -(-self.zero_point.size * self.spec.bits // 8)
        return int(self.packed.nbytes + self.scale.nbytes + zero_points)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits over elements."""
        return 8.0 * self.nbytes / (self.shape[0] * self.shape[1])

    def codes(self) -> np.ndarray:
        """Unpacked codes, uint8 (out_features, in_features)."""
        from llmq_kernels.pack import unpack

        return unpack(self.packed, self.spec.bits, self.shape[1])

    def dequantize(self) -> np.ndarray:
        """The weight the codes stand for, float32 (out_features, in_features)."""
        from llmq_kernels.quantize import dequantize

        return dequantize(self.matrix)


@dataclass(frozen=True)
class Override:
    """Settings for the tensors whose name a regular expression finds (`--set 'REGEX=bits:8,group:32'`)."""

    pattern: str
    bits: int | None = None
    group_size: int | None = None
    symmetric: bool | None = None

    def changes(self) -> dict[str, Any]:
        """The fields of a `QuantSpec` that it names."""
        found = {name: getattr(self, name) for name in ("bits", "group_size", "symmetric")}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Goal:
    """What a mixture of widths must keep to: one of the first three.

    Parameters
    ----------
    size : int or None
        Bytes of all weight files.
    bits_per_weight : float or None
        Of the weights whose widths are chosen and of the other quantized linears, scales included.
    ram : int or None
        Bytes of weights, key-value cache and process while the model runs.
    context : int or None
        Tokens of that cache.
    kv_bits : int
        Bits of an element of that cache.
    group_sizes : tuple of int
        To choose from.
    """

    size: int | None = None
    bits_per_weight: float | None = None
    ram: int | None = None
    context: int | None = None
    kv_bits: int = 16
    group_sizes: tuple[int, ...] = (32, 64, 128)


@dataclass(frozen=True)
class Assigned:
    """What becomes of the tensor of exactly this name; `bits` of None keeps it."""

    name: str
    bits: int | None
    group_size: int = -1
    symmetric: bool = True


@dataclass(frozen=True)
class Recipe:
    """What a user asks of `llmq quantize`.

    Parameters
    ----------
    spec : QuantSpec
        For every linear that nothing else names; by group or channel, for checkpoints hold nothing else.
    method : str
        A key of `llmq.methods.METHODS`.
    lm_head, embeddings : int, "auto" or None
        Bits of an untied head and of the embedding table; None keeps them as they are, and "auto" lets `goal` choose.
    ignore : tuple of str
        Regular expressions (searched for in tensor names) of weights to keep.
    overrides : tuple of Override
        Later ones win.
    target : {"llmq", "transformers", "vllm", "onnx"}
        Who must be able to read the result (`--for`).
    goal : Goal or None
        What the widths must keep to where they are chosen tensor by tensor.
    assigned : tuple of Assigned
        What was chosen, or is replayed; nothing but reasons to keep a tensor comes before it.
    """

    spec: QuantSpec = field(default_factory=QuantSpec)
    method: str = "mse"
    lm_head: int | Literal["auto"] | None = 8
    embeddings: int | Literal["auto"] | None = None
    ignore: tuple[str, ...] = ()
    overrides: tuple[Override, ...] = ()
    target: Literal["llmq", "transformers", "vllm", "onnx"] = "llmq"
    goal: Goal | None = None
    assigned: tuple[Assigned, ...] = ()

    def __post_init__(self) -> None:
        if self.spec.strategy not in ("group", "channel") or self.spec.dynamic:
            raise ValueError(
                f"a checkpoint holds scales by group or channel, not by {self.spec.strategy}, and none that are dynamic"
            )


Watch = Callable[[str, np.ndarray, QuantizedTensor], None]
"""Told of each block of rows of a weight: its name, the rows (float16, bfloat16 or float32) and what they became."""
