"""Who launches: CuPy on its arrays and current stream, or Numba on copies of NumPy's, in its simulator too."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from gpukoop.kernels.arrays import Array
from gpukoop.kernels.cuda.memory import Memory
from gpukoop.kernels.cuda.packing import Launch, Packing
from gpukoop.kernels.cuda.pairs.grid import BLOCKS_OF_SM
from gpukoop.kernels.cuda.pairs.plan import AbstractPlan
from gpukoop.kernels.cuda.program import (
    Program,
    compile_together,
    kept,
    machine_code,
    performance_warning,
)
from gpukoop.kernels.cuda.specification import BLOCK, FORMS

# The simulator runs a thread of Python for every thread of a block.
SIMULATOR_BLOCK = 32


def simulating() -> bool:
    """Return whether Numba's CUDA simulator is on."""
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


class AbstractEngine(ABC):
    """A way to run plans."""

    block: int = BLOCK
    xp: ModuleType

    @abstractmethod
    def run(self, plan: AbstractPlan, buffers: dict[str, Array]) -> None:
        """Run all launches of a plan on its buffers."""


def _grouped(program: Program, args: tuple[str, ...], buffers: dict[str, Array]) -> list[Any]:
    """Return the arguments as Numba wants them: the scalars in a tuple."""
    values = [buffers[a] for a in args]
    if program.scalars:
        # A tuple of scalars is one argument to Numba and several words to the driver: both sides agree on that layout alone.
        values[-program.scalars :] = [tuple(values[-program.scalars :])]
    return values


class NumbaEngine(AbstractEngine):
    """Numba's own dispatcher, for NumPy arrays where CuPy is not installed; or its simulator."""

    def __init__(self) -> None:
        self.block = SIMULATOR_BLOCK if simulating() else BLOCK
        self.xp = np

    def run(self, plan: AbstractPlan, buffers: dict[str, Array]) -> None:
        """Run on copies of the buffers and copy the outputs back; all forms are launched, one works."""
        from numba import cuda

        arrays = {k: a for k, a in buffers.items() if isinstance(a, np.ndarray)}
        made = plan.kept | plan.fresh | plan.unused
        device: dict[str, Any] = dict(buffers)
        for name, a in arrays.items():
            # Outputs are made there: they have no contents to copy in.
            fresh = name in made
            device[name] = cuda.device_array(a.shape, a.dtype) if fresh else cuda.to_device(a)
        with warnings.catch_warnings():
            # Small problems have small grids; in the simulator NumPy speaks where a device overflows in silence.
            warnings.simplefilter(
                "ignore", RuntimeWarning if simulating() else performance_warning()
            )
            for launch in plan.launches:
                program = plan.programs[launch.entry]
                call = _dispatcher(program)[launch.grid, launch.block]
                call(*_grouped(program, launch.args, device))
        for part in plan.parts:
            for name in map(part.name, ("pick", *part.results)):
                device[name].copy_to_host(buffers[name])


@cache
def _dispatcher(program: Program) -> Any:
    from numba import cuda

    if simulating():
        return cuda.jit(program.build())
    return cuda.jit(program.signature(False), fastmath=True)(program.build())


@dataclass
class Packed:
    """Points of an operator as the pair loops read them; ``picked`` is the form, once the host has asked."""

    buffers: dict[str, Array]
    forms: tuple[str, ...]
    picked: str | None = None

    def form(self) -> str:
        """Return the form that the points want; waits for the device the first time."""
        if self.picked is None:
            # The only wait of a first call, and only where a form would otherwise be compiled for nothing.
            number = int(self.buffers["pick"].get()[0]) if len(self.forms) > 1 else None
            self.picked = self.forms[0] if number is None else FORMS[number]
        return self.picked


class CuPyEngine(AbstractEngine):
    """Cubins launched with bare pointers on CuPy's current stream."""

    def __init__(self) -> None:
        import cupy

        self.xp = cupy
        self._functions: dict[tuple[Program, int], Any] = {}

    def function(self, program: Program) -> Any:
        """Return the loaded function of a program on the current device."""
        # A cubin is loaded into a context, so a second device loads its own.
        key = program, self.xp.cuda.get_device_id()
        found = self._functions.get(key)
        if found is None:
            module = self.xp.cuda.function.Module()
            module.load(machine_code(program, compute_capability(key[1])))
            found = self._functions[key] = module.get_function(program.name)
        return found

    def loaded(self, program: Program) -> bool:
        """Return whether a program can be launched without compiling it; loads it from the disk if it is there."""
        device = self.xp.cuda.get_device_id()
        if (program, device) in self._functions:
            return True
        if not kept(program, compute_capability(device)):
            return False
        self.function(program)
        return True

    def load(self, programs: list[Program]) -> None:
        """Load programs, compiling what is missing."""
        device = self.xp.cuda.get_device_id()
        if any((program, device) not in self._functions for program in programs):
            compile_together(programs, compute_capability(device))
        for program in programs:
            self.function(program)

    def capacity(self, program: Program) -> int:
        """Return blocks a multiprocessor times multiprocessors."""
        blocks = _blocks(self.function(program), self.xp.cuda.get_device_id())
        return blocks * self.multiprocessors()

    def multiprocessors(self) -> int:
        """Return how many the current device has."""
        return _multiprocessors(self.xp.cuda.get_device_id())

    def pack(self, packing: Packing, X: Array, Y: Array, memory: Memory) -> Packed:
        """Return the points as a packing wants them, from memory or by its launches."""
        # Kept with the operator: from the second product on only weights move.
        packed = memory.points.get(packing.key)
        if packed is None:
            made = {name: self.xp.empty(*size) for name, size in packing.made.items()}
            packed = memory.points[packing.key] = Packed(made, packing.forms)
            buffers = packing.scalars | packing.named(made) | {"X": X, "Y": Y}
            self.launch(packing.programs, packing.launches, buffers)
        return packed

    def run(self, plan: AbstractPlan, buffers: dict[str, Array]) -> None:
        """Launch on the buffers; nothing waits for the device."""
        self.launch(plan.programs, plan.launches, buffers)

    def launch(
        self, programs: dict[str, Program], launches: list[Launch], buffers: dict[str, Array]
    ) -> None:
        """Launch in order."""
        for launch in launches:
            function = self.function(programs[launch.entry])
            function(launch.grid, launch.block, tuple(buffers[a] for a in launch.args))


@cache
def cupy_engine() -> CuPyEngine:
    """Return the one engine of this process."""
    return CuPyEngine()


@cache
def compute_capability(device: int) -> tuple[int, int]:
    """Return that of a device of CuPy's."""
    import cupy

    major, minor = divmod(int(cupy.cuda.Device(device).compute_capability), 10)
    return major, minor


@cache
def _multiprocessors(device: int) -> int:
    import cupy

    return int(cupy.cuda.Device(device).attributes["MultiProcessorCount"])


@cache
def _blocks(function: Any, device: int) -> int:
    """Return how many blocks of a function a multiprocessor of the device holds at once."""
    import cupy

    # The driver knows what registers and shared memory of this cubin leave room for; older CuPy does not ask it.
    occupancy = getattr(cupy.cuda.driver, "occupancyMaxActiveBlocksPerMultiprocessor", None)
    return BLOCKS_OF_SM if occupancy is None else int(occupancy(function.ptr, BLOCK, 0))
