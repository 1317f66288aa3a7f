"""Explicit vector code: instruction sets, the integer dot product on each of them, and a small emitter of LLVM IR.

Numba leaves 8-bit dot products to LLVM's vectorizer, which does not find `vpdpbusd` or `pmaddubsw`. So microkernels are
emitted with llvmlite's builder, as intrinsics: Python loops over planes, rows and tokens while emitting, and what runs
is straight-line vector code. The same emitter serves every width of code and of vector.
"""

from __future__ import annotations

import abc
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numba
import numba.core.codegen
import numba.extending
from llvmlite import binding as llvm
from llvmlite import ir
from numba.core import cgutils

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "Accumulator",
    "Emitter",
    "Target",
    "constant",
    "host_cpu",
    "host_features",
    "intrinsic",
    "new_accumulator",
    "target",
    "target_for",
    "tile_accumulator",
]

I8: Final = ir.IntType(8)
I16: Final = ir.IntType(16)
I32: Final = ir.IntType(32)
I64: Final = ir.IntType(64)
F32: Final = ir.FloatType()

intrinsic: Any = numba.extending.intrinsic
"""Numba's decorator, of which type checkers believe that callers pass the typing context."""

_config: Any = numba.config
_codegen: Any = numba.core.codegen


# --- instruction sets -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """What microkernels are emitted for.

    Parameters
    ----------
    name : str
        A key of `ACCUMULATORS`.
    width : int
        Bytes of a vector.
    half : bool
        Whether float16 converts in hardware; LLVM cannot compile the conversion of a vector elsewhere.
    shifts_bytes : bool
        Whether one instruction makes bytes of any neighbouring bits of 64 (`vpmultishiftqb` of AVX-512 VBMI).
    double_pumped : bool
        Whether a vector passes through units of half its width in two turns, one product a cycle at most, so that
        products take more time than the loads of what they multiply.
    """

    name: str
    width: int
    half: bool
    shifts_bytes: bool = False
    double_pumped: bool = False

    @property
    def lanes(self) -> int:
        """32-bit lanes of a vector."""
        return self.width // 4

    @property
    def registers(self) -> int:
        """Vector registers."""
        return 32 if self.name in ("avx512vnni", "neon") else 16

    def offset(self, bits: int) -> int:
        """What is taken off codes of `bits` bits before they are multiplied: a signed operand holds no 255."""
        return 128 if bits == 8 and self.name in ("avx2", "neon") else 0

    def operand(self, bits: int) -> int:
        """Bytes of an operand in tiles (see `tile_accumulator`)."""
        return 2 if bits == 8 and self.name == "avx2" else 1


_ROWS: Final[tuple[tuple[str, int, tuple[str, ...]], ...]] = (
    ("avx512vnni", 64, ("avx512vnni", "avx512bw", "avx512vl")),
    ("avxvnni", 32, ("avxvnni", "avx2")),
    ("avx2", 32, ("avx2",)),
    ("neon", 16, ("dotprod",)),
)
"""Instruction sets, best first: name, bytes of a vector, features that it needs. `portable` needs none."""

_DOUBLE_PUMPED: Final = ("znver4",)
"""LLVM's names of processors whose AVX-512 units are half as wide as its vectors. Zen 4 and Ice Lake servers have been
measured; others, some of which start one product a cycle too, count as the latter."""


def target_for(features: frozenset[str], cpu: str = "") -> Target:
    """Choose the best instruction set for features of a CPU; `cpu` is LLVM's name for it.

    Examples
    --------
    >>> target_for(frozenset({"avx2", "f16c", "fma"})).name
    'avx2'
    >>> target_for(frozenset())
    Target(name='portable', width=16, half=False, shifts_bytes=False, double_pumped=False)
    """
    half = "f16c" in features or "neon" in features or "avx512f" in features
    for name, width, needed in _ROWS:
        if features.issuperset(needed):
            wide = width == 64
            return Target(name, width, half, wide and "avx512vbmi" in features, wide and cpu in _DOUBLE_PUMPED)
    return Target("portable", 16, half)


def host_features() -> frozenset[str]:
    """Features that Numba compiles for: the machine's, or those of `NUMBA_CPU_FEATURES`."""
    text = _config.CPU_FEATURES
    if text is None:
        # Those of the machine even where another CPU is named, and none of AVX where `NUMBA_ENABLE_AVX` is off.
        text = _codegen.get_host_cpu_features()
    return frozenset(part[1:] for part in text.split(",") if part.startswith("+"))


