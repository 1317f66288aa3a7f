"""Lessons on what bits hold: integers, two's complement, floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np

from lesson import Lesson, Table, number

if TYPE_CHECKING:
    from lesson_sample import Sample

__all__ = ["FORMATS", "FloatFormat", "bits_lesson", "complement_lesson", "fields", "floats_lesson", "precision_lesson"]


@dataclass(frozen=True)
class FloatFormat:
    """How a float divides its bits: one for the sign, some for the exponent, the rest for the mantissa."""

    name: str
    dtype: np.dtype[Any]
    exponent: int
    mantissa: int

    @property
    def bits(self) -> int:
        """All of them."""
        return 1 + self.exponent + self.mantissa

    @property
    def bias(self) -> int:
        """What is taken from a stored exponent."""
        return int(2 ** (self.exponent - 1)) - 1

    @property
    def largest(self) -> float:
        """The largest finite number: all bits of the mantissa set, and the exponent below that of infinity."""
        return (2.0 - 2.0**-self.mantissa) * 2.0**self.bias

    @property
    def smallest(self) -> float:
        """The smallest number of full precision."""
        return float(2.0 ** (1 - self.bias))

    @property
    def step(self) -> float:
        """From 1 to the next number."""
        return float(2.0**-self.mantissa)

    def round(self, value: float) -> float:
        """The nearest number of this format."""
        with np.errstate(over="ignore"):
            return float(np.array(value, np.float64).astype(self.dtype).astype(np.float64))


FORMATS: Final = (
    FloatFormat("float32", np.dtype(np.float32), 8, 23),
    FloatFormat("float16", np.dtype(np.float16), 5, 10),
    FloatFormat("bfloat16", np.dtype(ml_dtypes.bfloat16), 8, 7),
)


def fields(value: float, form: FloatFormat) -> tuple[str, str, str]:
    """Bits of sign, exponent and mantissa of a number.

    >>> fields(-6.25, FORMATS[1])
    ('1', '10001', '1001000000')
    """
    word = int(np.array(value, form.dtype).view(f"u{form.bits // 8}"))
    bits = f"{word:0{form.bits}b}"
    return bits[0], bits[1 : 1 + form.exponent], bits[1 + form.exponent :]


def bits_lesson(_sample: Sample) -> Lesson:
    """How many values, and which."""
    rows = []
    for bits in (1, 2, 3, 4, 5, 6, 7, 8, 16, 32):
        half = 2 ** (bits - 1)
        rows.append((str(bits), f"{2**bits:,}", f"0 .. {2**bits - 1:,}", f"{-half:,} .. {half - 1:,}"))
    return Lesson(
        "What bits can represent",
        "b bits take 2^b patterns: each further bit doubles them. What a pattern stands for is an agreement. Read as a "
        "binary number it is 0 .. 2^b - 1; read in two's complement it is -2^(b-1) .. 2^(b-1) - 1.",
        {"bits": Table(("bits", "patterns", "unsigned", "two's complement"), rows, left=0)},
        "There is one negative number more than positive ones, for zero takes the place of a positive one.",
    )


def complement_lesson(_sample: Sample) -> Lesson:
    """Negative integers."""
    rows = []
    for value in (0, 1, 5, 127, -128, -127, -5, -1):
        pattern = int(np.array(value, np.int8).view(np.uint8))
        bits = f"{pattern:08b}"
        rows.append((str(value), f"{bits[:4]} {bits[4:]}", str(pattern), f"{-128 * int(bits[0])} + {pattern & 127}"))
    with np.errstate(over="ignore"):
        wrapped = int(np.int8(127) + np.int8(1))
    columns = (2**31 - 1) // (127 * 127)
    return Lesson(
        "Two's complement",
        "The highest bit counts -2^(b-1), the others count as ever: a pattern p means p if its highest bit is 0, and "
        "p - 2^b if it is 1. To negate, turn all bits over and add one: 5 is 0000 0101, turned over 1111 1010, plus "
        "one 1111 1011, which is -5.",
        {"complement": Table(("value", "pattern", "as unsigned", "highest bit + others"), rows, left=0)},
        f"Additions need no special care, except where they overflow: 127 + 1 wraps to {wrapped} in 8 bits. So "
        "products of two int8 numbers, up to 127 * 127 = "
        f"{127 * 127:,}, are summed in int32, which holds {columns:,} such products.",
    )


def floats_lesson(_sample: Sample) -> Lesson:
    """Sign, exponent, mantissa."""
    parts = [(form.name, *fields(-6.25, form)) for form in FORMATS]
    limits = [
        (
            form.name,
            f"1 + {form.exponent} + {form.mantissa}",
            number(form.largest),
            number(form.smallest),
            number(form.step),
            f"{np.log10(2.0) * (form.mantissa + 1):.1f}",
        )
        for form in FORMATS
    ]
    return Lesson(
        "Floats: sign, exponent, mantissa",
        """
        A float is a number in scientific notation, to base two. Its bits are a sign s, an exponent e and a mantissa m:

            value = (-1)^s * 2^(e - bias) * (1 + m / 2^mantissa_bits)

        -6.25 is -1.5625 * 2^2, so its exponent field holds bias + 2 and its mantissa 0.5625:
        """,
        {
            "float-fields": Table(("format", "sign", "exponent", "mantissa"), parts, left=4),
            "float-limits": Table(
                ("format", "bits", "largest", "smallest normal", "step at 1", "digits"), limits, left=1
            ),
        },
        "The exponent decides how far the numbers reach, the mantissa how fine they are: a float is right to a "
        "share of itself, while a grid of integers is equally fine everywhere.",
    )


def precision_lesson(_sample: Sample) -> Lesson:
    """The same numbers with fewer bits."""
    values = (("0.1", 0.1), ("pi", np.pi), ("1000.1", 1000.1), ("2049", 2049.0), ("70000", 70000.0), ("1e-8", 1e-8))
    rows = [(name, *(f"{form.round(value):.9g}" for form in FORMATS)) for name, value in values]
    errors = []
    for name, value in values:
        shares = [abs(form.round(value) / value - 1.0) for form in FORMATS]
        errors.append((name, *("overflow" if np.isinf(share) else f"{number(100 * share, 2)} %" for share in shares)))
    headings = ("number", *(form.name for form in FORMATS))
    return Lesson(
        "What lower precision does to a float",
        "float16 and bfloat16 have 16 bits each. float16 gives more of them to the mantissa: finer, but 70000 is out "
        "of its reach and 1e-8 rounds to zero. bfloat16 is the upper half of a float32: the same reach, and two digits "
        "instead of float16's three. The numbers, and the errors:",
        {"precision": Table(headings, rows), "precision-errors": Table(headings, errors)},
        "That is why weights of language models come in bfloat16: none of them overflows, and two digits are "
        "enough. Quantization goes on where this leaves off.",
    )
