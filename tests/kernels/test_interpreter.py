"""The kernels themselves, on a CPU: Triton's interpreter in a process of its own.

It must be told before Triton is first imported, so these tests cannot run in this process. What
they report is this test's report.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

INTERPRETED = Path(__file__).parent / "interpreted"


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="this process interprets already"
)
def test_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="triton is not installed: palimpsest[kernels]")
    major, minor = map(int, numpy.__version__.split(".")[:2])
    if (major, minor) >= (2, 4):
        pytest.skip("from NumPy 2.4 on the interpreter cannot count loops (triton issue 9171)")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(INTERPRETED)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
    assert " passed" in done.stdout and " skipped" not in done.stdout, done.stdout
