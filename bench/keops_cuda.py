"""KeOps' own CUDA code, written and compiled without a GPU: the peer's rows of the static table.

KeOps writes a C++ text for a formula and hands it to NVRTC with ``-arch`` and ``-use_fast_math``. Both run without a
device and a driver; only KeOps' look at the machine has to be answered for it. NVRTC stops here at PTX, which ptxas
assembles to the instructions of the binary that KeOps would load.

Each formula is the fastest of KeOps' spellings that were compiled: ``Inv(Sqrt(f))`` is one rsqrt (11.5 slots a pair at
d = 3), KeOps' ``Rsqrt(f)`` also compares with 0 (12.6).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
ENTRY = "GpuConv1DOnDevice"
# Formula of q, with the parameter g, and the special functions a pair that it needs.
PROFILES = {
    "Gaussian": ("Exp(-(g*SqDist(x,y)))", 1),
    "Laplace": ("Exp(-Sqrt(g*SqDist(x,y)))", 2),
    "InverseMultiquadric": ("Inv(Sqrt(IntCst(1)+g*SqDist(x,y)))", 1),
}


def name() -> str:
    """Return KeOps with its version."""
    try:
        return f"KeOps {version('keopscore')}"
    except PackageNotFoundError:
        return "KeOps"


def passes(kernel: str, op: str, d: int, t: int) -> list[tuple[str, list[str], int]]:
    """Return (formula, aliases, special functions a pair) of every pass that KeOps needs; empty if none is known.

    A value and its gradient are two passes, as its automatic differentiation runs them.
    """
    if kernel not in PROFILES:
        return []
    phi, special = PROFILES[kernel]
    aliases = [f"x=Var(0,{d},0)", f"y=Var(1,{d},1)", f"b=Var(2,{t},1)", "g=Var(3,1,2)"]
    product = f"Sum_Reduction({phi}*b,0)"
    value = (product, aliases, special)
    slope = (f"Grad({product},x,e)", [*aliases, f"e=Var(4,{t},0)"], special)
    logsumexp = ("Max_SumShiftExp_Reduction(-(g*SqDist(x,y))+b,0)", aliases, 2)
    known = {"product": [value], "gradient": [slope], "value_and_gradient": [value, slope]}
    if kernel == "Gaussian":
        known["logsumexp"] = [logsumexp]
    return known.get(op, [])


def library() -> str | None:
    """Return the path of NVRTC from the NVIDIA wheels, or from the system."""
    for root in {sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]}:
        for hit in sorted(Path(root).glob("nvidia/*/lib/libnvrtc.so.*")):
            return str(hit)
    return ctypes.util.find_library("nvrtc")


def missing() -> str | None:
    """Return why KeOps' code cannot be compiled here, or None."""
    if importlib.util.find_spec("keopscore") is None:
        return "KeOps is not installed (pip install pykeops)"
    if library() is None:
        return "NVRTC not found (pip install nvidia-cuda-nvrtc)"
    return None


def sources(formulas: list[tuple[str, list[str]]]) -> list[str]:
    """Return the CUDA C++ text that KeOps writes for each (formula, aliases).

    A process of its own answers KeOps' questions about the machine, so that KeOps on the CPU is left as it is here.
    """
    with tempfile.TemporaryDirectory() as folder:
        wanted, written = Path(folder) / "formulas.json", Path(folder) / "texts.json"
        wanted.write_text(json.dumps(formulas))
        subprocess.run(
            [sys.executable, "-m", "bench.keops_cuda", str(wanted), str(written)],
            cwd=ROOT,
            env=os.environ | {"KEOPS_CACHE_FOLDER": folder, "KEOPS_VERBOSE": "0"},
            check=True,
            capture_output=True,
        )
        texts: list[str] = json.loads(written.read_text())
    return texts


