"""Compile the kernels for GPUs that are not here, and say what each needs: a table, one row a kernel and architecture.

A process of its own, since Triton's interpreter (TRITON_INTERPRET=1) takes the place of its compiler for good.
"""

import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.knobs import nvidia
from triton.runtime import JITFunction

from fsg import triton_kernels, triton_mamba

ARCHITECTURES = (80, 90, 100)
INTEGERS = {"E": "i32", "N": "i32", "T": "i32", "M": "i32"}
INDICES = {"start", "length", "skip", "row", "speaking", "first_chunk", "chunks", "position"}
NEEDS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads[\s\S]*?Used (\d+) registers")


def options(name: str) -> dict[str, dict[str, int]]:
    """Of a kernel, by name, what the block sizes are: for the default slow net and the released one's channels."""
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


def main() -> None:
    print("kernel architecture registers spilled shared")
    kernels = {name: one for name, one in vars(triton_kernels).items() if isinstance(one, JITFunction)}
    for name, kernel in kernels.items():
        for variant, given in options(name).items():
            for architecture in ARCHITECTURES:
                needs = compiled(kernel, given, architecture)
                print(f"{name}{variant.replace(' ', ':')} sm_{architecture}", *needs, flush=True)


if __name__ == "__main__":
    main()
