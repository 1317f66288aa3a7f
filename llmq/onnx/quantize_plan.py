"""Which weights of a graph are quantized, to what, and why the others are not."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from llmq.errors import UnsupportedError, UsageError
from llmq.onnx.element_types import element_bits, packed_bytes
from llmq.onnx.graph_scopes import readers
from llmq.onnx.quantize_forms import Form, Kind, Layout
from llmq.onnx.quantize_reasons import attribute, fixed_reason, may_be_weight, places_of

if TYPE_CHECKING:
    from llmq.onnx.graph_scopes import Holder, Scope, Use
    from llmq.spec import QuantSpec, Recipe

__all__ = ["GraphPlan", "WeightPlan", "Wishes", "plan_weights", "refuse_empty"]

_WIDTHS: Final = {True: (2, 4, 7, 8), False: (2, 4, 8)}
"""Bits that operators read, by whether activations are quantized."""

_WIDEST_GROUPED: Final = 4
"""Bits up to which weights have groups even if activations are integers: `MatMulNBits` multiplies them then."""

_LARGEST_OF_TWO_BITS: Final = 256
"""Elements of a group; ONNX Runtime refuses larger ones when it loads a model."""


@dataclass(frozen=True)
class Wishes:
    """What a user asks for.

    Parameters
    ----------
    recipe : Recipe
    integer : bool
        Whether activations are quantized too, as the model runs.
    keep : frozenset of str
        Names of weights to keep because they hold NaN or infinity.
    """

    recipe: Recipe
    integer: bool = False
    keep: frozenset[str] = frozenset()

    def to_json(self) -> dict[str, Any]:
        """Return what the output's metadata tells of them."""
        recipe, spec = self.recipe, self.recipe.spec
        return {
            "bits": spec.bits,
            "group_size": spec.group_size,
            "symmetric": spec.symmetric,
            "range": spec.range,
            "method": recipe.method,
            "activations": "int8" if self.integer else "float",
            "embeddings": recipe.embeddings,
            "ignore": list(recipe.ignore),
            "set": [{"pattern": o.pattern} | o.changes() for o in recipe.overrides],
        }


class Limit(NamedTuple):
    """The newest set of standard operators that may be used, and why no newer one."""

    opset: int
    reason: str = ""


