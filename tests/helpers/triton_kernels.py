"""Run Triton kernels in processes of their own, and compile them for a GPU that is not there.

Whether Triton's interpreter computes them, on CPU tensors, is decided when Triton is imported. CPU
builds of PyTorch come without Triton.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run(program: str, last: str, *words: str, interpret: bool) -> None:
    environment = dict(os.environ, TRITON_INTERPRET="1" if interpret else "0")
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith(f"{last}\n")


#: Compiles a kernel for an H200 (sm_90), which takes no device. kinds: of arguments but i32.
BUILD = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

def built(kernel, kinds, constants):
    signature = {name: kinds.get(name, "i32") for name in kernel.arg_names}
    # A pointer whose alignment is not known is not copied from in parts of 16 bytes.
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names)
               if name not in constants and signature[name].startswith("*")}
    source = ASTSource(
        fn=kernel, signature=signature | dict.fromkeys(constants, "constexpr"), attrs=aligned,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
    )
    options = {"num_warps": 4, "num_stages": 3}
    made = compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert made.metadata.shared <= 227 * 1024, made.metadata.shared  # what a processor has
"""