def host_cpu() -> str:
    """LLVM's name of the processor that Numba compiles for: the machine's, or `NUMBA_CPU_NAME`."""
    return str(_config.CPU_NAME or llvm.get_host_cpu_name())


@functools.cache
def target() -> Target:
    """Return the instruction set of this process."""
    return target_for(host_features(), host_cpu())


# --- emitting ---------------------------------------------------------------------------------------------------


class Emitter:
    """A builder of LLVM IR that knows addresses, vectors and loops.

    Parameters
    ----------
    builder : llvmlite.ir.IRBuilder
    target : Target
    """

    def __init__(self, builder: Any, target: Target) -> None:
        self.builder = builder
        self.target = target

    def number(self, value: int) -> Any:
        """Make an int64 constant."""
        return ir.Constant(I64, value)

    def add(self, a: Any, b: Any) -> Any:
        """Add int64 values; either may be a Python int."""
        return self.builder.add(self._value(a), self._value(b))

    def mul(self, a: Any, b: Any) -> Any:
        """Multiply int64 values; either may be a Python int."""
        return self.builder.mul(self._value(a), self._value(b))

    def _value(self, a: Any) -> Any:
        return self.number(a) if isinstance(a, int) else a

    def load(self, address: Any, kind: Any, offset: int = 0) -> Any:
        """Load a value of type `kind` from an int64 address plus `offset` bytes, aligned or not."""
        return self.builder.load(self._pointer(address, offset), align=1, typ=kind)

    def store(self, value: Any, address: Any, offset: int = 0) -> None:
        """Store to an int64 address plus `offset` bytes, aligned or not."""
        self.builder.store(value, self._pointer(address, offset), align=1)

    def prefetch(self, address: Any, offset: int, level: int = 1) -> None:
        """Ask for the cache line at an address plus `offset` bytes, into the cache of a level from 1 to 3."""
        kind = ir.FunctionType(ir.VoidType(), [ir.PointerType(), I32, I32, I32])
        name = "llvm.prefetch.p0"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        flags = [ir.Constant(I32, n) for n in (0, 4 - level, 1)]
        self.builder.call(function, [self._pointer(address, offset), *flags])

    def _pointer(self, address: Any, offset: int) -> Any:
        pointer = self.builder.inttoptr(address, ir.PointerType())
        if not offset:
            return pointer
        return self.builder.gep(pointer, [self.number(offset)], inbounds=True, source_etype=I8)

    def splat(self, value: Any, lanes: int | None = None) -> Any:
        """Copy a scalar to all 32-bit lanes of a vector."""
        kind = ir.VectorType(value.type, lanes or self.target.lanes)
        one = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
        return self.shuffle(one, None, [0] * kind.count)

    def shuffle(self, a: Any, b: Any, order: Sequence[int]) -> Any:
        """Pick elements of two vectors by number."""
        other = ir.Constant(a.type, ir.Undefined) if b is None else b
        mask = ir.Constant(ir.VectorType(I32, len(order)), [ir.Constant(I32, i) for i in order])
        return self.builder.shuffle_vector(a, other, mask)

    def call(self, name: str, result: Any, *args: Any) -> Any:
        """Call an LLVM intrinsic."""
        kind = ir.FunctionType(result, [a.type for a in args])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), args)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """Compute `a * b + c` of float32 vectors, fused where the CPU can."""
        return self.call(f"llvm.fmuladd.v{a.type.count}f32", a.type, a, b, c)

    def to_float(self, a: Any) -> Any:
        """Convert int32 lanes to float32."""
        return self.builder.sitofp(a, ir.VectorType(F32, a.type.count))

    def sum_lanes(self, a: Any) -> Any:
        """Add the lanes of a float32 vector, halves first."""
        count = a.type.count
        while count > 1:
            count //= 2
            high = self.shuffle(a, None, list(range(count, 2 * count)))
            a = self.builder.fadd(self.shuffle(a, None, list(range(count))), high)
        return self.builder.extract_element(a, ir.Constant(I32, 0))

    def opaque(self, value: Any) -> Any:
        """Copy an int64, or on x86 a vector, to one that LLVM knows nothing of: it would unroll loops, and spill."""
        value = self._value(value)
        kind, register = ir.FunctionType(value.type, [value.type]), "x" if hasattr(value.type, "count") else "r"
        return self.builder.asm(kind, "", f"={register},0", [value], side_effect=False)

    def loop(
        self, stop: Any, step: int, carried: Sequence[Any], body: Callable[[Any, list[Any]], Sequence[Any]]
    ) -> list[Any]:
        """Emit a loop from 0 to `stop`, int64; `body(i, values)` returns the values for the next round."""
        builder = self.builder
        before, inside = builder.block, builder.append_basic_block("loop")
        after = builder.append_basic_block("after")
        builder.cbranch(builder.icmp_signed("<", self.number(0), stop), inside, after)
        builder.position_at_end(inside)
        i = builder.phi(I64)
        values = [builder.phi(value.type) for value in carried]
        results = list(body(i, list(values)))
        following = builder.add(i, self.number(step))
        latch = builder.block
        builder.cbranch(builder.icmp_signed("<", following, stop), inside, after)
        i.add_incoming(self.number(0), before)
        i.add_incoming(following, latch)
        builder.position_at_end(after)
        final = []
        for phi, value, result in zip(values, carried, results, strict=True):
            phi.add_incoming(value, before)
            phi.add_incoming(result, latch)
            out = builder.phi(value.type)
            out.add_incoming(value, before)
            out.add_incoming(result, latch)
            final.append(out)
        return final