@dataclass(frozen=True, eq=False)
class WeightPlan:
    """What becomes of one weight.

    Parameters
    ----------
    holder : Holder
    ops : tuple of str
        Operators that read it.
    places : tuple of str
        Names of the nodes that read it, and of the torch modules that they come from where an exporter tells.
    spec : QuantSpec or None
        None if it is kept.
    forms : dict
        How it is read, and by whom.
    reason : str
        Why it is kept.
    """

    holder: Holder
    ops: tuple[str, ...]
    places: tuple[str, ...] = ()
    spec: QuantSpec | None = None
    forms: dict[Form, list[Use]] = field(default_factory=dict)
    reason: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the stored tensor."""
        return tuple(self.holder.tensor.dims)

    @property
    def source_bytes(self) -> int:
        """Bytes of the stored tensor."""
        return packed_bytes(prod(self.shape), element_bits(self.holder.tensor.data_type) or 0)

    @property
    def layouts(self) -> dict[Form, Layout]:
        """How each form is stored."""
        assert self.spec is not None or not self.forms
        return {form: Layout(form, self.spec, self.shape) for form in self.forms} if self.spec else {}

    @property
    def treatment(self) -> str:
        """What becomes of it, in a few words."""
        if self.spec is None:
            return f"kept: {self.reason}"
        size = "a scale for each row" if next(iter(self.forms)).integer else f"group {self.spec.group_size}"
        grid = "" if self.spec.symmetric else " asymmetric"
        return f"{self.spec.bits} bits, {size}{grid}"

    @property
    def output_bytes(self) -> int:
        """Bytes that it takes in the output."""
        if self.spec is None:
            return self.source_bytes
        layouts = self.layouts
        return sum(p.nbytes for form, layout in layouts.items() if self.twin(form) is None for p in layout.parts())

    def twin(self, form: Form) -> Form | None:
        """An earlier form that is stored in the same bytes."""
        layouts = self.layouts
        for other, layout in layouts.items():
            if other == form:
                return None
            if layout.same_bytes(layouts[form]):
                return other
        return None


@dataclass(frozen=True)
class GraphPlan:
    """What becomes of every weight of a model."""

    weights: tuple[WeightPlan, ...]

    @property
    def quantized(self) -> tuple[WeightPlan, ...]:
        """Those that are quantized."""
        return tuple(weight for weight in self.weights if weight.spec is not None)

    @property
    def opset(self) -> int:
        """The least version of the standard operators that the forms need."""
        needs = [form.opset(w.spec.bits) for w in self.quantized if w.spec for form in w.forms]
        return max(needs, default=1)


def plan_weights(scopes: list[Scope], wishes: Wishes, limit: Limit) -> GraphPlan:
    """Decide on every tensor of a model that may be a weight.

    Raises
    ------
    UsageError
        Bits or a group size that no operator reads, for some weight.
    """
    read = readers(scopes)
    outputs = {c.holder for s in scopes for value in s.graph.output if (c := s.constant(value.name)) is not None}
    weights = []
    for scope in scopes:
        for holder in scope.holders:
            if not may_be_weight(holder.tensor):
                continue
            uses = read.get(holder, [])
            ops = tuple(dict.fromkeys(use.node.op_type for use in uses))
            weight = WeightPlan(holder, ops, tuple(dict.fromkeys(p for use in uses for p in places_of(use.node))))
            given = holder.name in scope.inputs
            reason = fixed_reason(holder, uses, given=given, returned=holder in outputs)
            if reason:
                weights.append(replace(weight, reason=reason))
            else:
                weights.append(_decide(weight, uses, wishes, limit))
    return GraphPlan(tuple(weights))


def _decide(weight: WeightPlan, uses: list[Use], wishes: Wishes, limit: Limit) -> WeightPlan:
    spec, reason = _chosen((weight.holder.name, *weight.places), weight.ops, wishes)
    if spec is None:
        return replace(weight, reason=reason)
    forms: dict[Form, list[Use]] = {}
    for use in uses:
        forms.setdefault(_form(use, spec, integer=wishes.integer), []).append(use)
    weight = replace(weight, spec=spec, forms=forms)
    for form in forms:
        reason = reason or _unfit(form, weight.layouts[form], limit)
    return replace(weight, spec=None, forms={}, reason=reason) if reason else weight


def _unfit(form: Form, layout: Layout, limit: Limit) -> str:
    bits = layout.spec.bits
    needed = form.opset(bits)
    if needed > limit.opset:
        return f"{form.kind} of {bits} bits needs opset {needed}{limit.reason}"
    if form.kind is Kind.MATMUL_NBITS and bits == 2 and layout.group_size > _LARGEST_OF_TWO_BITS:
        return f"MatMulNBits of 2 bits has groups of at most {_LARGEST_OF_TWO_BITS}"
    if form.kind is Kind.GATHER and bits == 7:
        return "GatherBlockQuantized has no 7 bits"
    if form.kind is Kind.GATHER and layout.columns * bits % 8:
        return f"rows of {layout.columns} elements fill no whole bytes"
    return ""


def _chosen(names: tuple[str, ...], ops: tuple[str, ...], wishes: Wishes) -> tuple[QuantSpec | None, str]:
    """The spec for a weight by its name and those of its readers, or why there is none."""
    recipe = wishes.recipe
    if names[0] in wishes.keep:
        return None, "holds NaN or infinity"
    if any(re.search(pattern, name) for pattern in recipe.ignore for name in names):
        return None, "--ignore"
    matching = [o for o in recipe.overrides if any(re.search(o.pattern, name) for name in names)]
    changes: dict[str, Any] = {}
    if "Gather" in ops:
        if recipe.embeddings is None and not matching:
            tied = len(ops) > 1
            return None, "embedding table, tied to a product" if tied else "embedding table"
        changes = {} if recipe.embeddings is None else {"bits": recipe.embeddings}
    for override in matching:
        changes |= override.changes()
    spec = replace(recipe.spec, **changes)
    by_rows = wishes.integer and spec.bits > _WIDEST_GROUPED
    _check_spec(spec, names[0], integer=wishes.integer, grouped=not by_rows or "Gather" in ops)
    return spec, ""


def _check_spec(spec: QuantSpec, name: str, *, integer: bool, grouped: bool) -> None:
    widths, size = _WIDTHS[integer], spec.group_size
    if spec.bits not in widths:
        hint = "--bits, --embeddings or --set choose it" if integer else "7 bits are for --activations int8"
        expected = f"{'/'.join(map(str, widths))} bits"
        raise UsageError(
            "no ONNX operator reads such codes", tensor=name, expected=expected, found=spec.bits, hint=hint
        )
    if grouped and (size < 16 or size & (size - 1)):
        raise UsageError(
            "no ONNX operator reads such groups", tensor=name, expected="a power of two from 16 on", found=size
        )
    if integer and spec.bits > _WIDEST_GROUPED and not spec.symmetric:
        raise UsageError(
            "integer products need weights without zero points", tensor=name, hint="leave --asymmetric out"
        )


def _form(use: Use, spec: QuantSpec, *, integer: bool) -> Form:
    node, constant = use.node, use.constant
    whole = integer and spec.bits > _WIDEST_GROUPED
    if node.op_type == "Conv":
        return Form(Kind.CONV_INTEGER if whole else Kind.DEQUANTIZE, False, constant.data_type)
    if node.op_type == "Gather":
        return Form(Kind.GATHER, constant.transposed, constant.data_type)
    by_rows = node.op_type == "Gemm" and bool(attribute(node, "transB", 0))
    kind = Kind.MATMUL_INTEGER if whole else Kind.MATMUL_NBITS
    return Form(kind, constant.transposed == by_rows, constant.data_type)


def refuse_empty(plan: GraphPlan, file: str) -> None:
    """Raise if nothing would be quantized: UnsupportedError where the weights are integers already, else UsageError."""
    if plan.quantized:
        return
    reasons = Counter(weight.reason for weight in plan.weights)
    told = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3)) or "no weights"
    if any(reason.endswith(" already") for reason in reasons):
        hint = "start from the float model"
        raise UnsupportedError("nothing to quantize: the model is quantized already", file=file, found=told, hint=hint)
    tables = any(reason.startswith("embedding table") for reason in reasons)
    hint = "--embeddings 4 quantizes tables" if tables else "weights of MatMul, Gemm and Conv are what is quantized"
    raise UsageError("nothing to quantize", file=file, found=told, hint=hint)
