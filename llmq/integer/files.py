"""Networks of integer layers in one safetensors file: rows, scales and biases as tensors, the rest as JSON."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from safetensors.numpy import save as to_bytes

from llmq.checkpoint import json_strict
from llmq.checkpoint.header import read_header
from llmq.checkpoint.safe_open import open_inside
from llmq.errors import InputError, UnsupportedError
from llmq.integer.activations import ActivationGrid
from llmq.integer.convolution import Conv1d, Conv2d
from llmq.integer.embedding import Embedding
from llmq.integer.linear import Linear
from llmq.integer.product import Grids
from llmq.integer.residual import Add
from llmq.integer.sequential import Residual, Sequential
from llmq.integer.shapes import AdaptiveAvgPool2d, AvgPool2d, Flatten, MaxPool2d, ReLU
from llmq.integer.weights import LayerWeight
from llmq.spec import QuantSpec
from llmq.system.files import atomic_write, preadv
from llmq_kernels.convolution import Convolution
from llmq_kernels.integer_weight import IntegerWeight

if TYPE_CHECKING:
    from llmq.checkpoint.header import TensorInfo
    from llmq.integer.sequential import Layer

__all__ = ["load", "save"]

_KEY: Final = "llmq.integer"
_VERSION: Final = 1
_DTYPES: Final[dict[str, np.dtype[Any]]] = {"U8": np.dtype(np.uint8), "F32": np.dtype(np.float32)}
_LAYERS: Final = (
    *(Linear, Conv1d, Conv2d, Embedding, Residual, Sequential),
    *(ReLU, Flatten, MaxPool2d, AvgPool2d, AdaptiveAvgPool2d),
)

_SIZE: Final = {"kernel_size": (int, tuple), "stride": (int, tuple, type(None)), "padding": (int, tuple)}
_PRODUCT: Final = {"weight": (LayerWeight,), "bias": (np.ndarray, type(None)), "grids": (Grids,)}
_GRID: Final = (ActivationGrid, type(None))

_FIELDS: Final[dict[type, dict[str, tuple[type, ...]]]] = {
    Sequential: {"layers": (tuple,)},
    Residual: {"body": (Sequential,), "shortcut": (Sequential, type(None)), "add": (Add,)},
    Linear: _PRODUCT,
    Conv2d: {**_PRODUCT, "geometry": (Convolution,)},
    Conv1d: {"images": (Conv2d,)},
    Embedding: {"weight": (LayerWeight,)},
    Add: {"output": _GRID},
    ReLU: {},
    Flatten: {"start_dim": (int,)},
    MaxPool2d: _SIZE,
    AvgPool2d: _SIZE,
    AdaptiveAvgPool2d: {"output_size": (int, tuple)},
    LayerWeight: {"parts": (tuple,), "scale": (np.ndarray,), "shape": (tuple,), "spec": (QuantSpec,)},
    IntegerWeight: {
        "packed": (np.ndarray,),
        "bits": (int,),
        "columns": (int,),
        "zero_point": (np.ndarray, type(None)),
    },
    Grids: {"input": _GRID, "output": _GRID},
    ActivationGrid: {"spec": (QuantSpec,), "scale": (float, type(None)), "zero_point": (int, type(None))},
    Convolution: {**dict.fromkeys(("kernel", "stride", "padding", "dilation"), (tuple,)), "groups": (int,)},
    QuantSpec: {
        **dict.fromkeys(("bits", "group_size"), (int,)),
        **dict.fromkeys(("symmetric", "signed_scale", "dynamic"), (bool,)),
        **dict.fromkeys(("range", "grid", "strategy", "observer"), (str,)),
        "scale_dtype": (str, type(None)),
    },
}
"""What a file may hold, and of which types the fields are; tuples are of whole numbers, of `_ITEMS` where named."""

_ITEMS: Final[dict[tuple[type, str], tuple[type, ...]]] = {
    (Sequential, "layers"): _LAYERS,
    (LayerWeight, "parts"): (IntegerWeight,),
}

_KINDS: Final = {kind.__name__: kind for kind in _FIELDS}


def save(layer: Layer, path: str | os.PathLike[str]) -> None:
    """Write a layer, most often a `Sequential`, to one safetensors file, at once or not at all.

    Parameters
    ----------
    layer : Layer
        Of the layers of this package.
    path : path
        Replaced if it exists.

    Raises
    ------
    UnsupportedError
        A layer of another kind.
    """
    tensors: dict[str, np.ndarray] = {}
    if not isinstance(layer, _LAYERS):
        raise UnsupportedError(f"network: layers of the kind {type(layer).__name__} cannot be saved")
    tree = {"version": _VERSION, "network": _encoded(layer, "network", tensors)}
    atomic_write(Path(path), to_bytes(tensors, {_KEY: json_strict.dumps(tree).decode()}))


def load(path: str | os.PathLike[str]) -> Layer:
    """Read what `save` wrote; the layers compute what they did, to the last bit.

    Raises
    ------
    InputError
        A file that is missing, damaged, or not one of `save`.
    UnsupportedError
        A file of a newer version.
    """
    path = Path(path)
    fd, _ = open_inside(path, (path.resolve().parent,))
    try:
        header = read_header(fd, path.name)
        if _KEY not in header.metadata:
            raise InputError(f"no network of integer layers: its metadata lack {_KEY!r}", file=path.name)
        tree = json_strict.loads(header.metadata[_KEY].encode(), path.name)
        if not isinstance(tree, dict) or set(tree) != {"version", "network"}:
            raise InputError(f"the metadata {_KEY!r} must hold a version and a network", file=path.name)
        if tree["version"] != _VERSION:
            raise UnsupportedError("unknown version", file=path.name, expected=_VERSION, found=tree["version"])
        tensors = {info.name: _read(fd, info) for info in header.tensors}
    finally:
        os.close(fd)
    return _network(tree["network"], tensors, path.name)


def _read(fd: int, info: TensorInfo) -> np.ndarray:
    if info.dtype not in _DTYPES:
        raise InputError("unexpected dtype", file=info.file, tensor=info.name, found=info.dtype)
    data = bytearray(info.nbytes)
    if preadv(fd, memoryview(data), info.offset) != info.nbytes:
        raise InputError("the file became shorter while it was read", file=info.file, tensor=info.name)
    return np.frombuffer(data, _DTYPES[info.dtype]).reshape(info.shape)


def _network(node: Any, tensors: dict[str, np.ndarray], file: str) -> Layer:
    try:
        layer = _decoded(node, "network", tensors)
    except ValueError as error:
        raise InputError(str(error), file=file) from error
    except RecursionError:
        raise InputError("layers are nested too deeply", file=file) from None
    if not isinstance(layer, _LAYERS):
        raise InputError("the network is no layer", file=file, found=type(layer).__name__)
    if tensors:
        raise InputError("belongs to no layer", file=file, tensor=min(tensors))
    return cast("Layer", layer)


def _encoded(value: Any, name: str, tensors: dict[str, np.ndarray]) -> Any:
    """Value as JSON; arrays go to `tensors`, under the name of the place where they stand."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    if isinstance(value, np.ndarray):
        tensors[name] = np.ascontiguousarray(value)
        return {"kind": "tensor"}
    if isinstance(value, tuple | list):
        return [_encoded(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
    if type(value) not in _FIELDS:
        raise UnsupportedError(f"{name}: layers of the kind {type(value).__name__} cannot be saved")
    own = {field.name: _encoded(getattr(value, field.name), f"{name}.{field.name}", tensors) for field in fields(value)}
    return {"kind": type(value).__name__, **own}


def _decoded(node: Any, name: str, tensors: dict[str, np.ndarray]) -> Any:
    """Inverse of `_encoded`; takes what it uses out of `tensors`. ValueError where something is wrong."""
    if isinstance(node, list):
        return tuple(_decoded(item, f"{name}.{i}", tensors) for i, item in enumerate(node))
    if not isinstance(node, dict):
        return node
    found = node.get("kind")
    if found == "tensor" and len(node) == 1:
        if name not in tensors:
            raise ValueError(f"{name}: the tensor is missing")
        return tensors.pop(name)
    if not isinstance(found, str) or found not in _KINDS:
        raise ValueError(f"{name}: unknown kind {found!r}")
    expected, given = _FIELDS[_KINDS[found]], set(node) - {"kind"}
    if given != set(expected):
        raise ValueError(f"{name}: {found} must have the fields {sorted(expected)}, not {sorted(given)}")
    own = {field: _decoded(node[field], f"{name}.{field}", tensors) for field in expected}
    for field, value in own.items():
        _check_type(_KINDS[found], field, value, f"{name}.{field}")
    try:
        return _KINDS[found](**own)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: {error}") from None


def _check_type(kind: type, field: str, value: Any, name: str) -> None:
    if type(value) not in _FIELDS[kind][field]:
        raise ValueError(f"{name}: unexpected {type(value).__name__}")
    if isinstance(value, tuple):
        wrong = [type(item).__name__ for item in value if type(item) not in _ITEMS.get((kind, field), (int,))]
        if wrong:
            raise ValueError(f"{name}: unexpected {wrong[0]} among its items")
