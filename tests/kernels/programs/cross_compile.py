"""Compile workers for an instruction set that need not be this machine's, into files of LLVM IR, assembly and objects.

Arguments: the instruction set's name, a folder, and workers: `decode_rows:4,5,1` and the like. Numba makes the IR, as
ever, but is kept from making machine code of it; nothing that it compiles can run in this process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
from emitted import MACHINES
from numba.core import codegen, cpu
from numba.core.ccallback import CFunc

from llmq_kernels import simd
from llmq_kernels.activations import encode_rows
from llmq_kernels.decode import decode_rows
from llmq_kernels.dense_rows import dense_rows
from llmq_kernels.jit import cache_folder
from llmq_kernels.prefill import prefill_rows
from llmq_kernels.workers import Pointer, types

WORKERS: dict[str, Callable[..., None]] = {
    worker.__name__: worker for worker in (encode_rows, decode_rows, prefill_rows, dense_rows)
}


def target_of(name: str) -> simd.Target:
    """An instruction set with vectors of its width."""
    width = next((row[1] for row in simd._ROWS if row[0] == name), 16)
    return simd.Target(name, width, half=name != "portable")


def compile_nothing() -> None:
    """Keep Numba from making machine code, and from reading any: the cache is off in this process.

    It tells the functions of one signature apart by their entries alone, so that each needs one of its own.
    """
    codegen.JITCodeLibrary._finalize_specific = lambda self: None
    codegen.JITCodeLibrary.get_pointer_to_function = lambda self, name: 0
    cpu.CPUContext.get_executable = lambda self, library, description, environment: [].append
    assert cache_folder() is None


def libraries(library: Any) -> list[Any]:
    """What Numba has compiled for a function, and for those that it calls."""
    found = {id(library): library}
    for other in library._linking_libraries:
        found |= {id(inner): inner for inner in libraries(other)}
    return list(found.values())


def retargeted(module: Any, name: str) -> Any:
    """Numba's module for another CPU."""
    machine = MACHINES[name]
    dropped = "target triple", "target datalayout"
    lines = [line for line in str(module).splitlines() if not line.startswith(dropped)]
    return llvm.parse_assembly(f'target triple = "{machine.triple}"\n' + "\n".join(lines))


def compiled(worker: Callable[..., None], lengths: list[int], name: str) -> Any:
    """LLVM's module of a worker, for the CPU of an instruction set; its function is named `<worker>_worker`."""
    variant = [types.CPointer(types.UniTuple(types.int8, n)) for n in lengths]
    signature = types.void(Pointer, types.int64, *variant)
    function = CFunc(worker, (signature.args, signature.return_type), {}, {"error_model": "numpy", "nogil": True})
    function.compile()
    modules = [retargeted(library._final_module, name) for library in libraries(function._library)]
    for module in modules[1:]:
        modules[0].link_in(module)
    modules[0].get_function(function._wrapper_name).name = f"{worker.__name__}_worker"
    modules[0].verify()
    return modules[0]


def main() -> None:
    """Compile all that is asked for."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    compile_nothing()
    goal = target_of(name)
    simd.target_for = lambda features, cpu: goal
    machine = MACHINES[name].open()
    for text in sys.argv[3:]:
        worker, lengths = text.split(":")
        numbers = [int(n) for n in lengths.split(",")]
        module = compiled(WORKERS[worker], numbers, name)
        place = folder / f"{worker}-{lengths.replace(',', '-')}"
        place.with_suffix(".ll").write_text(str(module))
        place.with_suffix(".s").write_text(machine.emit_assembly(module))
        place.with_suffix(".o").write_bytes(machine.emit_object(module))


if __name__ == "__main__":
    main()
