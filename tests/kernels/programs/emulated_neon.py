"""Multiply with the workers of `neon`, compiled here and run by `qemu-aarch64`, and compare with the references.

Arguments: a folder for what is compiled, and widths of codes. Needs the Debian packages `qemu-user` and
`gcc-aarch64-linux-gnu`. Prints how many products were right.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cross_compile import compile_nothing, compiled, target_of
from emitted import MACHINES
from packed_cases import VARIANTS, check_product, random_packed

from llmq_kernels import bundle, dense_rows, simd, workers
from llmq_kernels.bundle import Bundle
from llmq_kernels.dense import matmul_dense_reference
from llmq_kernels.layout import SCALE_KINDS

FOLDER = Path(sys.argv[1])
Range = tuple[int, int]


class Emulator:
    """Stands in for `worker_address`, `launch` and `Turns`."""

    def __init__(self) -> None:
        self.programs: list[Path] = []
        self.ranges: Callable[[], list[Range]] = list

    def worker_address(self, function: Callable[..., None], *lengths: int) -> int:
        """Compile a worker to a program; return its number."""
        program = FOLDER / "-".join([function.__name__, *map(str, lengths)])
        if not program.exists():
            module = compiled(function, list(lengths), "neon")
            program.with_suffix(".o").write_bytes(MACHINES["neon"].open().emit_object(module))
            source = Path(__file__).with_name("emulated.c")
            command = ["aarch64-linux-gnu-gcc", "-static", "-O1", f"-DWORKER={function.__name__}_worker"]
            # What Numba would do with errors is called by nobody.
            command += ["-Wl,--unresolved-symbols=ignore-all", source, program.with_suffix(".o"), "-o", program]
            subprocess.run(command, check=True)
        self.programs.append(program)
        return len(self.programs) - 1

    def launch(self, address: int, parameters: int, workers: int) -> None:
        """Run a program on an image of all arrays, and take what it has written."""
        ranges = self.ranges()
        starts, place = [], 0
        for _, size in ranges:
            starts.append(place)
            place += -(-size // 64) * 64 + 64
        image = np.zeros(place, np.uint8)
        for (start, size), at in zip(ranges, starts, strict=True):
            image[at : at + size] = np.frombuffer(ctypes.string_at(start, size), np.uint8)
        (base,) = (at for (start, _), at in zip(ranges, starts, strict=True) if start == parameters)
        words = image[base:][: dict(ranges)[parameters]].view(np.int64)
        moved = []
        for i, value in enumerate(words.tolist()):
            for (start, size), at in zip(ranges, starts, strict=True):
                if start <= value <= start + size and value:
                    words[i] = at + value - start
                    moved.append(base + 8 * i)
                    break
        head = np.array([len(moved), *moved, base], np.int64).tobytes()
        file = FOLDER / "image"
        before = head + bytes(-len(head) % 64)
        file.write_bytes(before + image.tobytes())
        subprocess.run(["qemu-aarch64", self.programs[address], file], check=True)
        after = file.read_bytes()[len(before) :]
        for (start, size), at in zip(ranges, starts, strict=True):
            if start != parameters:
                ctypes.memmove(start, after[at : at + size], size)


class EmulatedTurns(workers.Turns):
    """Runs two programs one after the other."""

    emulator: Emulator

    def launch(self, first: int, second: int, workers: int) -> None:
        """Run the programs of both workers."""
        self._numbers[:, 0] = 0
        for program in first, second:
            self.emulator.launch(program, int(self._addresses[2]), workers)


class Recorded:
    """Makes plans as a class does, and knows what the arrays of the last one are."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make
        self.arrays: list[np.ndarray] = []

    def __call__(self, *given: Any) -> Any:
        """Make a plan."""
        plan = self.make(*given)
        self.arrays = arrays_in(plan) + (arrays_in(plan.turns) if hasattr(plan, "turns") else [])
        return plan


def ranges_of(*arrays: np.ndarray) -> list[Range]:
    """Addresses and sizes of arrays that are not empty."""
    return [(array.ctypes.data, array.nbytes) for array in arrays if array.nbytes]


def arrays_in(thing: Any) -> list[np.ndarray]:
    """Arrays that an object keeps."""
    return [value for value in vars(thing).values() if isinstance(value, np.ndarray)]


def packed_products(emulator: Emulator, bits: int) -> int:
    """Multiply by packed weights."""
    plans = bundle._Plan = Recorded(bundle._Plan)
    rng = np.random.default_rng(bits)
    small, large = (variant for variant in VARIANTS if variant.bits == bits and variant.group in (16, 32, 256))
    done = 0
    for variant, tokens, rows in ((small, 2, 5), (small, 9, 19), (large, 5, 3), (small, 2, 30), (small, 7, 33)):
        shape = rows, variant.group_sizes[done % len(variant.group_sizes)] * (1 + done % 5)
        symmetric = variant.symmetric[0]
        kind = sorted(SCALE_KINDS)[done % 3]
        matrix = random_packed(rng, shape, (bits, shape[1] // (1 + done % 5), symmetric), kind=kind, beside=done)
        x, out = rng.standard_normal((tokens, shape[1])).astype(np.float32), np.zeros((tokens, rows), np.float32)
        both = Bundle((matrix,))

        def ranges(both: Bundle = both, x: np.ndarray = x, out: np.ndarray = out) -> list[Range]:
            views = [view for views in both._views for view in views]
            return ranges_of(x, out, *plans.arrays, *views, *arrays_in(both))

        emulator.ranges = ranges
        both.multiply(x, [out])
        check_product(x, matrix, out)
        done += 1
        bundle._kept.__dict__["plans"].clear()
    bundle._Plan = plans.make
    return done


def dense_products(emulator: Emulator) -> int:
    """Multiply by weights that are not quantized."""
    rng, plans = np.random.default_rng(0), Recorded(dense_rows._Plan)
    dense_rows._Plan = plans
    for number, kind in enumerate(SCALE_KINDS):
        weight = rng.integers(0, 1 << 15, (11, 29), np.uint16) & 0x3FFF
        if kind == "float32":
            weight = rng.standard_normal((11, 29)).astype(np.float32).view(np.uint16)
        x, out = rng.standard_normal((3, 29)).astype(np.float32), np.zeros((3, 11), np.float32)
        emulator.ranges = lambda arrays=(x, weight, out): ranges_of(*arrays, *plans.arrays)
        dense_rows.multiply_few(x, weight, number, out)
        stored = weight.view(np.float32) if kind == "float32" else weight
        wide = np.abs(stored if kind == "float32" else as_float(weight, kind))
        off = np.abs(out - matmul_dense_reference(x, stored, kind))
        assert (off <= 1e-5 * np.abs(x) @ wide.T).all(), kind
    return number + 1


def as_float(bits: np.ndarray, kind: str) -> np.ndarray:
    """Widen in plain NumPy, for no kernel can run here."""
    if kind == "float16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def main() -> None:
    """Compile, emulate, compare."""
    compile_nothing()
    goal = target_of("neon")
    simd.target_for = lambda features, cpu: goal
    emulator = Emulator()
    EmulatedTurns.emulator = emulator
    bundle.worker_address, bundle.Turns = emulator.worker_address, EmulatedTurns
    dense_rows.worker_address, dense_rows.launch = emulator.worker_address, emulator.launch
    bundle.address_of = dense_rows.address_of = lambda array: array.ctypes.data
    print(sum(packed_products(emulator, int(bits)) for bits in sys.argv[2:]) + dense_products(emulator))


if __name__ == "__main__":
    main()
