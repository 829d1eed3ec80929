"""The plan of a CUDA reduction: buffers, launches, and how results are read back.

A plan knows sizes, not data. Every form that may be needed is launched; a device array ``pick`` says which one
works, and the others return at once. So the choice can depend on the data without a round trip to the
host, and nothing is synchronised.
"""

from __future__ import annotations

import math
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np

from gpukoop.kernels.cuda.form import FORMS
from gpukoop.kernels.cuda.pairs.part import Entry, Launch, Part, Sizes
from gpukoop.kernels.cuda.source import BLOCK
from gpukoop.kernels.formula.profile import AbstractKernel, KernelSum

Array = Any


class Plan:
    """How one reduction of given sizes runs on a CUDA device.

    Attributes
    ----------
    launches : list of Launch
        In order: (entry, grid, block, shared, args), ``args`` the names of the buffers.
    """

    def __init__(
        self,
        kernel: AbstractKernel,
        op: str,
        n: int,
        m: int,
        d: int,
        t: int,
        dtype: str,
        *,
        tol: float | None = None,
        only: tuple[str, ...] = FORMS,
        block: int = BLOCK,
        simulator: bool = False,
        complete: bool = False,
        listed: bool = False,
    ) -> None:
        sizes = Sizes(op, n, m, d, t, dtype, tol, block, simulator, complete, listed)
        self.sizes = sizes
        if "logsumexp" in op:
            terms = kernel.terms
            self.parts = [
                Part(sizes, KernelSum(((c, k),)), f"_{i}" if len(terms) > 1 else "", only)
                for i, (c, k) in enumerate(terms)
            ]
        else:
            self.parts = [Part(sizes, kernel, "", only)]

    def entries(self) -> list[Entry]:
        """Return every device function once."""
        return list({e.name: e for part in self.parts for e in part.entries()}.values())

    @cached_property
    def launches(self) -> list[Launch]:
        """The launches in order."""
        return [launch for part in self.parts for launch in part.launches()]

    def pack(self, X: Array, Y: Array, V: Array, xp: ModuleType = np) -> dict[str, Array]:
        """Return the buffers and scalars by name: pre-scaled points, padded records, outputs.

        Parameters
        ----------
        X, Y : arrays of shape (n, d) and (m, d)
        V : array of shape (m,) or (m, t)
            Weights; logarithms of them for log-sum-exp.
        """
        self.vector = V.ndim == 1
        W = V.reshape(self.sizes.m, -1).astype(float)
        X, Y = X.astype(float), Y.astype(float)
        buffers: dict[str, Array] = {"n": np.uint64(self.sizes.n)}
        for part in self.parts:
            buffers.update(part.pack(X, Y, W, xp))
        return buffers

    def unpack(self, buffers: dict[str, Array], xp: ModuleType = np) -> Any:
        """Return the result: (n, t) and (n, t, d), without t where V was a vector."""
        outs = [part.unpack(buffers, xp) for part in self.parts]
        found = join(outs, xp) if len(outs) > 1 else outs[0]
        order = [found[o] for o in ("value", "slope") if o in found]
        if self.vector or "logsumexp" in self.sizes.op:
            order = [a[:, 0] for a in order]
        return order[0] if len(order) == 1 else tuple(order)


def join(outs: list[dict[str, Array]], xp: ModuleType) -> dict[str, Array]:
    """Return the log-sum-exp of a sum of kernels from those of its terms."""
    values = xp.stack([o["value"] for o in outs])  # (parts, n, 1)
    top = values.max(axis=0)
    top = xp.where(top == -math.inf, 0.0, top).astype(values.dtype)
    shares = xp.exp(values - top)
    total = shares.sum(axis=0)
    with np.errstate(divide="ignore"):
        found = {"value": top + xp.log(total)}
    if "slope" in outs[0]:
        slopes = xp.stack([o["slope"] for o in outs])  # (parts, n, 1, d)
        total = xp.where(total == 0, 1.0, total).astype(values.dtype)
        found["slope"] = (shares[..., None] * slopes).sum(axis=0) / total[..., None]
    return found
