"""Write a trained causal language model as a packed checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llmq.checkpoint.dtypes import NUMPY_DTYPES
from llmq.checkpoint.loaded import LoadedCheckpoint
from llmq.checkpoint.source import open_local
from llmq.errors import UsageError
from llmq.formats.fp8 import dequantized
from llmq.pipeline import write_given
from llmq.torch.modules import to_numpy
from llmq.torch.quantized import quantized_tensors

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from torch import nn

    from llmq.checkpoint.source import Source
    from llmq.pipeline import QuantizeReport

__all__ = ["save_quantized"]


def save_quantized(
    model: nn.Module,
    original: str | Path,
    output: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> QuantizeReport:
    """Write a model from `prepare_qat`, trained, as a checkpoint that `llmq.load` and transformers read.

    Weights of its fake-quantized linears are packed exactly as they are used in training. Other parameters keep the
    dtypes of the original; those that training changed are rounded to them.

    Parameters
    ----------
    model : nn.Module
        A transformers model whose modules have the names of the original's tensors.
    original : str or Path
        The checkpoint that it was loaded from, as for `llmq.quantize`: names, dtypes, configuration and tokenizer.
    output : str or Path
        Folder to write.
    settings : mapping, optional
        How it was trained, JSON-able; the manifest keeps it.
    overwrite : bool
        Replace what `output` holds.

    Returns
    -------
    QuantizeReport

    Raises
    ------
    UsageError
        Nothing in the model is fake-quantized, or its tensors do not fit the original's.
    InputError
        Training has made NaN or infinity.
    LlmqError
        As for `llmq.quantize`; nothing half-written is ever published.

    Examples
    --------
    >>> from llmq.torch import prepare_qat, save_quantized  # doctest: +SKIP
    >>> tuned = prepare_qat(model, QuantSpec(bits=2, group_size=32, scale_dtype="bfloat16"))  # doctest: +SKIP
    >>> ...  # train it  # doctest: +SKIP
    >>> save_quantized(tuned, "original", "out")  # doctest: +SKIP
    """
    weights = quantized_tensors(model)
    if not weights:
        raise UsageError("nothing in the model is fake-quantized", hint="save_quantized takes what prepare_qat returns")
    with open_local(original) as opened:
        tensors = _changed(model, dequantized(opened), weights.keys())
    return write_given(original, output, weights, tensors=tensors, settings=settings, overwrite=overwrite)


def _changed(model: nn.Module, source: Source, packed: Collection[str]) -> dict[str, np.ndarray]:
    """Parameters that are not packed and whose rounded values are not those of the checkpoint, by name."""
    loaded, found = LoadedCheckpoint(source), {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        info = source.tensors.get(name)
        if info is None or name in packed or tuple(parameter.shape) != info.shape:
            continue
        values = to_numpy(parameter)
        with np.errstate(over="ignore"):  # infinity is refused where it is written
            rounded = values.astype(NUMPY_DTYPES[info.dtype])
        if not np.array_equal(rounded, loaded.tensor(name)):
            found[name] = values
    return found
