"""Memory by address, for loops around emitted microkernels: copies, single values, and a counter that threads share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.np import arrayobj

from llmq_kernels.jit import jit
from llmq_kernels.simd import I8, I64, Emitter, intrinsic, target

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "address",
    "address_of",
    "call_worker",
    "clear_bytes",
    "copy_bytes",
    "elements",
    "expand",
    "floats",
    "longs",
    "matrix_at",
    "next_number",
    "octets",
    "pointer_address",
    "prefetch",
    "shorts",
    "signed_octets",
    "words",
]


@intrinsic
def address(typingctx: Any, array: Any) -> Any:
    """Return where an array begins, as int64; Numba's own `array.ctypes.data` is unsigned and makes floats of sums."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, I64)

    return types.int64(array), emit


@jit
def address_of(array: np.ndarray) -> int:
    """`address` for Python: five times as fast as `array.ctypes.data`."""
    return int(address(array))


@intrinsic
def pointer_address(typingctx: Any, pointer: Any) -> Any:
    """Return where a pointer points to, as int64."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], I64)

    return types.int64(pointer), emit


@intrinsic
def elements(typingctx: Any, address: Any, variant: Any) -> Any:
    """Make a pointer of an int64 address: to float32, uint16, int8 or uint8 where the variant's length is 1 to 4."""
    kind = (types.float32, types.uint16, types.int8, types.uint8)[variant.dtype.count - 1]
    return types.CPointer(kind)(address, variant), _emit_pointer


@intrinsic
def clear_bytes(typingctx: Any, address: Any, count: Any) -> Any:
    """Write `count` zeros from an int64 address on."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        cgutils.memset(builder, builder.inttoptr(args[0], ir.PointerType(I8)), args[1], 0)
        return context.get_dummy_value()

    return types.void(address, count), emit


@intrinsic
def copy_bytes(typingctx: Any, target: Any, source: Any, count: Any) -> Any:
    """Copy `count` bytes from one int64 address to another."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, source = (builder.inttoptr(a, ir.PointerType(I8)) for a in args[:2])
        cgutils.raw_memcpy(builder, to, source, args[2], 1, align=1)
        return context.get_dummy_value()

    return types.void(target, source, count), emit


@intrinsic
def octets(typingctx: Any, address: Any) -> Any:
    """Make a pointer to uint8 of an int64 address."""
    return types.CPointer(types.uint8)(address), _emit_pointer


@intrinsic
def floats(typingctx: Any, address: Any) -> Any:
    """Make a pointer to float32 of an int64 address."""
    return types.CPointer(types.float32)(address), _emit_pointer


@intrinsic
def matrix_at(typingctx: Any, address: Any, rows: Any, columns: Any, like: Any) -> Any:
    """Make an array (rows, columns) of the memory at an int64 address, which must stay alive.

    `like` is a type such as `np.uint8`, or a variant whose length, 2 or 4, is that of unsigned integers.
    """
    kind = (
        like.dtype if isinstance(like, types.NumberClass) else types.Integer.from_bitwidth(8 * like.dtype.count, False)
    )
    array = types.Array(kind, 2, "C")

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        made = context.make_array(array)(context, builder)
        size = context.get_abi_sizeof(context.get_data_type(kind))
        arrayobj.populate_array(
            made,
            data=builder.inttoptr(args[0], made.data.type),
            shape=args[1:3],
            strides=[builder.mul(args[2], I64(size)), I64(size)],
            itemsize=I64(size),
            meminfo=None,
        )
        return made._getvalue()  # noqa: SLF001

    return array(address, rows, columns, like), emit


@intrinsic
def signed_octets(typingctx: Any, address: Any) -> Any:
    """Make a pointer to int8 of an int64 address."""
    return types.CPointer(types.int8)(address), _emit_pointer


@intrinsic
def shorts(typingctx: Any, address: Any) -> Any:
    """Make a pointer to int16 of an int64 address."""
    return types.CPointer(types.int16)(address), _emit_pointer


@intrinsic
def longs(typingctx: Any, address: Any) -> Any:
    """Make a pointer to int64 of an int64 address."""
    return types.CPointer(types.int64)(address), _emit_pointer


@intrinsic
def words(typingctx: Any, address: Any) -> Any:
    """Make a pointer to int32 of an int64 address."""
    return types.CPointer(types.int32)(address), _emit_pointer


def _emit_pointer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.inttoptr(args[0], context.get_value_type(signature.return_type))


@intrinsic
def expand(typingctx: Any, target: Any, source: Any, size: Any, count: Any, repeat: Any) -> Any:
    """Copy `count` items of `size` bytes, each source item `repeat` times in a row; all arguments are int64."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target, source, size, count, repeat = args
        with builder.if_else(builder.icmp_signed("==", repeat, I64(1))) as (once, often):
            with once:
                to, origin = (builder.inttoptr(a, ir.PointerType(I8)) for a in (target, source))
                cgutils.raw_memcpy(builder, to, origin, count, size, align=1)
            with often, cgutils.for_range(builder, count, intp=I64) as item:
                start = builder.mul(builder.sdiv(item.index, repeat), size)
                with cgutils.for_range(builder, size, intp=I64) as byte:
                    place = builder.add(builder.add(source, start), byte.index)
                    value = builder.load(builder.inttoptr(place, ir.PointerType(I8)), typ=I8)
                    place = builder.add(builder.add(target, builder.mul(item.index, size)), byte.index)
                    builder.store(value, builder.inttoptr(place, ir.PointerType(I8)))
        return context.get_dummy_value()

    return types.void(target, source, size, count, repeat), emit


@intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """Ask for the cache line at an int64 address, which need not exist, into the second-level cache."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        Emitter(builder, target()).prefetch(args[0], 0, level=2)
        return context.get_dummy_value()

    return types.void(address), emit


@intrinsic
def next_number(typingctx: Any, address: Any) -> Any:
    """Take the next number of an int64 counter at an address: no two threads get the same.

    Who finds none left sees all that others wrote before they took theirs, that they are at work among it (`in_turn`).
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], ir.PointerType(I64))
        return builder.atomic_rmw("add", place, ir.Constant(I64, 1), "acq_rel")

    return types.int64(address), emit


@intrinsic
def call_worker(typingctx: Any, address: Any, parameters: Any, number: Any) -> Any:
    """Call the C function at an int64 address with the address of its parameters and a number.

    Further arguments, of which workers look at the types alone, are null pointers: more than a function takes do no
    harm in C.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        nothing = [ir.Constant(ir.PointerType(), None)] * 5
        kind = ir.FunctionType(ir.VoidType(), [ir.PointerType(), I64] + [a.type for a in nothing])
        data = builder.inttoptr(args[1], ir.PointerType())
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [data, args[2], *nothing])
        return context.get_dummy_value()

    return types.void(address, parameters, number), emit
