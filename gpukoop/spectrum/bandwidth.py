r"""Bandwidths: which eps a kernel has, and which scale suits the samples.

=== ==================================================================================
eps second moment per axis of the kernel as a density; scale ** 2 for a Gaussian
r   modes that the spectrum is to resolve
=== ==================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpukoop.arrays import Array, namespace, to_host
from gpukoop.blas import one_thread
from gpukoop.kernels.formula.catalogue import Gaussian
from gpukoop.kernels.formula.profile import AbstractKernel, AbstractRadial, trace
from gpukoop.kernels.reference import evaluate
from gpukoop.operator import KernelOperator, median_scale
from gpukoop.scales import check_scales

# A sample that gives itself more than this share of its own row is a Markov state of its own: a spurious slow
# mode. Thresholds of .1 and less cut real tails.
ISOLATED = 0.3
# The coarsest scale at which the last mode is resolved: 1 / sigma multiplies every error of the extension.
RESOLVED = 0.01
# More isolated samples than this say that the scale is too small for the data.
TOO_MANY = 0.01
# Samples whose spectrum and neighbours judge a scale.
JUDGES = 1_000
MAX_HALVINGS = 20
# Logarithm of the longest distance that moments are summed to: the square of its square is a number.
LONGEST = 170.0


def kernel_bandwidth(kernel: AbstractKernel, n_features: int) -> float:
    r"""Return the bandwidth eps of a kernel in d dimensions: its second moment per axis as a density.

    .. math:: \varepsilon = \frac{\int z_1^2\, k(z)\, dz}{\int k(z)\, dz}

    The Markov matrix of a diffusion map is 1 - (eps / 2) Lg + O(eps^2) with the positive generator Lg. A Gaussian has
    eps = scale ** 2 in every dimension, so also on manifolds; for other kernels eps depends on d, which is then
    the number of features.

    Raises
    ------
    ValueError
        If the kernel is not positive, or its second moment is infinite.
    """
    if not kernel.positive:
        raise ValueError(
            f"{kernel!r} takes values <= 0, expected a positive kernel such as Gaussian('auto'): its row sums "
            "are the probabilities of a Markov matrix"
        )
    check_scales(kernel, np.dtype(float))  # eps is a square
    scales = np.array([radial.length for _, radial in kernel.terms])
    logs, seconds = [], []
    for coefficient, radial in kernel.terms:
        if len(scales) == 1 and isinstance(radial, Gaussian):
            return radial.length**2
        volume, second = _moments(radial, n_features)
        logs.append(np.log(coefficient) + volume + n_features * np.log(radial.length))
        seconds.append(second * radial.length**2)
    # Volumes are powers of the scale that no number holds from some hundred features on; only their shares matter.
    share = np.exp(np.array(logs) - max(logs))
    return float(share @ np.array(seconds) / share.sum())


def _moments(radial: AbstractRadial, d: int) -> tuple[float, float]:
    """Return the logarithm of the integral of a kernel of scale 1, and its second moment per axis."""
    if isinstance(radial, Gaussian):
        return d / 2 * np.log(2 * np.pi), 1.0
    from scipy.special import gammaln, logsumexp

    unit = trace(radial)
    stretch = unit.prescale * radial.length
    # The trapezoidal rule in log r is spectrally accurate for what decays at both ends; log phi has no range to leave. Powers may
    # decay by a small one only, hence the long end.
    t = np.linspace(-30.0, LONGEST, 12_001 + 400 * int(LONGEST))
    if unit.log_phi is None:
        raise ValueError(f"{radial!r} takes values <= 0, expected a positive kernel")
    log_phi = evaluate(unit.log_phi, (stretch * np.exp(t)) ** 2, unit.symbols, unit.values)
    zeroth, second = d * t + log_phi, (d + 2) * t + log_phi
    if not second[-1] <= second.max() + np.log(1e-8):
        raise ValueError(
            f"{radial!r} has no finite second moment in {d} dimensions, so it has no bandwidth and its Markov "
            "matrix no generator: use Gaussian, Matern32, Matern52 or Laplace"
        )
    sphere = np.log(2) + d / 2 * np.log(np.pi) - gammaln(d / 2) + np.log(t[1] - t[0])
    mass = logsumexp(zeroth)
    return float(sphere + mass), float(np.exp(logsumexp(second) - mass)) / d


@dataclass(frozen=True)
class Judgement:
    """What the samples say about one scale.

    Attributes
    ----------
    isolated : float
        Share of samples without neighbours.
    alone : float
        The same if copies of a sample are no neighbours of it.
    sigma : float
        The last eigenvalue sigma_r.
    """

    isolated: float
    alone: float
    sigma: float


def isolation_limit(n_samples: int) -> float:
    """Return the share of its own row above which a sample is a Markov state of its own."""
    # With two or three samples in all, a large share is no sign of isolation.
    return max(ISOLATED, min(1.0, 2.0 / n_samples))


def resolve_scale(
    kernel: AbstractKernel,
    X: Array,
    n_modes: int,
    rng: np.random.Generator,
    n_sources: int | None = None,
    **options: Any,
) -> AbstractKernel:
    r"""Return the kernel with numeric scales.

    ``"median"`` is the median rule. ``"auto"`` starts there, with the number of sources as m, and halves eps until sigma_r >= .01, so that
    the last mode is resolved, but never to where more than one in a hundred samples is isolated, or has only its
    own copies as neighbours; where samples are isolated at the start, it doubles eps instead.

    Parameters
    ----------
    kernel : kernel
    X : array of shape (n, d)
    n_modes : int
        r.
    rng : numpy Generator
        Draws the 1,000 samples that judge.
    n_sources : int, optional
        Landmarks that will carry the map: neighbours are counted among so many.
    **options
        ``backend`` and ``tol`` of the operators.

    Notes
    -----
    Cost: about three times 1,000 n pairs and an eigenproblem of 1,000.
    """
    if kernel.resolved:
        return kernel
    median = median_scale(X)
    if not any(k.scale == "auto" for _, k in kernel.terms):
        return kernel.resolve(lambda rule: median)

    def at(scale: float) -> AbstractKernel:
        return kernel.resolve(lambda rule: scale if rule == "auto" else median)

    size = min(len(X), len(X) if n_sources is None else n_sources)
    n_modes = min(n_modes, size - 1)  # no scale resolves more
    sources = rng.permutation(len(X))[:size]
    judges = np.sort(sources[: max(JUDGES, 4 * n_modes)])
    sources = np.sort(sources)
    S, J = (X[namespace(X).asarray(rows)] for rows in (sources, judges))
    copies = _copies(to_host(S))[np.searchsorted(sources, judges)]

    def judge(scale: float) -> Judgement:
        return _judge(at(scale), S, J, copies, n_modes, **options)

    scale = median_scale(X, len(sources))
    now = judge(scale)
    for _ in range(MAX_HALVINGS):
        if now.isolated > TOO_MANY:
            scale *= np.sqrt(2)
            now = judge(scale)
            if now.isolated <= TOO_MANY:
                break
        elif now.sigma < RESOLVED:
            finer = judge(scale / np.sqrt(2))
            if finer.alone > TOO_MANY:
                break
            scale, now = scale / np.sqrt(2), finer
        else:
            break
    return at(float(scale))


def _copies(X: np.ndarray) -> np.ndarray:
    """Return how many rows equal each row, itself included."""
    _, inverse, counts = np.unique(X, axis=0, return_inverse=True, return_counts=True)
    return counts[inverse.reshape(-1)]


def _judge(
    kernel: AbstractKernel, X: Array, L: Array, copies: np.ndarray, n_modes: int, **options: Any
) -> Judgement:
    xp = namespace(X)
    q = (KernelOperator(kernel, L, X, **options) @ xp.ones(len(X), X.dtype)).astype(float)
    q = to_host(q)  # at most a few thousand numbers, and all that follows is small
    own = kernel_at_zero(kernel, L) / q
    limit = isolation_limit(len(X))
    isolated = own > limit
    share, alone = float(isolated.mean()), float((own * copies > limit).mean())
    if share > TOO_MANY or int((~isolated).sum()) <= n_modes:
        return Judgement(share, alone, 0.0)
    kept = np.flatnonzero(~isolated)
    K = to_host(KernelOperator(kernel, L).to_dense())[np.ix_(kept, kept)].astype(float)
    w = q[kept] ** -0.5
    half = np.sqrt(w / (K @ w))
    with one_thread(K.size):
        sigma = np.linalg.eigvalsh(half[:, None] * K * half)
    return Judgement(share, alone, float(sigma[-1 - min(n_modes, len(sigma) - 1)]))


def kernel_at_zero(kernel: AbstractKernel, X: Array) -> float:
    """Return k(x, x), computed on the host."""
    return float(KernelOperator(kernel, np.zeros((1, X.shape[1]), X.dtype)).diagonal()[0])
