"""The look at weights on a device (gpukoop/alarm.py): compiled by NVRTC, its PTX executed on the CPU.

python .ci/ptx_alarm.py ../shared/tools/ptxcpu
"""

# ruff: noqa: D103, T201
import sys

import numpy as np
from cuda.bindings import nvrtc

from gpukoop import alarm

sys.path.insert(0, sys.argv[1])
import ptxcpu


def ptx_of(code, arch=b"compute_90"):
    """Return the PTX of CUDA C."""
    _, program = nvrtc.nvrtcCreateProgram(code.encode(), b"alarm.cu", 0, [], [])
    options = [b"--gpu-architecture=" + arch]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        _, size = nvrtc.nvrtcGetProgramLogSize(program)
        log = b" " * size
        nvrtc.nvrtcGetProgramLog(program, log)
        raise SystemExit(log.decode())
    _, size = nvrtc.nvrtcGetPTXSize(program)
    text = b" " * size
    nvrtc.nvrtcGetPTX(program, text)
    return text.rstrip(b"\0 ").decode()


def main():
    rng = np.random.default_rng(0)
    checked = 0
    for dtype, real in (("float32", "float"), ("float64", "double")):
        text = ptx_of(alarm.SOURCE.format(real=real))
        look = ptxcpu.Module(text, check=True)["outside"]
        highest = np.finfo(dtype).max
        allowed = {False: -highest, True: np.dtype(dtype).type(-np.inf)}
        for size in (1, 255, 257, 3000):
            for bad in (None, np.nan, np.inf, -np.inf, highest, -highest, 0.0):
                for infinite in (False, True):
                    x = rng.normal(size=size).astype(dtype)
                    if bad is not None:
                        x[rng.integers(size)] = bad
                    bell = np.zeros(1, np.int64)
                    blocks = min(
                        -(-size // alarm.THREADS), 2
                    )  # fewer than the array has: threads go on
                    numbers = (np.int64(size), allowed[infinite], highest)
                    arguments = [ptxcpu.Ptr(x), *numbers, ptxcpu.Ptr(bell), np.int64(17)]
                    look.launch((blocks, 1, 1), (alarm.THREADS, 1, 1), arguments)
                    fine = np.isfinite(x) | (infinite & (x == -np.inf))
                    if bell[0] != (0 if fine.all() else 17):
                        raise SystemExit(f"{dtype} {size} {bad} {infinite}: {bell[0]}")
                    checked += 1
    print(f"alarm: {checked} arrays looked at by its PTX, all as on the host")


if __name__ == "__main__":
    main()
