"""The logic of the CUDA reductions, thread by thread, without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")


@pytest.mark.slow
def test_every_kernel_and_operation_in_the_simulator(tmp_path):
    here = Path(__file__).parent
    environment = os.environ | {
        "NUMBA_ENABLE_CUDASIM": "1",
        "GPUKOOP_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(here),
    }
    run = subprocess.run(
        [sys.executable, str(here / "cuda_simulator.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.rstrip().endswith(" 0 failed")
