"""From headers and a recipe to a plan."""

from __future__ import annotations

import contextlib
import re
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

import llmq
from llmq.architectures import ARCHITECTURES, decoder_config
from llmq.architectures.discover import discover
from llmq.architectures.fields import MissingFieldError
from llmq.architectures.roles import Role, TensorRole, is_transposed_family, layer_index, roles
from llmq.checkpoint.dtypes import bytes_per_element
from llmq.checkpoint.layout import OutputTensor, lay_out
from llmq.errors import InputError, UnsupportedError, UsageError
from llmq.formats.compressed_tensors import SUFFIXES, already_quantized, entries, quantization_config
from llmq.methods import METHODS
from llmq.plan.budget import Need, block_budget, process_bytes
from llmq.plan.choose import chooser
from llmq.plan.plan import Plan, TensorPlan
from llmq.plan.process import expected_process_bytes
from llmq.plan.targets import TARGETS, check_target

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from llmq.checkpoint.header import TensorInfo
    from llmq.checkpoint.source import Source
    from llmq.plan.choose import Choose
    from llmq.spec import QuantSpec, Recipe, ScaleDtype

__all__ = ["build_plan"]

_SCALE_DTYPES: Final[dict[str, ScaleDtype]] = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float32",
}
_LARGE_TABLE: Final = 0.15


def build_plan(
    source: Source,
    recipe: Recipe,
    *,
    max_shard_size: int = 5_000_000_000,
    max_memory: int | None = None,
    keep: Collection[str] = (),
) -> Plan:
    """Decide what happens to every tensor of `source`; reads no weights.

    Parameters
    ----------
    source : Source
        Its headers and config are used.
    recipe : Recipe
        What to quantize and how.
    max_shard_size : int
        Bytes of an output shard at the most (a single larger tensor gets a shard of its own).
    max_memory : int or None
        Bound on the anonymous memory of the process, in bytes.
    keep : collection of str
        Tensors to keep for another reason, found while reading (NaN or infinity).

    Raises
    ------
    UsageError
        The recipe quantizes nothing, or breaks the promise of its target.
    InputError
        A configuration that makes no sense.
    UnsupportedError
        The checkpoint is quantized already, stores its linears transposed, or has names that quantizing would give.
    ResourceError
        `max_memory` is too small.
    """
    _refuse(source)
    tensor_roles, warnings = _assign_roles(source)
    if _tied(source):
        tensor_roles |= {n: TensorRole(Role.OTHER, "tied to the embedding table") for n in _heads(source)}
    choose = chooser(recipe, keep)
    planned = [_plan_tensor(info, tensor_roles[name], choose) for name, info in source.tensors.items()]
    process = process_bytes(len(planned), remote=source.in_file_order)
    budget = block_budget(max_memory, map(_need, planned), process)
    planned = [replace(t, rows_per_block=budget.rows_per_block(_need(t))) for t in planned]
    planned.sort(key=lambda t: _execution_order(t.name, t.role))
    quantized = [t for t in planned if t.spec is not None]
    if not quantized:
        raise UsageError(
            "nothing to quantize", file=source.label, found=_why_nothing(planned), hint=_nothing_hint(planned)
        )
    _check_names(source, quantized)
    check_target(recipe.target, planned)
    plan = Plan(
        recipe=recipe,
        tensors=tuple(planned),
        shards=lay_out(_output_order(planned), max_shard_size),
        config=_output_config(source, planned, recipe),
        predicted_peak_bytes=expected_process_bytes(planned, recipe.method, remote=source.in_file_order)
        + _rows_bytes(planned),
        warnings=(),
        hints=(),
    )
    return replace(plan, warnings=(*warnings, *_warnings(plan)), hints=_hints(plan))


def _refuse(source: Source) -> None:
    _check_config(source.config)
    found = already_quantized(source.config, source.tensors)
    if found:
        raise UnsupportedError(
            f"already quantized ({found})", file=source.label, hint="start from the original bf16 or f16 checkpoint"
        )
    if is_transposed_family(source.config):
        _refuse_transposed(source)


