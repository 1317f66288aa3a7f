"""Contestants of integer layers: ours, ONNX Runtime's in int8 and torch's in float32, floats in and floats out.

A case is (tokens, columns, rows) of a fully connected layer, or (channels, filters, size, kernel, stride, groups) of a
convolution of a square image.
"""

from __future__ import annotations

import tempfile
import time
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bench_peers import Result, alternate, compared, contestants, missing, say
from peer_child import Child

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["CASES", "LlmqLayer", "OrtLayer", "TorchLayer", "compare_layers"]

CASES: Final[dict[str, tuple[int, ...]]] = {
    "Linear 512 to 512, 128 tokens": (128, 512, 512),
    "Linear 1024 to 1024, 32 tokens": (32, 1024, 1024),
    "Linear 1024 to 1024, 128 tokens": (128, 1024, 1024),
    "Linear 1024 to 4096, 512 tokens": (512, 1024, 4096),
    "3x3, 64 to 64 at 56x56": (64, 64, 56, 3, 1, 1),
    "3x3, 128 to 128 at 28x28": (128, 128, 28, 3, 1, 1),
    "3x3, 256 to 256 at 14x14": (256, 256, 14, 3, 1, 1),
    "3x3, 512 to 512 at 7x7": (512, 512, 7, 3, 1, 1),
    "1x1, 64 to 256 at 56x56": (64, 256, 56, 1, 1, 1),
    "depthwise 3x3, 32 at 112x112": (32, 32, 112, 3, 1, 32),
    "depthwise 3x3, 512 at 14x14": (512, 512, 14, 3, 1, 512),
}

_PRODUCTS: Final = 2_000_000_000
"""Products of a turn, about: layers run so often that what others left in the caches does not count."""


