"""Products with a weight that is taken a block of rows at a time, so that nothing of it is ever held twice.

A runtime that meets `Cast(weight)` computes it when it loads, and keeps the whole weight in float32; the same happens
for a moment where it multiplies codes that it has no kernel for. `Scan` over blocks of rows hands each block to the
operators behind it without a copy, out of the mapped file, when its turn comes; a block in float32 fits into the
processor's caches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from onnx import TensorProto, helper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnx import NodeProto

    from llmq.onnx.decoder_graph import Graph
    from llmq.onnx.external import ExternalTensor

__all__ = ["RowProduct", "block_rows", "multiply_in_blocks"]

_ELEMENTS: Final = 1 << 20
"""Of a block, about: 4 MiB in float32."""


@dataclass(frozen=True)
class RowProduct:
    """A product `x @ w.T` that can be computed for any rows of `w`.

    Parameters
    ----------
    name : str
        Of the result.
    shape : (int, int)
        `(out_features, in_features)`.
    tensors : tuple of ExternalTensor
        What rows are made of; the first axis of each is `out_features`.
    nodes : callable
        Given names of a block's tensors, of its result and the number of its rows, returns the nodes that compute it.
    """

    name: str
    shape: tuple[int, int]
    tensors: tuple[ExternalTensor, ...]
    nodes: Callable[[Sequence[str], str, int], list[NodeProto]]


def block_rows(rows: int, columns: int) -> int:
    """Rows of a block: a divisor of `rows` where there is a good one.

    >>> block_rows(32000, 2048), block_rows(32003, 2048), block_rows(64, 64)
    (500, 512, 64)
    """
    most = min(rows, max(1, _ELEMENTS // columns))
    divisor = next((size for size in range(most, most // 2, -1) if rows % size == 0), None)
    return divisor or most


def multiply_in_blocks(graph: Graph, product: RowProduct) -> str:
    """Add the product to a graph.

    Returns
    -------
    str
        Name of the result, float32 (batch, sequence, out_features).
    """
    rows, columns = product.shape
    step = block_rows(rows, columns)
    whole = rows - rows % step
    parts = [_scan(graph, product, 0, whole, step)]
    if whole < rows:
        parts.append(_scan(graph, product, whole, rows, rows - whole))
        return graph.node("Concat", parts, product.name, axis=2)
    return graph.node("Identity", parts, product.name)


def _scan(graph: Graph, product: RowProduct, start: int, stop: int, rows: int) -> str:
    """Rows `start` to `stop`, in blocks of `rows`."""
    blocks = [tensor.part(start, stop, rows) for tensor in product.tensors]
    name = f"{product.name}.{start}"
    inner = [f"{name}.block.{i}" for i in range(len(blocks))]
    body = helper.make_graph(
        product.nodes(inner, f"{name}.product", rows),
        f"{name}.body",
        [helper.make_tensor_value_info(i, b.dtype, b.shape[1:]) for i, b in zip(inner, blocks, strict=True)],
        [helper.make_tensor_value_info(f"{name}.product", TensorProto.FLOAT, ["batch", "sequence", rows])],
    )
    stacked = graph.node(  # (batch, sequence, blocks, rows)
        "Scan",
        [graph.external(block) for block in blocks],
        f"{name}.stacked",
        num_scan_inputs=len(blocks),
        body=body,
        scan_output_axes=[2],
    )
    return graph.node("Reshape", [stacked, graph.constant([0, 0, stop - start])], f"{name}.rows")
