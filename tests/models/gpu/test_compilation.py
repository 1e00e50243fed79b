"""The kernels compile for GPUs, in the shapes of BERT-base: what the interpreter accepts, Triton's compiler need not.

It needs no GPU. That registers spill would only make them slow; that shared memory is too small would end the run.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.support.jobs import REPOSITORY

pytest.importorskip("triton")
MOST_SHARED_BYTES = 99 * 1024
"""Shared memory of a program on GPUs of capability 8.6 and 8.9; others have more."""
CODE = """
import json, sys, warnings
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from models.gpu.kernels import attention, embed, layer_norm, pool

warnings.simplefilter("ignore")
PROGRAMS = {
    "attention": (attention._attend, dict(HIDDEN=768, WIDTH=64, BLOCK=64, STEP=64, COLUMNS=64), 4, 1),
    "layer_norm": (layer_norm._add_norm, dict(HIDDEN=768, COLUMNS=1024, TOKENS=4), 4, 3),
    "pool": (pool._pool, dict(HEADS=12, HIDDEN=768, CHUNK=256, HELD=3, BLOCK_N=16, BLOCK_L=16), 4, 3),
    "embed": (
        embed._embed,
        dict(WIDTH=768, COLUMNS=1024, TOKENS=4, FIRST_POSITION=2, PAD=1, TYPES=2, TASKS=1), 4, 3,
    ),
}
KINDS = {"bounds": "*i32", "ids": "*i32", "segments": "*i32", "first_row": "i32", "rows": "i32", "tokens": "i32",
         "scale": "fp32", "eps": "fp32"}
PROGRAMS["attention of wide heads"] = (
    attention._attend, dict(HIDDEN=1024, WIDTH=128, BLOCK=128, STEP=128, COLUMNS=128), 2 * attention.WARPS[128], 1
)
for name, (kernel, constants, warps, stages) in PROGRAMS.items():
    signature = {arg: "constexpr" if arg in constants else KINDS.get(arg, "*bf16") for arg in kernel.arg_names}
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants),
        target=GPUTarget("cuda", int(sys.argv[1]), 32), options=dict(num_warps=warps, num_stages=stages),
    )
    products = any(word in compiled.asm["ptx"] for word in ("mma.sync", "wgmma"))
    print(json.dumps([name, compiled.metadata.shared, products]))
"""


@pytest.mark.parametrize("capability", ["80", "90"])
def test_kernels_compile_for_a_gpu_and_use_its_matrix_instructions(capability: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, capability],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    compiled = {name: (shared, products) for name, shared, products in map(json.loads, done.stdout.splitlines())}
    assert {name for name, (_, products) in compiled.items() if products} == {
        "attention",
        "attention of wide heads",
        "pool",
    }
    assert len(compiled) == 5
    assert max(shared for shared, _ in compiled.values()) <= MOST_SHARED_BYTES