def _check_config(config: Mapping[str, Any]) -> None:
    """Raise InputError where the configuration of a known architecture makes no sense: nothing could run the result."""
    model_type = config.get("model_type")
    if model_type is not None and not isinstance(model_type, str):
        raise InputError(
            "model_type makes no sense", file="config.json", expected="a string", found=repr(model_type)[:60]
        )
    if model_type in ARCHITECTURES:
        # What llmq cannot run, others may; and a file that says too little does not lie.
        with contextlib.suppress(UnsupportedError, MissingFieldError):
            decoder_config(config)


def _refuse_transposed(source: Source) -> None:
    raise UnsupportedError(
        f"model type {source.config.get('model_type')!r} stores its linears transposed (Conv1D)",
        file=source.label,
        hint="llmq quantizes nn.Linear weights only",
    )


def _assign_roles(source: Source) -> tuple[dict[str, TensorRole], list[str]]:
    shapes = {name: info.shape for name, info in source.tensors.items()}
    model_type = source.config.get("model_type")
    if model_type in ARCHITECTURES:
        return roles(shapes, linears=None, known_family=True), []
    found = discover(source.config, shapes)
    if found and found.transposed:
        _refuse_transposed(source)
    how = "names checked against transformers" if found else "conservative rules, check the list of --dry-run"
    warning = f"architecture {model_type!r} is unknown to llmq: {how}; llmq cannot run it"
    return roles(shapes, linears=found.linears if found else None, known_family=False), [warning]


def _tied(source: Source) -> bool:
    configs = (source.config, source.config.get("text_config"))
    declared = any(isinstance(config, dict) and config.get("tie_word_embeddings") is True for config in configs)
    return declared or not _heads(source)


def _heads(source: Source) -> list[str]:
    return [name for name in source.tensors if _is_head(name)]


def _is_head(name: str) -> bool:
    return f".{name}".endswith(".lm_head.weight")


def _plan_tensor(info: TensorInfo, role: TensorRole, choose: Choose) -> TensorPlan:
    """Decide everything but the rows of a block."""
    options, reason = choose(info.name, role)
    if options and info.dtype not in _SCALE_DTYPES:
        options, reason = (), f"dtype {info.dtype} is copied"
    fitting = tuple(spec for spec in options if info.shape[1] > 0 and spec.divides(info.shape[1]))
    if not fitting:
        outputs: tuple[OutputTensor, ...] = (OutputTensor(info.name, info.dtype, info.shape),)
        return TensorPlan(info, role.role, None, reason or _why_none_divides(options, info), outputs, 1)
    rows, columns = info.shape
    fitting = tuple(spec.resolve(columns, _SCALE_DTYPES[info.dtype]) for spec in fitting)
    outputs = entries(info.name.removesuffix(".weight"), fitting[0], (rows, columns))
    return TensorPlan(info, role.role, fitting[0], "", outputs, 1, fitting if len(fitting) > 1 else ())


def _why_none_divides(options: Iterable[QuantSpec], info: TensorInfo) -> str:
    sizes = sorted({spec.group_size for spec in options})
    verb = "divides" if len(sizes) > 1 else "does not divide"
    which = f"no group size of {', '.join(map(str, sizes))}" if len(sizes) > 1 else f"group size {sizes[0]}"
    return f"{which} {verb} rows of {info.shape[1]}"


def _need(tensor: TensorPlan) -> Need:
    itemsize = bytes_per_element(tensor.info.dtype)
    if tensor.spec is None:
        return Need.of_copy(tensor.parameters, itemsize)
    rows, columns = tensor.info.shape
    return Need.of_weight((rows, columns), itemsize, tensor.spec)


def _rows_bytes(planned: Sequence[TensorPlan]) -> int:
    """Bytes of rows at the peak: blocks of one tensor may be read while those of another are written."""
    needs = [(t.rows_per_block, _need(t)) for t in planned]
    return max(rows * n.read for rows, n in needs) + max(rows * n.made for rows, n in needs)


def _execution_order(name: str, role: Role) -> tuple[int, int]:
    layer = layer_index(name)
    if layer is not None:
        return 1, layer
    if role is Role.EMBEDDING:
        return 0, 0
    return (3 if _is_head(name) else 2), 0