def arrays_of(case: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Random inputs and weight of a case, float32."""
    rng = np.random.default_rng(0)
    if len(case) == 3:
        tokens, columns, rows = case
        shapes: tuple[tuple[int, ...], tuple[int, ...]] = ((tokens, columns), (rows, columns))
    else:
        channels, filters, size, kernel, _, groups = case
        shapes = (1, channels, size, size), (filters, channels // groups, kernel, kernel)
    x, weight = (rng.standard_normal(shape, np.float32) for shape in shapes)
    return x, weight


class _Layer(ABC):
    """Runs a layer as often as makes a turn."""

    def __init__(self, case: Sequence[int]) -> None:
        self.x, self.weight = arrays_of(case)
        places = case[0] if len(case) == 3 else (case[2] // case[4]) ** 2
        self._count = max(1, _PRODUCTS // (self.weight.size * places))

    @abstractmethod
    def step(self) -> None:
        """Run the layer once."""

    def run(self) -> float:
        """Seconds of one layer, the mean of a turn."""
        began = time.perf_counter()
        for _ in range(self._count):
            self.step()
        return (time.perf_counter() - began) / self._count


class LlmqLayer(_Layer):
    """`llmq.integer`: weights of `bits`, one range a row; inputs of 8 bits, ranges found at run time or beforehand."""

    def __init__(self, case: Sequence[int], bits: int, threads: int) -> None:
        from llmq.benchmarks.timing import use_threads
        from llmq.integer import Conv2d, Linear
        from llmq.spec import QuantScheme, QuantSpec

        super().__init__(case)
        use_threads(threads)
        linear = len(case) == 3
        weight = QuantSpec(bits, strategy="channel", symmetric=True, scale_dtype="float32")
        inputs = QuantSpec(8, strategy="tensor", symmetric=False, dynamic=linear, scale_dtype="float32")
        scheme = QuantScheme(weight, inputs)
        if linear:
            self._layer: Any = Linear.quantize(self.weight, scheme=scheme)
            return
        *_, kernel, stride, groups = case
        found = float(self.x.min()), float(self.x.max())
        self._layer = Conv2d.quantize(
            self.weight, None, scheme, input_range=found, stride=stride, padding=kernel // 2, groups=groups
        )

    def step(self) -> None:
        """Run the layer once."""
        self._layer(self.x)


class OrtLayer(_Layer):
    """ONNX Runtime: `quantize_dynamic` of a product, `quantize_static` of a convolution; a range for each row."""

    def __init__(
        self, case: Sequence[int], threads: int, *, spinning: bool = False, reduce_range: bool = False
    ) -> None:
        import onnxruntime

        super().__init__(case)
        options: Any = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        with tempfile.TemporaryDirectory() as folder:
            model = self._quantized(Path(folder), case, reduce_range)
            self._session: Any = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        self._binding.bind_cpu_input("x", self.x)
        self._binding.bind_output("y")

    def _quantized(self, folder: Path, case: Sequence[int], reduce_range: bool) -> bytes:
        import onnx
        from onnxruntime import quantization

        source, result = str(folder / "float.onnx"), str(folder / "int8.onnx")
        onnx.save(_graph(self.x, self.weight, case), source)
        shared = {"weight_type": quantization.QuantType.QInt8, "per_channel": True, "reduce_range": reduce_range}
        if len(case) == 3:
            quantization.quantize_dynamic(source, result, **shared)
        else:
            reader = type("Reader", (quantization.CalibrationDataReader,), {"get_next": self._inputs([self.x])})
            quantization.quantize_static(source, result, reader(), **shared)
        return Path(result).read_bytes()

    @staticmethod
    def _inputs(left: list[np.ndarray]) -> Callable[[Any], dict[str, np.ndarray] | None]:
        return lambda _: {"x": left.pop()} if left else None

    def step(self) -> None:
        """Run the layer once."""
        self._session.run_with_iobinding(self._binding)


def _graph(x: np.ndarray, weight: np.ndarray, case: Sequence[int]) -> Any:
    """Make a float model of one product or convolution."""
    import onnx

    helper: Any = onnx.helper
    if len(case) == 3:
        node, weight = helper.make_node("MatMul", ["x", "w"], ["y"]), np.ascontiguousarray(weight.T)
        shape = [x.shape[0], weight.shape[1]]
    else:
        *_, size, kernel, stride, groups = case
        geometry = {"pads": [kernel // 2] * 4, "strides": [stride] * 2, "group": groups}
        node = helper.make_node("Conv", ["x", "w"], ["y"], **geometry)
        out = (size + 2 * (kernel // 2) - kernel) // stride + 1
        shape = [1, weight.shape[0], out, out]
    number: Any = onnx.TensorProto.FLOAT
    inputs, outputs = (
        [helper.make_tensor_value_info(name, number, sizes)] for name, sizes in (("x", list(x.shape)), ("y", shape))
    )
    graph = helper.make_graph([node], "layer", inputs, outputs, [onnx.numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


class TorchLayer(_Layer):
    """The layer in torch's float32."""

    def __init__(self, case: Sequence[int], threads: int) -> None:
        import torch

        super().__init__(case)
        torch.set_num_threads(threads)
        self._torch: Any = torch
        x, weight = torch.from_numpy(self.x), torch.from_numpy(self.weight)
        if len(case) == 3:
            self._work: Callable[[], Any] = partial(torch.nn.functional.linear, x, weight)
        else:
            *_, kernel, stride, groups = case
            geometry = {"stride": stride, "padding": kernel // 2, "groups": groups}
            self._work = partial(torch.nn.functional.conv2d, x, weight, **geometry)

    def step(self) -> None:
        """Run the layer once."""
        with self._torch.no_grad():
            self._work()


def compare_layers(runs: int = 7, threads: Sequence[int] = (1, 2)) -> list[Result]:
    """Let all contestants take turns at every case."""
    absent, results = missing(), []
    for n_threads in threads:
        for task, case in CASES.items():
            say(f"integer: {task}, {n_threads} threads")
            shared = {"case": case, "threads": n_threads}
            makers: dict[str, Callable[[], Child]] = {
                "llmq 8-bit": partial(Child, "peer_integer", "LlmqLayer", bits=8, **shared),
                "llmq 7-bit": partial(Child, "peer_integer", "LlmqLayer", bits=7, **shared),
                "llmq 4-bit": partial(Child, "peer_integer", "LlmqLayer", bits=4, **shared),
            }
            if "ONNX Runtime" not in absent:
                makers["ONNX Runtime int8"] = partial(Child, "peer_integer", "OrtLayer", **shared)
            if "torch" not in absent:
                makers["torch float32"] = partial(Child, "peer_integer", "TorchLayer", **shared)
            with contestants(makers) as found:
                turns: dict[str, Callable[[], float]] = {
                    name: partial(child.call, "run") for name, child in found.items()
                }
                seconds = alternate(turns, runs)
            results += compared([Result("integer", task, name, n_threads, value) for name, value in seconds.items()])
    return results
