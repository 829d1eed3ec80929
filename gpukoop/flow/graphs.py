"""Steps of one shape as a CUDA graph: recorded once, then one launch for all that the host would have launched.

What a graph may hold: launches, and nothing that the host decides. So the step must be the same function of particles and
memory every time, draw no random numbers and wait for nothing; a step that waits ends the recording, and the loop goes
on queueing launches as it did. Recorded arrays live in a memory pool of their own, where nobody else writes between
two replays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from gpukoop.arrays import Array


@final
@dataclass(frozen=True)
class Repeated:
    """A step that from iteration ``first`` on is one function of particles and memory, whatever the iteration.

    Parameters
    ----------
    step : Step
        Draws nothing, from there on.
    first : int
    """

    step: Callable[[Any, np.random.Generator], tuple[Any, Any]]
    first: int = 0

    def __call__(self, state: Any, rng: np.random.Generator) -> tuple[Any, Any]:
        """Take the step."""
        return self.step(state, rng)


@final
class Recording:
    """A function of arrays on a device as one graph.

    Parameters
    ----------
    function : callable
        dict of arrays -> dict of arrays, whose launches depend on their shapes only.
    inputs : dict of str to array
        Examples: shapes and dtypes stay.

    Raises
    ------
    RuntimeError
        Of CuPy, if the function waits for the device.
    """

    def __init__(
        self,
        function: Callable[[dict[str, Array]], dict[str, Array]],
        inputs: dict[str, Array],
    ) -> None:
        import cupy

        # A pool of its own: addresses are frozen into the graph, so nobody else may ever be given this memory.
        self.pool, self.stream = cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)
        current = cupy.cuda.get_current_stream()
        with cupy.cuda.using_allocator(self.pool.malloc):
            self.inputs = {name: a.copy() for name, a in inputs.items()}
        current.synchronize()  # before a recording nothing may be under way that it depends on
        with cupy.cuda.using_allocator(self.pool.malloc), self.stream:
            self.stream.begin_capture()
            try:
                self.outputs = function(self.inputs)
            finally:
                # Also ends a recording that failed: the stream would refuse all that follows.
                graph = self.stream.end_capture()
        self.graph = graph

    @staticmethod
    def missing() -> str:
        """Return why nothing can be recorded here, or ""."""
        try:
            import cupy
        except ImportError:
            return "CuPy is not installed"
        found = getattr(cupy.cuda, "MemoryPool", None) and getattr(cupy.cuda, "Graph", None)
        return "" if found else "this CuPy records no graphs"

    def fits(self, inputs: dict[str, Array]) -> bool:
        """Return whether these arrays have the shapes and dtypes of the recording."""
        if inputs.keys() != self.inputs.keys():
            return False
        return all(
            a.shape == inputs[name].shape and a.dtype == inputs[name].dtype
            for name, a in self.inputs.items()
        )

    def __call__(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Return copies of the outputs for these inputs, in stream order."""
        import cupy

        for name, a in inputs.items():
            # Copied into the recorded place: a graph reads addresses and knows of no arguments.
            self.inputs[name][...] = a
        self.graph.launch(cupy.cuda.get_current_stream())
        # The next replay writes into the same memory, which the caller may still be holding then.
        return {name: a.copy() for name, a in self.outputs.items()}
