"""Compile the kernels for GPUs that are not here, and say what each needs: a table, one row a kernel and architecture.

A process of its own, since Triton's interpreter (TRITON_INTERPRET=1) takes the place of its compiler for good.
Exit status: 0 all compile and keep to registers, 1 one does not.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from fsg.selective_scan import HAS_TRITON

if not HAS_TRITON:
    print("NOT RUN tests/accelerator/compile_offline.py: Triton is not installed")
    sys.exit()

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.knobs import nvidia
from triton.runtime import JITFunction

from fsg import triton_kernels, triton_mamba

ARCHITECTURES = (80, 90, 100)
SPILLED = 64  # bytes a thread that do no harm
INTEGERS = {"E": "i32", "N": "i32", "T": "i32", "M": "i32"}
INDICES = {"start", "length", "skip", "row", "speaking", "first_chunk", "chunks", "position"}
NEEDS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads[\s\S]*?Used (\d+) registers")


def options(name: str) -> dict[str, dict[str, int]]:
    """Of each variant of a kernel, its block sizes for the default slow net."""
    if name.startswith("convolve"):
        return {"": {"TAPS": 4, "BLOCK_T": triton_mamba.BLOCK_T, "BLOCK_E": 16, "num_warps": 4}}
    sizes = triton_mamba.blocks_of(16, 16).options | {"STEP": triton_mamba.STEP, "PARTS": triton_mamba.PARTS}
    return (
        {" forward": {**sizes, "REVERSE": 0}, " reverse": {**sizes, "REVERSE": 1}} if name == "carry" else {"": sizes}
    )


def compiled(kernel: JITFunction, given: dict[str, int], architecture: int) -> tuple[int, int, int]:
    """Registers a thread, bytes spilled, bytes of shared memory."""
    names = kernel.arg_names
    constants = {name: given[name] for name in names if name in given}
    kinds = {name: INTEGERS.get(name, "*i64" if name in INDICES else "*fp32") for name in names}
    source = ASTSource(kernel, kinds | dict.fromkeys(constants, "constexpr"), constants)
    made = triton.compile(source, GPUTarget("cuda", architecture, 32), {"num_warps": given["num_warps"]})
    assembler = nvidia.ptxas_blackwell if architecture >= 100 else nvidia.ptxas
    target = re.search(r"\.target (\w+)", made.asm["ptx"])
    assert target is not None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(made.asm["ptx"])
        command = [assembler.path, "-v", f"--gpu-name={target[1]}", str(file), "-o", str(file.with_suffix(".cubin"))]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    needs = NEEDS.search(said)
    assert needs is not None, said
    return int(needs[3]), int(needs[1]) + int(needs[2]), made.metadata.shared


def main() -> int:
    print(f"{'kernel':<24} {'GPU':<7} registers  bytes spilled  bytes shared")
    most = 0
    kernels = {
        name: one
        for name, one in vars(triton_kernels).items()
        if isinstance(one, JITFunction) and "BLOCK_E" in one.arg_names
    }
    for name, kernel in kernels.items():
        for variant, given in options(name).items():
            for architecture in ARCHITECTURES:
                registers, spilled, shared = compiled(kernel, given, architecture)
                row = f"{name + variant:<24} sm_{architecture:<4} {registers:9}  {spilled:13}  {shared:12}"
                print(row, flush=True)
                most = max(most, spilled)
    return int(most > SPILLED)


if __name__ == "__main__":
    sys.exit(main())
