"""Names and bytes on disk to `QuantizedTensor` and back. To add a format, write one file and one row of `FORMATS`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from llmq.formats import compressed_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from llmq.checkpoint.layout import OutputTensor
    from llmq.formats.compressed_tensors import Schemes
    from llmq.spec import QuantizedTensor, QuantSpec

__all__ = ["FORMATS", "Format"]


class Format(Protocol):
    """What a module of this package offers."""

    def entries(self, module: str, spec: QuantSpec, shape: tuple[int, int]) -> tuple[OutputTensor, ...]:
        """Plan the tensors of one quantized weight."""
        ...

    def encode(self, q: QuantizedTensor) -> dict[str, np.ndarray]:
        """Turn a block of rows into arrays by suffix."""
        ...

    def decode(self, arrays: Mapping[str, np.ndarray], scheme: QuantSpec, module: str) -> QuantizedTensor:
        """Turn arrays by suffix into a quantized weight."""
        ...

    def read_schemes(self, config: Mapping[str, Any]) -> Schemes | None:
        """Parse the quantization section of a ``config.json``."""
        ...


FORMATS: Final[dict[str, Format]] = {"compressed-tensors": compressed_tensors}