# --- dot products -----------------------------------------------------------------------------------------------


class Accumulator(abc.ABC):
    """Sums of four products a lane: unsigned codes times signed activations, in 32 bits.

    Parameters
    ----------
    emitter : Emitter
    bits : int
        Width of the codes.
    """

    burst: int = 1 << 30
    """How many times `add` can be called between two calls of `settle`: a power of two."""

    def __init__(self, emitter: Emitter, bits: int) -> None:
        self.emitter = emitter
        self.bits = bits

    @property
    def kind(self) -> Any:
        """LLVM type of running sums."""
        return ir.VectorType(I32, self.emitter.target.lanes)

    @property
    def operand(self) -> Any:
        """LLVM type of codes and activations."""
        return ir.VectorType(I8, self.emitter.target.width)

    @abc.abstractmethod
    def add(self, running: Any, codes: Any, x: Any) -> Any:
        """Add the products of `width` uint8 codes and as many int8 activations: neighbouring four to each lane.

        The one operation that an instruction set must have. Codes lose the target's `offset` first.
        """

    def settle(self, running: Any) -> Any:
        """Turn running sums into int32 lanes."""
        return running

    def zero(self) -> Any:
        """Make running sums of nothing."""
        return ir.Constant(self.kind, None)

    def sum_of(self, pairs: Sequence[tuple[Any, Any]], start: Any = None) -> Any:
        """Sum the products of all pairs of codes and activations, and int32 lanes to start from."""
        for first in range(0, len(pairs), self.burst):
            running = self.zero()
            for codes, x in pairs[first : first + self.burst]:
                running = self.add(running, codes, x)
            settled = self.settle(running)
            start = settled if start is None else self.emitter.builder.add(start, settled)
        return start


class _Vnni(Accumulator):
    """`vpdpbusd` of AVX-512 VNNI and AVX-VNNI."""

    def add(self, running: Any, codes: Any, x: Any) -> Any:
        width = 8 * self.emitter.target.width
        return self.emitter.call(f"llvm.x86.avx512.vpdpbusd.{width}", running.type, running, codes, x)


