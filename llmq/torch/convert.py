"""Put integer layers where a prepared or a trained model has float ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from llmq import integer
from llmq.errors import InputError, LlmqError, UsageError
from llmq.torch.fake_layers import fake_layers
from llmq.torch.fold import Absorbed
from llmq.torch.integer_module import IntegerModule
from llmq.torch.kinds import geometry, label, layer_of
from llmq.torch.modules import keep_threads, modules_by_name, replace_module, skeleton, to_numpy
from llmq.torch.prepare import calibrations
from llmq.torch.together import Together, check_calls
from llmq.torch.trained import trained_module

if TYPE_CHECKING:
    from llmq.spec import QuantScheme
    from llmq.torch.integer_module import InputRange
    from llmq.torch.kinds import Layer
    from llmq.torch.prepare import Calibration

__all__ = ["convert"]


@keep_threads()
def convert(prepared: nn.Module) -> nn.Module:
    """Make the model of integer layers of a prepared one that has seen its calibration data, or of a trained one.

    Parameters
    ----------
    prepared : nn.Module
        From `prepare` or `prepare_qat`. It is left as it is, and can be shown more data or trained further and
        converted again. What was trained keeps its codes, scales and zero points.

    Returns
    -------
    nn.Module
        Of the same class, with the same signature, in eval mode; what was not quantized shares its parameters with
        `prepared`.

    Raises
    ------
    UsageError
        The model comes from neither, or a layer with static inputs has not seen any.
    UnsupportedError
        Folded modules were not called together.
    """
    found, trained = calibrations(prepared), fake_layers(prepared)
    if not found and not trained:
        raise UsageError(
            "nothing here was prepared", hint="convert takes what llmq.torch.prepare or prepare_qat returns"
        )
    for calibration in found.values():
        check_calls(calibration.chain, calibration.calls)
    converted = skeleton(prepared).eval()
    Together.stop(converted)
    modules = modules_by_name(converted)
    made = {name: _calibrated(name, layer_of(modules, name), calibration) for name, calibration in found.items()}
    made |= {name: trained_module(name, layer) for name, layer in trained.items()}
    for name, module in made.items():
        for part in module.chain.modules[1:]:
            replace_module(converted, part, Absorbed(label(name)))
        if not name:
            return module
        replace_module(converted, name, module)
    return converted


def _calibrated(name: str, replaced: Layer, calibration: Calibration) -> IntegerModule:
    input_range, scheme = _input_range(name, calibration), calibration.scheme
    layer = _integer_layer(name, replaced, scheme, input_range)
    return IntegerModule(layer, replaced, calibration.chain, scheme)


def _integer_layer(name: str, module: Layer, scheme: QuantScheme, input_range: InputRange | None) -> Any:
    weight = to_numpy(module.weight)
    try:
        if isinstance(module, nn.Embedding):
            return integer.Embedding.quantize(weight, scheme.weight)
        settings: dict[str, Any] = {"input_range": input_range}
        bias = None if module.bias is None else to_numpy(module.bias)
        if isinstance(module, nn.Linear):
            return integer.Linear.quantize(weight, bias, scheme, **settings)
        kind = integer.Conv2d if isinstance(module, nn.Conv2d) else integer.Conv1d
        return kind.quantize(weight, bias, scheme, **settings, **geometry(module))
    except LlmqError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(str(error), tensor=label(name)) from error


def _input_range(name: str, calibration: Calibration) -> InputRange | None:
    if calibration.observer is None:
        return None
    try:
        return calibration.observer.range()
    except ValueError as error:
        raise UsageError(
            "has not seen any input, and its range is static",
            tensor=label(name),
            hint="call the prepared model on calibration data before convert, or use dynamic inputs",
        ) from error
