r"""Committors from trajectories: the probability to reach one set before another, by Galerkin's method for the stopped process.

A window of lag + 1 frames that starts at x between the sets A and B is followed until it meets one of them, at the latest to
its end x'. The committor q is 0 on A, 1 on B, and between them a combination of 1 and the coordinates of the model for which

.. math:: \langle f,\; q(x) - q(x') \rangle = 0 \quad \text{for all such combinations } f

over all windows, each read forwards and backwards: a reversible process does not tell the two apart.

This q is that of the process seen at its frames: a visit between two of them does not count. How far it may be from the q of
the process in continuous time is read from every second frame. What frames miss shrinks like the square root of their distance
[3]_, or faster where they are far apart, so that its size is up to about that of

.. math:: (q_{2 \Delta} - q_{\Delta}) / (\sqrt 2 - 1).

References
----------
.. [1] E. H. Thiede, D. Giannakis, A. R. Dinner, J. Weare, Galerkin approximation of dynamical quantities using trajectory
   data, Journal of Chemical Physics 150, 2019.
.. [2] J. Strahan, A. Antoszewski, C. Lorpaiboon, B. P. Vani, J. Weare, A. R. Dinner, Long-time-scale predictions from
   short-trajectory data: a benchmark analysis of the trp-cage miniprotein, Journal of Chemical Theory and Computation 17,
   2021: windows stopped where they meet a set.
.. [3] M. Broadie, P. Glasserman, S. Kou, A continuity correction for discrete barrier options, Mathematical Finance 7, 1997.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from gpukoop.arrays import Array, namespace, native_array, to_host
from gpukoop.kinetics.model import fitted
from gpukoop.lagged import frames
from gpukoop.spectrum.coordinates import functions_of_points
from gpukoop.spectrum.trajectory import CHUNK
from gpukoop.versions import Persistent

# Directions of the combinations that are small between the sets: their coefficients would be noise. Relative to the largest.
CUT = 1e-5
# Root mean square of what frames miss, from which on it is told of.
MISSED = 0.05


class Committor(Persistent):
    """Committor between two sets, learned from a model's trajectories.

    Parameters
    ----------
    model : KineticModel
        Fitted; its trajectories are read again.
    source, target : callables
        (n, d) -> (n,) of True where a frame is in the set.

    Attributes
    ----------
    missed : float
        Root mean square, over all frames, of what visits between frames change q by, rather too large: see the module.
    """

    def __init__(
        self,
        model: Any,
        source: Callable[[Array], Array],
        target: Callable[[Array], Array],
    ) -> None:
        learned, material = fitted(model), model._material
        p = learned.modes.p
        self._sets = source, target
        self._W = sum(learned.blocks[1:], learned.blocks[0]).modes()[
            1
        ]  # all that p coordinates span
        inner = material.base.functions.of(np.arange(p)).combined(self._W)
        self._functions = functions_of_points(inner, material.estimator)
        self._system = _System(self._W.shape[1] + 1)
        coarse = _System(self._W.shape[1] + 1)  # of every second frame
        for i, run in enumerate(material.runs):
            for start in range(0, len(run) - model.lag, CHUNK):
                last = min(start + CHUNK, len(run) - model.lag) + model.lag
                chunk = frames(run, start, last, f"trajectories[{i}]", self._functions.sources)
                weight = None
                if model._ratio is not None:  # weights are functions of all coordinates
                    ratio = model._ratio(material.functions.transform(chunk).astype(float))
                    weight = to_host(ratio)
                F, sets = self.basis(chunk), self.sets(chunk)
                self._system.add(F, sets, model.lag, weight)
                for first in range(2):
                    own = None if weight is None else weight[first::2]
                    coarse.add(F[first::2], sets[first::2], max(1, model.lag // 2), own)
        for name, found in zip(("source", "target"), self._system.seen, strict=True):
            if not found:
                raise ValueError(
                    f"no frame of the trajectories is in the {name}: make the set larger (a smaller core=), or pass longer runs"
                )
        self.missed = self._system.distance(coarse) / (np.sqrt(2) - 1)
        if self.missed > MISSED:
            warnings.warn(
                f"the committor is that of the frames, and up to about {self.missed:.2f} (root mean square) from that of the process in "
                "continuous time: visits to the source or the target between two frames are missed. Pass frames closer in time, "
                "or larger sets",
                RuntimeWarning,
                stacklevel=3,
            )

    def basis(self, X: Array) -> Array:
        """Return 1 and the combinations of coordinates at points, (n, q)."""
        F = self._functions.transform(X).astype(float)
        xp = namespace(F)
        return xp.concatenate([xp.ones((len(F), 1)), F], axis=1)

    def sets(self, X: Array) -> np.ndarray:
        """Return 1 in the source, 2 in the target and 0 between them, (n,)."""
        masks = []
        for name, inside in zip(("source", "target"), self._sets, strict=True):
            mask = to_host(native_array(inside(X), f"{name}(frames)")[0])
            if mask.shape != (len(X),) or mask.dtype.kind not in "biuf":
                raise ValueError(
                    f"{name} gives shape {mask.shape} and dtype {mask.dtype} for {len(X)} frames, expected True or False a frame"
                )
            masks.append(mask.astype(bool))
        if (masks[0] & masks[1]).any():
            raise ValueError(
                "source and target have frames in common: pass sets that exclude each other"
            )
        return masks[0] + 2 * masks[1]

    def __call__(self, X: Array) -> Array:
        """Return q at points, (n,), in [0, 1]; exactly 0 in the source and 1 in the target."""
        sets = self.sets(X)
        between = sets == 0
        xp = namespace(X)
        if not between.any():
            return xp.asarray((sets == 2).astype(float))
        F = self.basis(X)
        q = xp.clip(F @ xp.asarray(self._system.solve()), 0.0, 1.0)
        return xp.where(xp.asarray(between), q, xp.asarray((sets == 2).astype(float)))


class _System:
    """Galerkin's equations, summed over windows: A c = b, and the Gram matrix of the basis between the sets."""

    def __init__(self, q: int) -> None:
        self.A, self.gram, self.b = np.zeros((q, q)), np.zeros((q, q)), np.zeros(q)
        self.total = 0.0  # weight of all windows, those that start in a set too
        self.seen = [False, False]

    def add(self, F: Array, sets: np.ndarray, lag: int, weight: np.ndarray | None) -> None:
        """Add the windows of consecutive frames, given the basis F (n, q) there; ``weight`` is one a frame."""
        xp = namespace(F)
        first = np.arange(len(sets) - lag)
        between = sets == 0
        for k in range(2):
            self.seen[k] |= bool((sets == k + 1).any())
        for starts, ends in zip((first, first + lag), stops(sets, lag), strict=True):
            self.total += float(len(starts) if weight is None else weight[first].sum())
            own = between[starts]
            a, e = starts[own], ends[own]
            # a window weighs what its first frame does, also when it is read backwards
            w = np.ones(len(a)) if weight is None else weight[first[own]]
            Fa = F[xp.asarray(a)]
            wFa = Fa * xp.asarray(w)[:, None]
            Fe = F[xp.asarray(e)] * xp.asarray(between[e].astype(float))[:, None]
            self.gram += to_host(wFa.T @ Fa)
            self.A += to_host(wFa.T @ (Fa - Fe))
            self.b += to_host(wFa.T @ xp.asarray((sets[e] == 2).astype(float)))

    def solve(self) -> np.ndarray:
        """Return the coefficients of q between the sets."""
        size, U = np.linalg.eigh(self.gram)
        if size[-1] <= 0:
            raise ValueError(
                "no frame of the trajectories is between source and target: pass frames closer in time, or a larger core="
            )
        kept = size > CUT * size[-1]
        B = U[:, kept] / np.sqrt(size[kept])
        # A is symmetric but for noise: windows without a stop come in both directions
        A = B.T @ (self.A + self.A.T) @ B / 2
        return B @ np.linalg.lstsq(A, B.T @ self.b, rcond=None)[0]

    def distance(self, other: _System) -> float:
        """Return the root mean square of the difference between two solutions, over all frames; nan without frames between the sets."""
        if not (self.gram.any() and other.gram.any()):
            return float("nan")
        gap = self.solve() - other.solve()
        return float(np.sqrt(max(0.0, gap @ self.gram @ gap) / self.total))


def stops(sets: np.ndarray, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where windows of ``lag`` + 1 frames stop, read forwards from their first frame and backwards from their last.

    Parameters
    ----------
    sets : ndarray of shape (b,)
        0 between the sets, else not.
    lag : int
        In frames; there are b - lag windows.
    """
    index = np.arange(len(sets))
    after = np.where(sets > 0, index, len(sets))
    after = np.minimum.accumulate(after[::-1])[::-1]
    before = np.maximum.accumulate(np.where(sets > 0, index, -1))
    first = index[: len(sets) - lag]
    last = first + lag
    return np.minimum(after[first], last), np.maximum(before[last], first)