def _output_order(planned: Sequence[TensorPlan]) -> list[OutputTensor]:
    """Order of tensors on disk: within a block packed codes, then scales, then dense tensors, then shapes."""
    suffixes = ("weight_packed", "weight_scale", "weight_zero_point", "", "weight_shape")

    def rank(output: OutputTensor, tensor: TensorPlan) -> int:
        suffix = output.name.rsplit(".", 1)[-1] if tensor.spec else ""
        return suffixes.index(suffix)

    pairs = [(output, tensor) for tensor in planned for output in tensor.outputs]
    pairs.sort(key=lambda pair: (*_execution_order(pair[1].name, pair[1].role), rank(*pair)))
    return [output for output, _ in pairs]


def _output_config(source: Source, planned: Sequence[TensorPlan], recipe: Recipe) -> dict[str, Any]:
    kinds = {Role.EMBEDDING: "Embedding"}
    modules = {
        t.name.removesuffix(".weight"): (t.spec, kinds.get(t.role, "Linear")) for t in planned if t.spec is not None
    }
    linear_like = (t for t in planned if t.spec is None and len(t.info.shape) == 2 and t.name.endswith(".weight"))
    ignore = [t.name.removesuffix(".weight") for t in linear_like if t.role is not Role.EMBEDDING]
    if _tied(source):
        ignore.append("lm_head")
    extra = {"version": llmq.__version__, "method": recipe.method, "spec": asdict(recipe.spec)}
    config = dict(source.config)
    config["quantization_config"] = quantization_config(modules, sorted(set(ignore)), extra)
    return config


def _check_names(source: Source, quantized: Iterable[TensorPlan]) -> None:
    """Refuse tensors that would stand among, or be taken for, the parts of a quantized weight."""
    for tensor in quantized:
        module = tensor.name.removesuffix(".weight")
        for name in (f"{module}.{suffix}" for suffix in SUFFIXES):
            if name in source.tensors:
                raise UnsupportedError(
                    "has the name of a part of a quantized weight",
                    file=source.tensors[name].file,
                    tensor=name,
                    hint=f"--ignore '^{re.escape(tensor.name)}$'",
                )


def _why_nothing(planned: Iterable[TensorPlan]) -> str:
    reasons = [t.reason for t in planned if t.role is Role.LINEAR]
    return reasons[0] if reasons else "no linear weights"


def _nothing_hint(planned: Iterable[TensorPlan]) -> str:
    widths = {t.info.shape[1] for t in planned if t.role is Role.LINEAR}
    sizes = [g for g in (128, 64, 32, 16) if widths and all(w % g == 0 for w in widths)]
    return f"--group-size {sizes[0] if sizes else -1}" if widths else "llmq inspect shows what the checkpoint holds"


def _warnings(plan: Plan) -> list[str]:
    warnings = []
    recipe = plan.recipe
    names = [t.name for t in plan.tensors if t.role is not Role.OTHER]
    for pattern, flag in [(p, "--ignore") for p in recipe.ignore] + [(o.pattern, "--set") for o in recipe.overrides]:
        if not any(re.search(pattern, name) for name in names):
            warnings.append(f"{flag} {pattern!r} matches no tensor that could be quantized")
    method = METHODS.get(recipe.method)  # none where weights are given
    if method and method.needs == "nothing" and any(t.spec and t.spec.bits <= 2 for t in plan.quantized):
        warnings.append("2 bits or fewer without calibration is a floor, not a recommendation")
    return warnings + _limits_of_transformers(plan)


def _hints(plan: Plan) -> tuple[str, ...]:
    share = plan.share_of_embeddings()
    if share <= _LARGE_TABLE or Role.EMBEDDING not in TARGETS[plan.recipe.target].roles:
        return ()
    return (f"the embedding table, kept as it is, is {round(100 * share)} % of the result: --embeddings 8 shrinks it",)


def _limits_of_transformers(plan: Plan) -> list[str]:
    """What its loader makes of a checkpoint that nobody promised it could read."""
    specs = {t.spec for t in plan.quantized}
    warnings = []
    if any(t.role is Role.EMBEDDING for t in plan.quantized):
        warnings.append("llmq.load reads a quantized embedding table; transformers does not")
    if any(spec and not spec.symmetric for spec in specs):
        how = "only with CompressedTensorsConfig(dequantize=True)" if len(specs) == 1 else "not when widths are mixed"
        warnings.append(f"llmq.load reads asymmetric checkpoints; transformers {how}")
    return warnings
