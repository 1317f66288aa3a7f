"""Names and bytes on disk to `QuantizedTensor` and back. To add a format, write one file and one row of `FORMATS`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from llmq.formats import compressed_tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np

    from llmq.checkpoint.layout import OutputTensor
    from llmq.formats.compressed_tensors import Schemes
    from llmq.spec import QuantizedTensor, QuantSpec

__all__ = ["FORMATS", "Format"]


class Format(Protocol):
    """What a module of this package offers."""

    @property
    def SUFFIXES(self) -> tuple[str, ...]:  # noqa: N802  (a constant of the module)
        """Endings of the tensors that a quantized weight may be stored as, the codes first."""
        ...

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

    def quantization_config(
        self, modules: Mapping[str, tuple[QuantSpec, str]], ignore: Sequence[str], extra: dict[str, Any]
    ) -> dict[str, Any]:
        """Build the quantization section of a ``config.json``."""
        ...

    def already_quantized(self, config: Mapping[str, Any], tensor_names: Iterable[str]) -> str | None:
        """Name the method a checkpoint is quantized by, whichever it is; None if it is not."""
        ...


FORMATS: Final[dict[str, Format]] = {"compressed-tensors": compressed_tensors}
