r"""KSWGD: particles follow the spectrum of the Langevin generator until its modes have mean zero.

=========== ======================================== =================
Z (n, d)    particles                                targets
x (m, d)    samples or landmarks of the spectrum     sources
Psi (m, r)  phi_k(z) = (K Psi_k)(z) / (K w)(z) - offset_k, for the r modes
c (r,)      moments, mean of phi_k under the particles
=========== ======================================== =================

Velocity (Laplacian-adjusted Wasserstein gradient descent, eq. 4 of the method):

.. math:: v(z) = - a \sum_k \frac{c_k}{\lambda_k} \nabla \varphi_k(z)

With ``langevin`` :math:`\kappa > 0` the particles also follow, in a time of their own that runs :math:`\kappa` times as fast,
the Langevin diffusion of the kernel estimate of the law, whose score is :math:`2 \nabla \log (K w)` (the reversible
measure of the Markov matrix is the square of a smoothed square root of the density):

.. math:: dz = v(z)\,dt + 2 \kappa a \nabla\log (K w)(z)\,dt + \sqrt{2 \kappa a}\,dW, \qquad
          \dot c_k = -(1 + \kappa\lambda_k)\, c_k \;(k \le r), \quad \dot c_k = -\kappa\lambda_k\, c_k \;(k > r)

The r modes are held by the flow whatever the bias of that score; the modes that the flow does not see, such as the holes
of the start, decay. It costs nothing: pass 3 has the gradient of K w already. This term is ours, not the paper's.

One step is three passes over the n x m pairs, O(m n d) work and O(m + n) temporaries: the denominators, the
transposed product that gives all moments, and one fused value and gradient of two columns. The (n, r) and
(n, r, d) arrays of the published implementation are not needed, and 64 modes cost what 2 do.

References
----------
.. [1] S. Chewi, T. Le Gouic, C. Lu, T. Maunu, P. Rigollet, SVGD as a kernelized Wasserstein gradient flow of
   the chi-squared divergence, arXiv 2006.02509, section 4 (LAWGD).
.. [2] Y. Xu, F. Li, M. Fujisawa, X. Cheng, Y. Marzouk, I. Ishikawa, arXiv 2512.18837 (KSWGD).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpukoop.arrays import Array, like, namespace, to_host
from gpukoop.flow.graphs import Repeated
from gpukoop.flow.kswgd_device import Modes, queued_step
from gpukoop.flow.lifted import projected
from gpukoop.flow.loop import Info, State, Step
from gpukoop.operator import KernelOperator
from gpukoop.philox import places, standard_normal
from gpukoop.spectrum.ratio import centred, lowest_denominator, quotient_slope

# Below a tenth of the standard error of a mean of n independent draws there is nothing left to match.
STOP = 0.1


@dataclass(frozen=True)
class Far:
    """Particles whose kernel sums have underflowed: rows, log denominators, directions to the data."""

    rows: Array
    log_denominator: Array
    towards: Array


@dataclass(frozen=True)
class Pushed:
    """What a run remembers: the modes that were above their noise once, (r,) of each spectrum, and that the coarse one is done.

    Attributes
    ----------
    fine, coarse : array of shape (r,), optional
    arrived : array of shape (1,), optional
        True once no moment of the coarse spectrum was left to push.
    """

    fine: Array | None = None
    coarse: Array | None = None
    arrived: np.ndarray | None = None

    def after(self, pushed: Array, early: bool) -> Pushed:
        """Return it after a step that pushed these modes, of the coarse spectrum if ``early``."""
        return replace(self, coarse=pushed) if early else replace(self, fine=pushed)


@dataclass(frozen=True)
class Moments:
    """What passes 1 and 2 leave: the operator, denominators, moments and far particles."""

    K: KernelOperator
    denominator: Array
    c: np.ndarray
    far: Far | None


def moments(spectrum: Any, Z: Array, options: dict[str, Any]) -> Moments:
    """Return the mean of every mode under the particles, from two single-column passes."""
    xp = namespace(Z)
    K = spectrum.kernel_(Z, spectrum.sources_, **options)
    w = spectrum.w_
    B = K @ w
    far = _far(K, B, w)
    if far is not None:
        B = B.copy()
        # Any positive number: the row is left out of p below and comes back in logarithms.
        B[far.rows] = 1.0
    inverse = 1.0 / B
    if far is not None:
        inverse[far.rows] = 0.0
    p = K.T @ inverse
    if far is not None:
        Kf = spectrum.kernel_(Z[far.rows], spectrum.sources_, backend=_logarithmic(K.backend))
        mass = Kf.T.logsumexp(-far.log_denominator)
        # Every far particle has mass one, which the rounding of large logarithms does not know.
        # Rescaled to the mass that is known, so that a far particle pulls every mode as strongly as a near one.
        shares = mass + xp.log(w)
        top = shares.max()
        mass = mass - top - xp.log(xp.exp(shares - top).sum() / len(far.rows))
        p = p + xp.exp(mass)
    # The samples' own mean is taken off: a moment is then zero where particles and samples agree, centred modes or not.
    c = to_host(spectrum.Psi_.T @ (p / len(Z)) - spectrum.offset_).astype(float)
    return Moments(K, B, c, far)


def _far(K: KernelOperator, B: Array, w: Array) -> Far | None:
    xp = namespace(B)
    # Their denominators have lost digits: what they need is computed in the logarithmic domain.
    far = xp.flatnonzero(lowest_denominator(w) >= B)
    if len(far) == 0:
        return None
    own = K.kernel(K.X[far], K.Y, backend=_logarithmic(K.backend))
    log_B, slope = own.logsumexp_and_gradient(xp.log(w))
    lost = int(xp.isinf(log_B).sum())
    if lost:
        raise ValueError(
            f"{lost} particle(s) are so far from the samples that the square of the distance overflows {B.dtype}: "
            "start closer to the samples"
        )
    # Of the slope only its direction: far from the data log(K w) falls like a square, and its length would throw the particle
    # past them.
    size = xp.sqrt((slope**2).sum(axis=1, keepdims=True))
    return Far(far, log_B, slope / xp.where(size > 0, size, 1.0))


def _logarithmic(backend: str | None) -> str | None:
    """Return who computes the logarithmic sums of a few far rows: Fourier sums have no such form."""
    return None if backend == "fourier" else backend


def above_noise(
    c: np.ndarray, seen: Array | None, n: int, n_samples: int | None, trusted: Array | None = None
) -> np.ndarray:
    r"""Return which modes are pushed, (r,): those whose moment has been above its sampling noise at this step or before.

    .. math:: |c_k| > \sqrt{1/n + 1/m}

    for n particles, m samples and modes of variance 1. A mode below it is left alone: what it would push is chance. Once
    above, a mode is followed to its end. Without samples, ``n_samples=None``, all are pushed; never those not ``trusted``.
    """
    pushed = np.abs(c) > _floor(n, n_samples)
    # Once pushed, always pushed: a mode let go at its noise level would drift back above it, and the flow never end.
    pushed = pushed if seen is None else pushed | to_host(seen)
    return pushed if trusted is None else pushed & trusted


def _floor(n: int, n_samples: int | None) -> float:
    return -1.0 if n_samples is None else math.sqrt(1 / n + 1 / n_samples)


def velocity(spectrum: Any, found: Moments, langevin: float = 0.0) -> Array:
    r"""Return :math:`-a \sum_k (c_k / \lambda_k) \nabla \varphi_k + 2 \kappa a \nabla\log(K w)`; 0 for far particles."""
    xp = namespace(spectrum.w_)
    w = spectrum.w_
    # Division by the eigenvalue makes all modes decay at one rate: this is what tells KSWGD from a gradient flow of MMD.
    q = spectrum.Psi_ @ like(found.c / to_host(spectrum.eigenvalues_), w)
    # The quotient K q / K w does not see a constant in q, but float32 does: without it the two terms of the slope cancel
    # less.
    q = centred(q[:, None], w)
    value, slope = found.K.value_and_gradient(xp.concatenate([q, w[:, None]], axis=1))
    B = found.denominator[:, None]
    a = float(spectrum.diffusivity_)
    v = -a * quotient_slope(value[:, :1], slope[:, 0], slope[:, 1], B)
    if langevin:
        v = v + (2 * langevin * a) * slope[:, 1] / B
    if found.far is not None:
        # They move towards the data by one scale a step instead, see `make_step`.
        v[found.far.rows] = 0.0
    return v


def limited(step: Array, length: float) -> tuple[Array, float]:
    """Return the step with every row shortened to at most ``length``, and the share of rows shortened."""
    xp = namespace(step)
    size = xp.sqrt((step**2).sum(axis=1, keepdims=True))
    too_long = size > length
    return xp.where(too_long, step * (length / xp.where(too_long, size, 1.0)), step), float(
        too_long.mean()
    )


def make_step(
    spectrum: Any,
    *,
    step_size: float,
    coarse: Any = None,
    coarse_iter: int = 0,
    langevin: float = 0.0,
    n_iter: int = 1,
    n_samples: int | None = None,
    trusted: np.ndarray | None = None,
    project: Callable[[Array], Array] | None = None,
    **options: Any,
) -> Step:
    """Return the pure step of the flow.

    Parameters
    ----------
    spectrum : fitted spectrum
        The spectrum whose moments must vanish.
    step_size : float
        LAWGD time of one step; stable below 2 near equilibrium.
    coarse : fitted spectrum, optional
        Followed instead for the first ``coarse_iter`` steps: its kernel reaches particles that start where there
        are no data. Both stages are plain LAWGD; the moments recorded are always those of ``spectrum``.
    langevin : float
        kappa at the start; it falls linearly to zero at the last of ``n_iter`` steps, so that neither the bias of the
        score nor the noise is left in the moments.
    n_iter : int
        Steps of the run.
    n_samples : int, optional
        Samples that the modes were normalised over: moments below their sampling noise are then left alone, and the
        stage of ``coarse`` ends when none is above.
    trusted : array of shape (r,), optional
        False for modes of ``spectrum`` that are never pushed.
    project : callable, optional
        (n, d) -> (n, d), the nearest point of the manifold, applied after each step.
    **options
        ``backend`` and ``tol`` of the kernel sums.
    """
    prepared: dict[str, Modes] = {}
    kept: dict[str, Any] = {}

    def queued(state: State, rng: np.random.Generator) -> tuple[State, Info]:
        Z = state.particles
        if not prepared:
            prepared["fine"] = Modes(spectrum, options)
            if coarse is not None:
                prepared["coarse"] = Modes(coarse, options)
        kappa = langevin * max(0.0, 1 - (state.iteration + 1) / n_iter)
        before: Pushed = Pushed() if state.memory is None else state.memory
        early = state.iteration < coarse_iter and before.arrived is None
        xp, seen = namespace(Z), before.coarse if early else before.fine
        floor: Any = _floor(len(Z), n_samples)
        if not early and trusted is not None and not trusted.all():
            if "floor" not in kept:
                kept["floor"] = xp.asarray(np.where(trusted, floor, np.inf))
            floor = kept["floor"]
        noise: Array | float = 0.0
        if kappa:
            if "places" not in kept:
                kept["places"] = places(Z.size, Z)
            noise = standard_normal(rng, Z.shape, Z, kept["places"])
        found = queued_step(
            Z,
            prepared["fine"],
            prepared["coarse"] if early else None,
            None if seen is None else xp.asarray(seen),
            step_size=step_size,
            kappa=kappa,
            noise=noise,
            goal=-1.0 if langevin else STOP / math.sqrt(len(Z)),
            floor=floor,
        )
        following = found.particles
        if project is not None:
            following = projected(project, following)
        memory = before.after(found.pushed, early)
        return State(following, memory=memory), Info(found.measures, doubt=found.doubt)

    def step(state: State, rng: np.random.Generator) -> tuple[State, Info]:
        if not state.watched:
            return queued(state, rng)
        Z = state.particles
        found = moments(spectrum, Z, options)
        c, memory = found.c, Pushed() if state.memory is None else state.memory
        goal = STOP / np.sqrt(len(Z))
        leading, active, early = found, spectrum, False
        if state.iteration < coarse_iter and memory.arrived is None:
            wide = moments(coarse, Z, options)
            chosen = above_noise(wide.c, memory.coarse, len(Z), n_samples)
            if np.abs(wide.c[chosen]).max(initial=0.0) < goal and not langevin:
                # For good: the coarse spectrum has done what it is for, and going back to it would undo what the fine one
                # did.
                memory = replace(memory, arrived=np.ones(1, bool))
            else:
                leading, active, early = wide, coarse, True
        believed = trusted if active is spectrum else None
        seen = memory.coarse if early else memory.fine
        chosen = above_noise(leading.c, seen, len(Z), n_samples, believed)
        memory = memory.after(chosen, early)
        pushed = replace(leading, c=np.where(chosen, leading.c, 0.0))
        reach = float(active.scale_)
        kappa = langevin * max(0.0, 1 - (state.iteration + 1) / n_iter)
        move, share = limited(step_size * velocity(active, pushed, kappa), reach)
        if kappa:
            spread = math.sqrt(2 * kappa * float(active.diffusivity_) * step_size)
            move = move + spread * standard_normal(rng, Z.shape, Z)
        if leading.far is not None:
            move[leading.far.rows] = reach * leading.far.towards
        following = Z + move
        if project is not None:
            following = projected(project, following)
        matched = active is spectrum and np.abs(pushed.c).max(initial=0.0) < goal
        # With noise moments fluctuate for ever: such a run ends with its schedule.
        done = bool(matched) and not langevin
        xp = namespace(Z)
        info = Info(
            {
                "moments": c,
                "dissipation": float(c @ c),
                "displacement": float(xp.sqrt(((following - Z) ** 2).sum(axis=1).mean())),
                "limited": share,
                "far": 0 if leading.far is None else len(leading.far.rows),
            },
            converged=done,
            diverged="" if np.isfinite(c).all() else "its moments are no longer finite.",
        )
        return State(following, memory=memory), info

    return step if langevin or project is not None else Repeated(step, coarse_iter)