class _Neon(Accumulator):
    """`sdot`: both operands are signed, which codes of 7 bits are; those of 8 lose 128."""

    def add(self, running: Any, codes: Any, x: Any) -> Any:
        if self.bits == 8:
            codes = self.emitter.builder.xor(codes, constant(codes.type, 128))
        return self.emitter.call("llvm.aarch64.neon.sdot.v4i32.v16i8", running.type, running, codes, x)


class _Portable(Accumulator):
    """Products of 16 bits, widened and added one by one."""

    def add(self, running: Any, codes: Any, x: Any) -> Any:
        emitter, builder = self.emitter, self.emitter.builder
        wide = ir.VectorType(I16, codes.type.count)
        products = builder.mul(builder.zext(codes, wide), builder.sext(x, wide))
        for i in range(4):
            part = emitter.shuffle(products, None, list(range(i, codes.type.count, 4)))
            running = builder.add(running, builder.sext(part, running.type))
        return running


class Avx2(Accumulator):
    """`pmaddubsw` adds pairs of products in 16 bits, `pmaddwd` pairs of those in 32.

    As many sums of 16 bits are added as cannot overflow: eight for codes of 4 bits. A pair of products of 8-bit codes
    would not fit at all: they lose 128, and the sign of what is left moves to the activations, for one operand is
    unsigned.
    """

    def __init__(self, emitter: Emitter, bits: int) -> None:
        super().__init__(emitter, bits)
        most = max(1, 32767 // (2 * 127 * (2**bits - 1)))
        self.burst = 1 << (most.bit_length() - 1)

    @property
    def kind(self) -> Any:
        """LLVM type of running sums."""
        return ir.VectorType(I16, 16)

    def add(self, running: Any, codes: Any, x: Any) -> Any:
        emitter = self.emitter
        if self.bits == 8:
            codes = emitter.builder.xor(codes, constant(codes.type, 128))
            x = emitter.call("llvm.x86.avx2.psign.b", x.type, x, codes)
            codes = emitter.call("llvm.abs.v32i8", codes.type, codes, ir.Constant(ir.IntType(1), 0))
        return emitter.builder.add(running, emitter.call("llvm.x86.avx2.pmadd.ub.sw", self.kind, codes, x))

    def settle(self, running: Any) -> Any:
        ones = constant(running.type, 1)
        return self.emitter.call("llvm.x86.avx2.pmadd.wd", ir.VectorType(I32, 8), running, ones)


class _Avx2Words(Accumulator):
    """`pmaddwd` alone, of operands that were widened to 16 bits when they were put into a tile: two products a lane."""

    @property
    def operand(self) -> Any:
        """LLVM type of codes and activations."""
        return ir.VectorType(I16, 16)

    def add(self, running: Any, codes: Any, x: Any) -> Any:
        emitter = self.emitter
        return emitter.builder.add(running, emitter.call("llvm.x86.avx2.pmadd.wd", self.kind, codes, x))


ACCUMULATORS: Final[dict[str, type[Accumulator]]] = {
    "avx512vnni": _Vnni,
    "avxvnni": _Vnni,
    "avx2": Avx2,
    "neon": _Neon,
    "portable": _Portable,
}


def new_accumulator(emitter: Emitter, bits: int) -> Accumulator:
    """Return the sums of products of the emitter's instruction set."""
    return ACCUMULATORS[emitter.target.name](emitter, bits)


def tile_accumulator(emitter: Emitter, bits: int) -> Accumulator:
    """Return the sums of products of operands that are unpacked once; those of two bytes have lost the `offset`."""
    return _Avx2Words(emitter, bits) if emitter.target.operand(bits) == 2 else new_accumulator(emitter, bits)


def constant(kind: Any, value: float) -> Any:
    """Make a constant vector of one value."""
    return ir.Constant(kind, [ir.Constant(kind.element, value)] * kind.count)
