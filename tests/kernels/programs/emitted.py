"""Emitted code by itself: compiled by LLVM for any CPU, and called where it is this one.

A function of the emitter's reaches Numba in workers that take a second to compile. By itself it takes milliseconds, for
instruction sets that the machine does not have too: their assembly can be read, if not run.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from llmq_kernels.simd import I64, Emitter, Target

llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()

Emit = Callable[[Emitter, list[Any]], None]


@dataclass(frozen=True)
class Machine:
    """What to compile for: a triple of LLVM, the name of a CPU, and features."""

    triple: str
    cpu: str
    features: str

    def open(self) -> Any:
        """Make LLVM's view of it."""
        target = llvm.Target.from_triple(self.triple)
        return target.create_target_machine(cpu=self.cpu, features=self.features, opt=3)


X86 = "x86_64-unknown-linux-gnu"
MACHINES = {
    "avx512vnni": Machine(X86, "cascadelake", ""),
    "avxvnni": Machine(X86, "alderlake", ""),
    "avx2": Machine(X86, "haswell", ""),
    "portable": Machine(X86, "x86-64", ""),
    "neon": Machine("aarch64-unknown-linux-gnu", "generic", "+neon,+dotprod"),
}
"""CPUs that have an instruction set of `llmq_kernels.simd`, and no better one."""


def host() -> Machine:
    """This machine."""
    features = llvm.get_host_cpu_features().flatten()
    return Machine(llvm.get_process_triple(), llvm.get_host_cpu_name(), features)


def build(target: Target, arguments: int, emit: Emit) -> ir.Module:
    """Emit ``void piece(int64, ...)``."""
    module = ir.Module("piece")
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * arguments), "piece")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    emit(Emitter(builder, target), list(function.args))
    builder.ret_void()
    return module


def _optimized(module: ir.Module, machine: Machine) -> tuple[Any, Any]:
    opened = machine.open()
    module.triple = machine.triple
    module.data_layout = str(opened.target_data)
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    options = llvm.PipelineTuningOptions(speed_level=3)
    passes = llvm.create_pass_builder(opened, options)
    passes.getModulePassManager().run(parsed, passes)
    return parsed, opened


def assembly(module: ir.Module, machine: Machine) -> str:
    """Compile to assembly."""
    parsed, opened = _optimized(module, machine)
    text: str = opened.emit_assembly(parsed)
    return text


class Piece:
    """Emitted code of this machine, called with arrays (their addresses are taken) and numbers."""

    def __init__(self, target: Target, arguments: int, emit: Emit) -> None:
        parsed, opened = _optimized(build(target, arguments, emit), host())
        self._engine = llvm.create_mcjit_compiler(parsed, opened)
        self._engine.finalize_object()
        kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * arguments)
        self._function = kind(self._engine.get_function_address("piece"))

    def __call__(self, *args: np.ndarray | int) -> None:
        """Run it."""
        self._function(*(a.ctypes.data if isinstance(a, np.ndarray) else a for a in args))


def runnable() -> Sequence[Target]:
    """Instruction sets, and widths of vectors, that this machine can execute."""
    has = {name for name, yes in llvm.get_host_cpu_features().items() if yes}
    found = [Target("portable", width, half=False) for width in (16, 32, 64)]
    if "f16c" in has:
        found.append(Target("portable", 32, half=True))
    if "avx2" in has:
        found.append(Target("avx2", 32, half=True))
    if "avxvnni" in has:
        found.append(Target("avxvnni", 32, half=True))
    if {"avx512vnni", "avx512bw", "avx512vl"} <= has:
        found.append(Target("avx512vnni", 64, half=True))
        if "avx512vbmi" in has:
            found.append(Target("avx512vnni", 64, half=True, shifts_bytes=True))
    if "dotprod" in has:
        found.append(Target("neon", 16, half=True))
    return found


def name_of(target: Target) -> str:
    """A name for a test."""
    more = {"nohalf": not target.half, "vbmi": target.shifts_bytes}
    return "-".join([target.name, str(target.width), *(name for name, is_so in more.items() if is_so)])
