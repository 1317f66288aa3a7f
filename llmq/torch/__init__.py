"""Quantization of torch modules, after training and during it.

After training: `prepare`, run calibration data, `convert`, `report`.

    prepared = prepare(model)                     # a copy that watches its inputs, batch norms folded
    for x, _ in calibration_data:
        prepared(x)
    converted = convert(prepared)                 # the same signature, integer layers within
    print(report(model, converted, x))            # the error of each layer
    network = to_integer(converted)               # without torch: to save, or for llmq.onnx.export_integer

During training, where few bits cost too much otherwise: `prepare_qat`, train, `convert`.

    trained = prepare_qat(model, scheme)          # a copy that computes as its integers will, with gradients
    optimizer = torch.optim.AdamW(parameter_groups(trained, lr=1e-4), lr=1e-3)
    ...                                           # the loop that trained the model
    converted = convert(trained)                  # integer layers with the learned scales and zero points

Needs torch (the `hf` extra); what computes are the integer layers of `llmq.integer`.
"""

from llmq.torch.checkpoint import save_quantized
from llmq.torch.convert import convert
from llmq.torch.integer_module import IntegerModule
from llmq.torch.network import to_integer
from llmq.torch.prepare import prepare
from llmq.torch.qat import parameter_groups, prepare_qat, step_parameters
from llmq.torch.quantized import quantized_tensors
from llmq.torch.report import LayerError, Report, report

__all__ = [
    "IntegerModule",
    "LayerError",
    "Report",
    "convert",
    "parameter_groups",
    "prepare",
    "prepare_qat",
    "quantized_tensors",
    "report",
    "save_quantized",
    "step_parameters",
    "to_integer",
]
