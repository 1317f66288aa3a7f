"""Packed weights as `MatMulNBits` and `GatherBlockQuantized` of ONNX Runtime take them.

Both want codes of 2, 4 or 8 bits, row by row as a little-endian bit stream: the bytes of `weight_packed`, in blocks of
a power of two from 16 on; float32 scales, one a block; and zero points packed along a row as codes are. Codes of other
widths are widened to the next of these, which changes no value; larger groups are several blocks of one scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from onnx import TensorProto

from llmq.errors import UnsupportedError
from llmq.onnx.external import ExternalTensor, checkpoint_tensor
from llmq_kernels.pack import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llmq.checkpoint.header import TensorInfo
    from llmq.onnx.external import OwnData
    from llmq.spec import QuantizedTensor, QuantSpec

__all__ = ["Blocks", "Compute", "PackedParts", "blocks_of", "has_fast_kernel", "store_parts"]

Compute = Literal["int8", "float32"]

_WIDTHS: Final = (2, 4, 8)
_SMALLEST: Final = 16
_LARGEST: Final = 128
"""Of a block: beyond it, ONNX Runtime has no kernel for 2 bits."""

_PART: Final = 1 << 20
_HINT: Final = "make it anew with `llmq quantize --for onnx`"


@dataclass(frozen=True)
class Blocks:
    """How the codes of a weight are cut.

    Parameters
    ----------
    bits : int
        2, 4 or 8.
    size : int
        Codes of a block, a power of two from 16 to 128.
    repeat : int
        Blocks of a group.
    widened : int
        What is added to codes and zero points of another width; with none, they stay as they are stored.
    """

    bits: int
    size: int
    repeat: int
    widened: int | None = None

    @property
    def attributes(self) -> dict[str, int]:
        """Attributes of the operators."""
        return {"bits": self.bits, "block_size": self.size}


def blocks_of(spec: QuantSpec, module: str) -> Blocks:
    """Choose the blocks of a quantized weight.

    Parameters
    ----------
    spec : QuantSpec
        Resolved.
    module : str
        Named in errors.

    Raises
    ------
    UnsupportedError
        Groups that are no multiple of 16.
    """
    if spec.group_size % _SMALLEST:
        raise UnsupportedError(
            "groups that ONNX Runtime cannot multiply",
            tensor=module,
            expected="a multiple of 16",
            found=f"group size {spec.group_size}",
            hint=_HINT,
        )
    size = min(spec.group_size & -spec.group_size, _LARGEST)
    bits = next(width for width in _WIDTHS if width >= spec.bits)
    # The middle of the range stays the middle, so that symmetric weights need no zero points.
    widened = None if bits == spec.bits else (1 << bits >> 1) - (1 << spec.bits >> 1)
    return Blocks(bits, size, spec.group_size // size, widened)


def has_fast_kernel(blocks: Blocks, compute: Compute) -> bool:
    """Whether ONNX Runtime multiplies such codes as they are, and does not first turn the whole weight into floats."""
    if compute == "float32":
        return blocks.bits == 4
    return blocks.bits != 2 or blocks.size > _SMALLEST


@dataclass(frozen=True)
class PackedParts:
    """What a packed weight is made of in a graph.

    Parameters
    ----------
    codes : ExternalTensor
        uint8 (out_features, row_bytes).
    scales : ExternalTensor
        float32 (out_features, n_blocks).
    zero_points : ExternalTensor or None
        uint8 (out_features, ceil(n_blocks * bits / 8)).
    """

    codes: ExternalTensor
    scales: ExternalTensor
    zero_points: ExternalTensor | None

    @property
    def tensors(self) -> tuple[ExternalTensor, ...]:
        """Those that are there, in the order of the operators' inputs."""
        return (self.codes, self.scales, *(() if self.zero_points is None else (self.zero_points,)))


def store_parts(
    weight: QuantizedTensor, module: str, blocks: Blocks, infos: Mapping[str, TensorInfo], own: OwnData
) -> PackedParts:
    """Find the bytes of a packed weight, or plan to write them.

    Codes are used where they stand unless they are widened, and scales where they are float32 already.

    Parameters
    ----------
    weight : QuantizedTensor
    module : str
        Its name.
    blocks : Blocks
        From `blocks_of`.
    infos : mapping
        Tensors of the checkpoint by name.
    own : OwnData
        Takes what the checkpoint does not hold.
    """
    rows, columns = weight.shape
    n_blocks = columns // blocks.size
    scale = infos[f"{module}.weight_scale"]
    if scale.dtype == "F32" and blocks.repeat == 1:
        scales = checkpoint_tensor(scale)
    else:
        scales = own.add(
            f"{module}.weight_scale.float32", np.float32, (rows, n_blocks), lambda: _scales(weight, blocks.repeat)
        )
    zero_points = None
    if weight.zero_point is not None:
        width = -(-n_blocks * blocks.bits // 8)
        name = f"{module}.weight_zero_point.rows"
        zero_points = own.add(name, np.uint8, (rows, width), lambda: _zero_points(weight, blocks, width))
    return PackedParts(_codes(weight, module, blocks, infos, own), scales, zero_points)


def _codes(
    weight: QuantizedTensor, module: str, blocks: Blocks, infos: Mapping[str, TensorInfo], own: OwnData
) -> ExternalTensor:
    rows, columns = weight.shape
    row_bytes = columns * blocks.bits // 8
    if blocks.widened is None:
        info = infos[f"{module}.weight_packed"]
        # Rows are padded to 32 bits, and blocks of 16 codes fill them.
        assert info.nbytes == rows * row_bytes, module
        return checkpoint_tensor(info, dtype=TensorProto.UINT8, shape=(rows, row_bytes))
    name = f"{module}.weight_packed.{blocks.bits}bit"
    return own.add(name, np.uint8, (rows, row_bytes), lambda: _widened(weight, blocks))


def _steps(weight: QuantizedTensor) -> Iterator[slice]:
    """Rows of about a million codes at a time."""
    rows, columns = weight.shape
    step = max(1, _PART // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _scales(weight: QuantizedTensor, repeat: int) -> Iterator[np.ndarray]:
    for part in _steps(weight):
        yield np.repeat(weight.scale[part].astype(np.float32), repeat, axis=1)


def _zero_points(weight: QuantizedTensor, blocks: Blocks, width: int) -> Iterator[np.ndarray]:
    zero_point: Any = weight.zero_point
    for part in _steps(weight):
        shifted = (zero_point[part] + np.uint8(blocks.widened or 0)).astype(np.uint8)
        yield pack(np.repeat(shifted, blocks.repeat, axis=1), blocks.bits)[:, :width]


def _widened(weight: QuantizedTensor, blocks: Blocks) -> Iterator[np.ndarray]:
    for part in _steps(weight):
        codes = unpack(np.ascontiguousarray(weight.packed[part]), weight.spec.bits, weight.shape[1])
        yield pack((codes + np.uint8(blocks.widened or 0)).astype(np.uint8), blocks.bits)
