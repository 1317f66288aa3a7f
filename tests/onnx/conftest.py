import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper


@pytest.fixture(scope="session")
def write_onnx():
    """Write a graph: nodes, arrays by name, and values as name -> (type or dtype, shape); data beside it if asked."""

    def write(path, nodes, weights, inputs, outputs, *, external=None, opset=18, ir=8, **graph_fields):
        path = Path(path)
        tensors = [t if isinstance(t, onnx.TensorProto) else numpy_helper.from_array(t, n) for n, t in weights.items()]
        values = [
            [
                helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(np.dtype(t)), s)
                for n, (t, s) in v.items()
            ]
            for v in (inputs, outputs)
        ]
        graph = helper.make_graph(nodes, "graph", *values, tensors, **graph_fields)
        imports = [helper.make_opsetid("", opset)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=ir, producer_name="by hand")
        if external is None:
            path.write_bytes(model.SerializeToString())
        else:
            onnx.save_model(
                model, path, save_as_external_data=True, location=external, size_threshold=64, convert_attribute=False
            )
        return path

    return write


@pytest.fixture(scope="session")
def run():
    """Run a model in ONNX Runtime on the CPU: its outputs, by position."""

    def go(path, **feeds):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, feeds)

    return go


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A small CNN and a transformer encoder as torch's exporters write them: path and input by name."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from torch import nn

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, activation="gelu")
            self.table = nn.Embedding(500, 64)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(64, 100, bias=False)

        def forward(self, tokens):
            return self.head(self.encoder(self.table(tokens)))

    cnn = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False), nn.Conv2d(64, 128, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 100),
    )  # fmt: skip
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((4, 3, 16, 16)).astype(np.float32)
    tokens = rng.integers(0, 500, (3, 16))
    folder = tmp_path_factory.mktemp("exported")
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: its exporters call what it deprecates
        for name, model, x in (("cnn", cnn, images), ("encoder", Encoder(), tokens)):
            for dynamo in (True, False):
                path = folder / f"{name}-{'dynamo' if dynamo else 'script'}.onnx"
                quiet = {"verbose": False} if dynamo else {}
                torch.onnx.export(model.eval(), (torch.from_numpy(x),), path, dynamo=dynamo, input_names=["x"], **quiet)
                found[path.stem] = (path, x)
    return found