def _write(wanted: Path, written: Path) -> None:
    """Write the texts of :func:`sources`, in the process made for it."""
    from keopscore.config import chunks, cuda_config

    cuda_config.get_cuda_version = lambda *_: 13000  # KeOps compares it with a number at import
    from keopscore.mapreduce.gpu.GpuReduc1D import GpuReduc1D
    from keopscore.mapreduce.MapReduce import MapReduce

    class Offline(GpuReduc1D):  # type: ignore[misc]
        def __init__(self, *arguments: object) -> None:
            MapReduce.__init__(self, *arguments)  # without the part that asks for a device
            self.dimy = self.varloader.dimy

    texts = []
    for formula, aliases in json.loads(wanted.read_text()):
        # KeOps' defaults: sums by block, fast mathematics, one thread a target.
        scheme = (len(aliases), "float", "float", "block_sum", 0, 1, 0, 0, 1, 0)
        code = Offline(formula, aliases, *scheme)
        if len(code.red_formula.formula.chunked_formulas(chunks.dimchunk)) == 1:
            raise NotImplementedError(f"KeOps takes {formula} in chunks of features")
        code.get_code()
        texts.append(code.code)
    written.write_text(json.dumps(texts))


def compile_ptx(text: str, arch: str = "compute_90") -> str:
    """Return the PTX of a CUDA C++ text, by NVRTC with KeOps' options."""
    nvrtc = ctypes.CDLL(library())
    program, size = ctypes.c_void_p(), ctypes.c_size_t()

    def fetch(what: str) -> str:
        getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{what}")(program, buffer)
        return buffer.value.decode()

    options = (ctypes.c_char_p * 2)(f"-arch={arch}".encode(), b"-use_fast_math")
    if nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), None, 0, None, None):
        raise RuntimeError("NVRTC made no program")
    try:
        if nvrtc.nvrtcCompileProgram(program, len(options), options):
            raise RuntimeError(f"NVRTC: {fetch('ProgramLog').strip()}")
        return fetch("PTX")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


# Threads of a block in KeOps' binder, and outputs a target of its log-sum-exp: maximum and sum.
BLOCK, OF_LOGSUMEXP = 192, 2


def launches(cupy: Any, kernel: str, op: str, X: Any, Y: Any, V: Any, scale: float) -> Any:
    """Return a function that launches KeOps' own kernels on CuPy arrays as its binder does, and what it writes.

    The binder itself does not start on every driver; the kernels are the same. For a Gaussian, where KeOps takes ``op`` in
    ``passes``; None elsewhere. Its results are raw: a log-sum-exp is (maximum, sum).
    """
    (n, d), (m, t) = X.shape, (V if V.ndim == 2 else V[:, None]).shape
    needed = passes(kernel, op, d, t)
    if not needed or missing() is not None or X.dtype != "float32":
        return None
    capability = cupy.cuda.Device().compute_capability
    g = cupy.asarray([0.5 / scale**2], "float32")
    grid, shared = ((n + BLOCK - 1) // BLOCK, 1, 1), BLOCK * (d + t) * 4
    steps, outs = [], []
    for text, (formula, aliases, _) in zip(sources([p[:2] for p in needed]), needed, strict=True):
        module = cupy.cuda.function.Module()
        module.load(compile_ptx(text, f"compute_{capability}").encode() + b"\0")
        arrays = [X, Y, V, g, cupy.ones((n, t), "float32")][: len(aliases)]
        width = d if formula.startswith("Grad") else OF_LOGSUMEXP if op == "logsumexp" else t
        out = cupy.empty((n, width), "float32")
        places = cupy.asarray([a.data.ptr for a in arrays], "uint64")
        arguments = (np.int64(n), np.int64(m), out, places)
        steps.append((module.get_function(ENTRY), arguments, arrays))
        outs.append(out)

    def run() -> Any:
        for function, arguments, _ in steps:
            function(grid, (BLOCK, 1, 1), arguments, shared)
        return outs

    return run


if __name__ == "__main__":
    _write(*map(Path, sys.argv[1:3]))
