"""What `--for` promises: who can read the result. Defaults by reader, and the check that refuses by name."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llmq.architectures.roles import Role
from llmq.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmq.plan.plan import TensorPlan
    from llmq.spec import QuantSpec

__all__ = ["TARGETS", "Target", "check_target", "fused_group"]


@dataclass(frozen=True)
class Target:
    """What a reader can read, and the defaults that suit it.

    Parameters
    ----------
    group_size, lm_head : int or None
        Defaults where the user says nothing.
    bits : frozenset of int
        Widths it reads.
    group_sizes : frozenset of int or None
        Group sizes it reads; None for any.
    roles : frozenset of Role
        Which tensors it reads quantized.
    asymmetric, negative_scales, fused : bool
        Whether it reads zero points and negative scales; whether it fuses q/k/v and gate/up, which then must share
        one scheme.
    """

    group_size: int = 64
    lm_head: int | None = 8
    bits: frozenset[int] = frozenset(range(1, 9))
    group_sizes: frozenset[int] | None = None
    roles: frozenset[Role] = frozenset({Role.LINEAR, Role.HEAD, Role.EMBEDDING})
    asymmetric: bool = True
    negative_scales: bool = True
    fused: bool = False


TARGETS: Final[dict[str, Target]] = {
    "llmq": Target(),
    # Its loader leaves zero points unpacked on the meta device and then finds the file's sizes wrong; it initializes
    # every Embedding by its `weight`, which a packed one has not.
    "transformers": Target(asymmetric=False, roles=frozenset({Role.LINEAR, Role.HEAD})),
    "vllm": Target(
        group_size=128,
        lm_head=None,
        bits=frozenset({4, 8}),
        group_sizes=frozenset({128}),
        roles=frozenset({Role.LINEAR}),
        negative_scales=False,
        fused=True,
    ),
    "onnx": Target(bits=frozenset({2, 4, 8}), group_sizes=frozenset(1 << n for n in range(4, 16))),
}

_KEEP_FLAGS: Final = {Role.HEAD: "--lm-head keep", Role.EMBEDDING: "--embeddings keep"}
_FUSED: Final = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def check_target(name: str, tensors: Iterable[TensorPlan]) -> None:
    """Refuse, by tensor, what the reader `name` cannot read.

    Raises
    ------
    UsageError
        Names the first tensor that breaks the promise, with expected and found.
    """
    target = TARGETS[name]
    planned = tuple(tensors)
    for tensor in planned:
        if tensor.spec is not None:
            _check_tensor(name, target, tensor, tensor.spec)
    if target.fused:
        _check_fused(name, planned)


def _check_tensor(name: str, target: Target, tensor: TensorPlan, spec: QuantSpec) -> None:
    sizes = target.group_sizes
    keep = _KEEP_FLAGS.get(tensor.role, "--ignore")
    fits = sizes is None or spec.group_size in sizes
    positive = not (spec.symmetric and spec.signed_scale)
    rules = (
        (spec.bits in target.bits, f"bits {_listed(target.bits)}", spec.bits, f"--bits {max(target.bits & {4, 8})}"),
        (fits, f"group size {_listed(sizes or ())}", spec.group_size, f"--group-size {target.group_size}"),
        (spec.symmetric or target.asymmetric, "symmetric", "asymmetric", "--symmetric"),
        (positive or target.negative_scales, "positive scales", "signed", "--method rtn"),
        (tensor.role in target.roles, f"{tensor.role} kept", f"{spec.bits} bits", keep),
    )
    for fine, expected, found, flag in rules:
        if not fine:
            raise UsageError(f"not readable by {name}", tensor=tensor.name, expected=expected, found=found, hint=flag)


def _check_fused(name: str, tensors: tuple[TensorPlan, ...]) -> None:
    schemes: dict[str, dict[str, QuantSpec | None]] = defaultdict(dict)
    for tensor in tensors:
        module = fused_group(tensor.name)
        if module is not None:
            schemes[module][tensor.name] = tensor.spec
    for module, by_name in schemes.items():
        if len(set(by_name.values())) > 1:
            odd = ", ".join(f"{n.rsplit('.', 2)[-2]} {_words(s)}" for n, s in by_name.items())
            raise UsageError(
                f"not readable by {name}, which fuses these",
                tensor=module,
                expected="one scheme",
                found=odd,
                hint="give them the same --set, or --ignore all of them",
            )


def fused_group(name: str) -> str | None:
    """Name what a tensor is fused into, or None.

    >>> fused_group("model.layers.0.mlp.up_proj.weight")
    'model.layers.0.mlp.gate_proj/up_proj'
    """
    for parts in _FUSED:
        found = re.search(rf"\.({'|'.join(parts)})\.weight$", name)
        if found:
            return name[: found.start()] + "." + "/".join(parts)
    return None


def _words(spec: QuantSpec | None) -> str:
    return "kept" if spec is None else f"{spec.bits} bits group {spec.group_size}"


def _listed(values: Iterable[int]) -> str:
    return "/".join(str(v) for v in sorted(values))
