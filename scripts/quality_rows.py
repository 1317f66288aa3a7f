"""What is measured for docs/quality.md: our methods at widths and group sizes, and other quantizers beside them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from llmq.methods import METHODS
from quality_peers import LLAMA_TYPES

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CLIPPING", "FACTORS", "Row", "calibrated", "flags_of", "rows"]

FACTORS: Final = (8, 32)
"""Of outliers."""

_SHAPES: Final = (
    (8, 64),
    (6, 64),
    (5, 64),
    (4, 32),
    (4, 64),
    (4, 128),
    (3, 32),
    (3, 64),
    (3, 128),
    (2, 32),
    (2, 64),
)
_FEW: Final = ((4, 64), (3, 64), (2, 32))
CLIPPING: Final = frozenset({"percentile", "entropy"})
"""Methods that others outdo at every width."""

_TRAINED: Final = "block-ap"
"""Takes minutes a row."""

_FEWER: Final = CLIPPING | {_TRAINED}
"""Methods that are measured in few rows."""

_TARGETS: Final = (4.0, 3.25, 2.5)
_BETWEEN: Final = (6.5, 5.5, 3.0, 2.3)
"""More targets for the best method: a little smaller than types of llama.cpp."""

_MANY: Final = 32768
"""Tokens to calibrate on instead of the default: nearer to what other quantizers read."""

_OUTLIERS: Final = ((4, 64), (3, 64))
_WITHOUT: Final = frozenset({"IQ3_XXS", "IQ2_S", "IQ2_XS"})
"""Types that llama.cpp makes with an importance matrix only."""

_WITH: Final = frozenset(LLAMA_TYPES) - {"Q8_0"}
"""Types that look at one."""


@dataclass(frozen=True)
class Row:
    """One quantized model.

    Parameters
    ----------
    maker : str
        llmq, llama.cpp, HQQ or AutoRound.
    name : str
        What of it, in words.
    text : str or None
        What it is calibrated on: calibration, seen, or nothing.
    model : str
        plain, or outliers-8 and the like.
    method : str
        Ours, or the peer's own name.
    flags : tuple of str
        Of `llmq quantize`.
    peer : dict
        Arguments of a class of `quality_peers`.
    """

    maker: str
    name: str
    text: str | None = None
    model: str = "plain"
    method: str = ""
    flags: tuple[str, ...] = ()
    peer: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def key(self) -> str:
        """A name for files.

        >>> Row("llama.cpp", "Q4_K, imatrix", text="seen").key
        'llama.cpp-Q4_K-imatrix-seen-plain'
        """
        words = f"{self.maker} {self.name} {self.text or ''} {self.model}".replace(",", "")
        return "-".join(words.split())


def calibrated(method: str) -> bool:
    """Whether a method of ours needs data."""
    return METHODS[method].needs != "nothing"


def flags_of(method: str) -> tuple[str, ...]:
    """Flags of `llmq quantize` by which a method is compared: the head is kept, as in all rows."""
    return ("--method", method, "--lm-head", "keep")


def rows(*, seen: bool) -> Iterator[Row]:
    """List all rows; those calibrated on text that the model was trained on where there is such a text."""
    yield from _peers()
    for method in METHODS:
        for bits, group_size in _FEW if method in _FEWER else _SHAPES:
            yield _ours(method, bits, group_size)
        if method in _FEWER:
            continue
        for bits, group_size in _FEW:
            yield _ours(method, bits, group_size, symmetric=False)
        for target in _TARGETS:
            yield _target(method, target)
    yield from _more_text()
    yield from _with_outliers()
    if seen:
        for method in filter(calibrated, METHODS):
            yield from (_ours(method, bits, group_size, text="seen") for bits, group_size in _FEW)
        yield from (_llama(kind, "seen") for kind in ("Q4_K", "Q3_K", "Q2_K"))


def _more_text() -> Iterator[Row]:
    """The best methods on more of the text."""
    yield from (_many(_ours(_TRAINED, bits, group_size)) for bits, group_size in _FEW if bits < 4)
    yield from (_target(_TRAINED, target) for target in _TARGETS if target < 4)
    yield from (_many(_ours("gptq", bits, group_size, symmetric=bits == 2)) for bits, group_size in _FEW)
    yield from (_many(_target("gptq", target)) for target in sorted((*_TARGETS, *_BETWEEN), reverse=True))


def _with_outliers() -> Iterator[Row]:
    for factor in FACTORS:
        model = f"outliers-{factor}"
        for bits, group_size in _OUTLIERS:
            yield from (_ours(method, bits, group_size, model=model) for method in METHODS if method not in _FEWER)
        yield from (_llama(kind, "calibration", model) for kind in ("Q4_K", "Q3_K"))


def _ours(
    method: str,
    bits: int,
    group_size: int,
    *,
    symmetric: bool = True,
    text: str = "calibration",
    model: str = "plain",
) -> Row:
    name = f"{method}, {bits} bits, g{group_size}{'' if symmetric else ', asymmetric'}"
    grid = ("--bits", str(bits), "--group-size", str(group_size), "--symmetric" if symmetric else "--asymmetric")
    data = text if calibrated(method) else None
    return Row("llmq", name, data, model, method, (*grid, *flags_of(method)))


def _target(method: str, target: float) -> Row:
    flags = ("--target-bpw", str(target), *flags_of(method))
    data = "calibration" if calibrated(method) else None
    return Row("llmq", f"{method}, mixed widths, at most {target:g}", data, "plain", method, flags)


def _many(row: Row) -> Row:
    """The same, calibrated on more of the text."""
    flags = (*row.flags, "--calibrate-tokens", str(_MANY))
    return replace(row, name=f"{row.name}, {_MANY // 1024}k tokens", flags=flags)


def _peers() -> Iterator[Row]:
    for kind in LLAMA_TYPES:
        if kind not in _WITHOUT:
            yield _llama(kind, None)
        if kind in _WITH:
            yield _llama(kind, "calibration")
    for bits, group_size in ((8, 64), (4, 64), (3, 64), (2, 64), (2, 32)):
        for axis in (1, 0) if bits < 8 else (1,):
            name = f"{bits} bits, g{group_size}{'' if axis else ', along columns'}"
            peer = {"bits": bits, "group_size": group_size, "axis": axis}
            yield Row("HQQ", name, None, "plain", "HqqPeer", peer=peer)
    for bits, group_size in ((4, 64), (3, 64), (2, 32)):
        peer = {"bits": bits, "group_size": group_size}
        shape = f"{bits} bits, g{group_size}"
        for how, iters, windows in (("optimized rounding", 0, 32), ("tuned, 50 steps", 50, 32)):
            settings = peer | {"iters": iters, "nsamples": windows}
            yield Row("AutoRound", f"{how}, {shape}", "calibration", "plain", "AutoRoundPeer", peer=settings)


def _llama(kind: str, text: str | None, model: str = "plain") -> Row:
    name = f"{kind}, importance matrix" if text else kind
    return Row("llama.cpp", name, text, model, "LlamaPeer", peer={"kind": kind})
