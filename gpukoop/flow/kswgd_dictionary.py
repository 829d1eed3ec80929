r"""The step of KSWGD for modes that are combinations of a dictionary's functions, not kernel sums.

The velocity is that of :mod:`gpukoop.flow.kswgd`, :math:`v = -a \sum_k (c_k / \lambda_k) \nabla \varphi_k`; particles still
interact through the r moments c alone. There is no estimate of the density, hence no Langevin motion, and no particle is too
far for a polynomial: the limiter of one spread of the samples a step is all that is asked of the step's length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpukoop.arrays import Array, like, namespace
from gpukoop.flow.kswgd import STOP, Pushed, above_noise, limited
from gpukoop.flow.lifted import projected
from gpukoop.flow.loop import Info, State, Step


def make_dictionary_step(
    spectrum: Any,
    *,
    step_size: float,
    n_samples: int | None = None,
    trusted: np.ndarray | None = None,
    project: Callable[[Array], Array] | None = None,
) -> Step:
    """Return the pure step of the flow; parameters are those of :func:`gpukoop.flow.kswgd.make_step`.

    Notes
    -----
    Cost: one evaluation of the dictionary and one of a combined gradient, O(n p d) if the dictionary has no ``slope``.
    """
    reach, a = float(spectrum.scale_), float(spectrum.diffusivity_)
    eigenvalues = np.asarray(spectrum.eigenvalues_, float)

    def step(state: State, rng: np.random.Generator) -> tuple[State, Info]:
        Z = state.particles
        c = spectrum.moments(Z).astype(float)
        memory = Pushed() if state.memory is None else state.memory
        pushed = above_noise(c, memory.fine, len(Z), n_samples, trusted)
        # Modes at their sampling noise are left alone: following them would copy the samples.
        kept = np.where(pushed, c, 0.0)
        slope = spectrum.gradient(Z, like(kept / eigenvalues, Z))
        # A dictionary's functions grow without bound away from the samples: the limit is what keeps stray particles from
        # leaving.
        move, share = limited(-step_size * a * slope, reach)
        following = Z + move
        if project is not None:
            following = projected(project, following)
        xp = namespace(Z)
        info = Info(
            {
                "moments": c,
                "dissipation": float(c @ c),
                "displacement": float(xp.sqrt(((following - Z) ** 2).sum(axis=1).mean())),
                "limited": share,
            },
            converged=bool(np.abs(kept).max(initial=0.0) < STOP / np.sqrt(len(Z))),
            diverged="" if np.isfinite(c).all() else "its moments are no longer finite.",
        )
        return State(following, memory=memory.after(pushed, False)), info

    return step
