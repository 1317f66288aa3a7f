"""Post-training quantization of torch modules: `prepare`, run calibration data, `convert`, `report`.

    prepared = prepare(model)                     # a copy that watches its inputs, batch norms folded
    for x, _ in calibration_data:
        prepared(x)
    converted = convert(prepared)                 # the same signature, integer layers within
    print(report(model, converted, x))            # the error of each layer
    network = to_integer(converted)               # without torch: to save, or for llmq.onnx.export_integer

Needs torch (the `hf` extra); what computes are the integer layers of `llmq.integer`.
"""

from llmq.torch.convert import IntegerModule, convert
from llmq.torch.network import to_integer
from llmq.torch.prepare import prepare
from llmq.torch.report import LayerError, Report, report

__all__ = ["IntegerModule", "LayerError", "Report", "convert", "prepare", "report", "to_integer"]
