"""Tests of CuPy arrays that run twice: on the stand-in everywhere, and on a device with ``pytest -m gpu``.

So a mistake of typing shows without a device, and a device runs what was run before. On the stand-in kernel sums are computed
by the host (:func:`with_values`), or launches are recorded and results are empty arrays (:func:`with_launches`).
"""

import contextlib
from dataclasses import dataclass
from typing import Any

import pytest
from device_counter import counted_device, counted_sums, recorded_launches

KINDS = ["stand-in", pytest.param("device", marks=pytest.mark.gpu)]


@dataclass
class Lent:
    """A device to test on: ``real`` is False on the stand-in."""

    cupy: Any
    real: bool
    kind: str = ""


def _real(request):
    request.getfixturevalue("require")("numba-cuda")
    cupy = pytest.importorskip("cupy")
    request.getfixturevalue("compiled_ahead")
    return Lent(cupy, True, "device")


@contextlib.contextmanager
def with_values(request):
    """Lend a device whose ``backend="numba-cuda"`` gives numbers."""
    if request.param == "device":
        yield _real(request)
    else:
        with counted_device() as cupy, counted_sums():
            yield Lent(cupy, False, "stand-in")


@contextlib.contextmanager
def with_launches(request):
    """Lend a device; on the stand-in the real plans are made and launched, and nothing is computed."""
    if request.param == "device":
        yield _real(request)
    else:
        with recorded_launches() as (cupy, _):
            yield Lent(cupy, False, "stand-in")


def host(x):
    """Return arrays and tuples of arrays as NumPy's."""
    if isinstance(x, tuple | list):
        return tuple(host(i) for i in x)
    return x.get() if hasattr(x, "get") and hasattr(x, "shape") else x
