"""Contestants of the packed matmul: ours, ONNX Runtime's and torch's, each on random weights of its own format."""

from __future__ import annotations

import time
from typing import Any, Final

import numpy as np

__all__ = ["LlmqMatmul", "OrtMatmul", "OrtMatmulSpinning", "TorchMatmul", "matrices_of"]

_PRODUCTS: Final = 40_000_000_000
_FEWEST: Final = 4


def matrices_of(shape: tuple[int, int], bits: int, tokens: int, working_set: int) -> int:
    """How many matrices go into one run: as many as the working set holds, fewer where a run takes long."""
    rows, columns = shape
    most = working_set // (rows * columns * bits // 8)
    return int(max(1, min(most, max(_FEWEST, _PRODUCTS // (rows * columns * tokens)))))


class LlmqMatmul:
    """`llmq_kernels.matmul` on symmetric weights with float16 scales."""

    def __init__(
        self, shape: tuple[int, int], bits: int, group_size: int, *, tokens: int, threads: int, working_set: int
    ) -> None:
        from llmq.benchmarks.matmul import Rotation
        from llmq.benchmarks.timing import use_threads
        from llmq.benchmarks.weights import Packing, RandomWeights

        use_threads(threads)
        packing = Packing(bits, group_size)
        shape = (shape[0], shape[1])
        self._data, matrices = RandomWeights(working_set).cut(shape, packing)
        self._work = Rotation(matrices, tokens, "int8")
        self._bytes = sum(packing.sizes(shape))

    def bytes_of_matrix(self) -> int:
        """Bytes of codes and scales."""
        return self._bytes

    def run(self) -> float:
        """Seconds of one matmul, the mean of a run."""
        began = time.perf_counter()
        self._work()
        return (time.perf_counter() - began) / self._work.count

    def read(self) -> float:
        """Seconds that the bytes of one matmul take to be read by a kernel that only loads."""
        from llmq_kernels.bandwidth import checksum

        began = time.perf_counter()
        checksum(self._data)
        return (time.perf_counter() - began) * self._bytes / self._data.size


class OrtMatmul:
    """`MatMulNBits` of ONNX Runtime with int8 activations (`accuracy_level=4`), one graph of all matrices."""

    spinning = "0"

    def __init__(
        self, shape: tuple[int, int], bits: int, group_size: int, *, tokens: int, threads: int, working_set: int
    ) -> None:
        import onnxruntime

        rows, columns = shape
        self._count = matrices_of((rows, columns), bits, tokens, working_set)
        self._bytes = rows * (columns * bits // 8 + 4 * (columns // group_size))
        options: Any = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", self.spinning)
        graph = _graph((rows, columns), bits, group_size, tokens, self._count)
        self._session: Any = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        self._x = np.random.default_rng(0).standard_normal((tokens, columns), np.float32)
        self._binding.bind_cpu_input("x", self._x)
        outputs = (np.zeros((tokens, rows), np.float32) for _ in range(self._count))
        self._outputs = [onnxruntime.OrtValue.ortvalue_from_numpy(output) for output in outputs]
        for i, output in enumerate(self._outputs):
            self._binding.bind_ortvalue_output(f"y{i}", output)
        self._options = onnxruntime.RunOptions()

    def bytes_of_matrix(self) -> int:
        """Bytes of codes and scales, the latter float32."""
        return self._bytes

    def run(self) -> float:
        """Seconds of one matmul, the mean of a run."""
        began = time.perf_counter()
        self._session.run_with_iobinding(self._binding, self._options)
        return (time.perf_counter() - began) / self._count


class OrtMatmulSpinning(OrtMatmul):
    """The same with threads that spin while they wait."""

    spinning = "1"


def _graph(shape: tuple[int, int], bits: int, group_size: int, tokens: int, count: int) -> bytes:
    """Serialize a model that multiplies one input by `count` constant weights."""
    import onnx

    helper: Any = onnx.helper
    kinds: Any = onnx.TensorProto
    rows, columns = shape
    blocks = columns // group_size
    rng = np.random.default_rng(0)
    nodes, constants, outputs = [], [], []
    attributes = {"K": columns, "N": rows, "bits": bits, "block_size": group_size, "accuracy_level": 4}
    for i in range(count):
        codes = rng.integers(0, 256, (rows, blocks, group_size * bits // 8), np.uint8)
        scales = np.full(rows * blocks, 0.01, np.float32)
        constants.append(helper.make_tensor(f"b{i}", kinds.UINT8, codes.shape, codes.tobytes(), raw=True))
        constants.append(helper.make_tensor(f"s{i}", kinds.FLOAT, scales.shape, scales.tobytes(), raw=True))
        names = ["x", f"b{i}", f"s{i}"]
        nodes.append(helper.make_node("MatMulNBits", names, [f"y{i}"], domain="com.microsoft", **attributes))
        outputs.append(helper.make_tensor_value_info(f"y{i}", kinds.FLOAT, [tokens, rows]))
    inputs = [helper.make_tensor_value_info("x", kinds.FLOAT, [tokens, columns])]
    graph = helper.make_graph(nodes, "matmul", inputs, outputs, constants)
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=10)
    return bytes(model.SerializeToString())


class TorchMatmul:
    """`_weight_int4pack_mm_for_cpu` of torch, with bfloat16 activations, its fast case; 4 bits only."""

    def __init__(
        self, shape: tuple[int, int], bits: int, group_size: int, *, tokens: int, threads: int, working_set: int
    ) -> None:
        import torch

        if bits != 4:
            raise ValueError("torch has 4 bits only")
        torch.set_num_threads(threads)
        self._torch: Any = torch
        rows, columns = shape
        count = matrices_of((rows, columns), bits, tokens, working_set)
        codes = torch.randint(0, 16, (rows, columns), dtype=torch.int32)
        packed = torch._convert_weight_to_int4pack_for_cpu(codes, 2)  # noqa: SLF001  # torch has no other door
        scales = torch.full((columns // group_size, rows, 2), 0.01, dtype=torch.bfloat16)
        self._weights = [(packed.clone(), scales.clone()) for _ in range(count)]
        self._x = torch.randn(tokens, columns).to(torch.bfloat16)
        self._group_size = group_size
        self._bytes = sum(part.numel() * part.element_size() for part in self._weights[0])

    def bytes_of_matrix(self) -> int:
        """Bytes of codes, scales and zero points."""
        return int(self._bytes)

    def run(self) -> float:
        """Seconds of one matmul, the mean of a run."""
        multiply = self._torch._weight_int4pack_mm_for_cpu  # noqa: SLF001
        began = time.perf_counter()
        with self._torch.no_grad():
            for packed, scales in self._weights:
                multiply(self._x, packed, self._group_size, scales)
        return (time.perf_counter() - began) / len(self._weights)
