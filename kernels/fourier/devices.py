"""cuFINUFFT: how it is loaded beside a CUDA that is not its own, and where it is to work."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType

# The wheel of cufinufft is linked with CUDA 12. Where CuPy brings CUDA 13, these come from wheels of their own, in the order
# in which they need each other: folder below nvidia/, library.
CUDA12 = (
    ("nvjitlink", "libnvJitLink.so.12"),
    ("cuda_runtime", "libcudart.so.12"),
    ("cufft", "libcufft.so.11"),
)


@cache
def library() -> ModuleType | str:
    """Return cuFINUFFT, or why it cannot be loaded; the installed package may not find its own CUDA."""
    if importlib.util.find_spec("cufinufft") is None:
        return "cufinufft is not installed (pip install gpukoop[cuda13])"
    with suppress(ImportError, OSError):
        return importlib.import_module("cufinufft")
    absent = []
    for folder, name in CUDA12:
        try:
            # A library that is loaded already is found by its name, wherever it came from.
            ctypes.CDLL(str(_nvidia(folder, name)))
        except OSError:
            absent.append(name)
    try:
        return importlib.import_module("cufinufft")
    except (ImportError, OSError) as error:
        why = f"it needs {', '.join(absent)}" if absent else " ".join(str(error).split())
        wheels = "nvidia-cuda-runtime-cu12 nvidia-cufft-cu12"
        return f"cufinufft cannot be loaded: {why} (pip install {wheels}, or gpukoop[cuda13])"


def _nvidia(folder: str, name: str) -> Path | str:
    """Return the path of a library of NVIDIA's wheels, or its bare name, for the system to find."""
    spec = importlib.util.find_spec("nvidia")
    roots = spec.submodule_search_locations if spec is not None else None
    paths = (Path(root) / folder / "lib" / name for root in roots or ())
    return next((path for path in paths if path.is_file()), name)


def queue() -> tuple[int, int]:
    """Return the device and the stream that CuPy works on now."""
    import cupy

    return cupy.cuda.get_device_id(), cupy.cuda.get_current_stream().ptr
