"""Kernels compiled for an H100 without one: what an op would launch is recorded, then assembled.

Triton needs no GPU to compile for one, and brings its assembler along. What each case
takes is its budget, `budgets.json`: `python -m tests.kernels.compiling` records it anew, to be read
before it is committed. A budget that grows is a change of its own.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

BUDGETS = Path(__file__).parent / "budgets.json"
WIDE = r"ld\.global[.\w:]*\.(?:v4\.b32|v2\.b64)|cp\.async\.cg\.shared\.global [^;]*0x10"
"""In PTX, a load of 16 bytes."""

HOPPER = GPUTarget("cuda", 90, 32)
TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Launch:
    """A kernel and what it was started with."""

    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, int]


@dataclass(frozen=True)
class Compiled:
    """What one program takes, and how it loads.

    Args:
        registers: of each thread.
        shared: bytes.
        stack: bytes of each thread; what does not fit the registers is spilled there.
        wide_loads: instructions that load 16 bytes for each thread.
    """

    registers: int
    shared: int
    stack: int
    wide_loads: int


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Kernels that are started in here are noted, and not run: what they would write stays as it
    is."""
    launches: list[Launch] = []

    def note(self: JITFunction, *given: Any, grid: Any, warmup: bool, **named: Any) -> None:
        assert all(isinstance(n, int) and n > 0 for n in grid), grid
        options = {name: named.pop(name) for name in [*named] if name not in self.arg_names}
        arguments = dict(zip(self.arg_names, given, strict=False)) | named
        assert set(arguments) == set(self.arg_names)
        launches.append(Launch(self, arguments, options))

    with mock.patch.object(JITFunction, "run", note):
        yield launches


def compiled(launch: Launch) -> Compiled:
    """The kernel as an H100 would run it, specialised as Triton does for such arguments."""
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, launch.arguments[parameter.name]
        signature[name] = "constexpr"
        if parameter.is_constexpr or value is None or isinstance(value, bool):
            constants[name] = value
        elif isinstance(value, Tensor):
            signature[name] = TYPES[value.dtype]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1:
            constants[name] = 1
        else:
            signature[name] = "i32"
        if isinstance(value, Tensor) or (signature[name] == "i32" and value % 16 == 0):
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    made = triton.compile(
        source, target=HOPPER, options={"enable_fp_fusion": True} | launch.options
    )
    ptx = made.asm["ptx"]
    wide = re.findall(WIDE, ptx)
    registers, stack = _resources(made.asm["cubin"])
    return Compiled(registers, made.metadata.shared, stack, len(wide))


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of each thread, as the assembler left them in its file."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    assert found, told
    return int(found[1]), int(found[2])


def measured(case: Callable[[], object]) -> dict[str, Compiled]:
    """What each kernel that a case starts takes; one started again has the number of its start."""
    with recorded() as launches:
        case()
    found: dict[str, Compiled] = {}
    for number, launch in enumerate(launches, 1):
        name: str = launch.kernel.__name__
        found[name if name not in found else f"{name} {number}"] = compiled(launch)
    return found


def every_case() -> dict[str, Callable[[], object]]:
    """A name for each, and a call of an op's `kernel.run`. A new kernel's cases join here."""
    from . import compiled_cases, compiled_selections

    return compiled_cases.CASES | compiled_selections.CASES


if __name__ == "__main__":
    found = {
        name: {kernel: asdict(each) for kernel, each in measured(case).items()}
        for name, case in every_case().items()
    }
    recorded_by = {"triton": triton.__version__, "cases": found}
    BUDGETS.write_text(json.dumps(recorded_by, indent=2) + "\n")
