"""Landmarks: few sources that stand for many samples, chosen and used in O(n M) on the samples' own device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gpukoop.arrays import Array, namespace, to_host
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.operator import KernelOperator
from gpukoop.spectrum.eigsh import eigenpairs
from gpukoop.spectrum.markov import (
    SMALLEST_SIGMA,
    MarkovOperator,
    isolated,
    sampling_weights,
)
from gpukoop.spectrum.ratio import RatioFunctions
from gpukoop.spectrum.whitening import whitened_pencil

Landmarks = Literal["uniform", "kmeans++", "leverage"]
LANDMARKS = ("uniform", "kmeans++", "leverage")

# Candidates for each landmark that a choice looks at: more change nothing, fewer lose the spread.
CANDIDATES = 20
# Rows of a dense block of leverage scores.
BLOCK = 4_096
# Samples whose full operator refines a map made on landmarks; their number alone decides the noise left.
REFINERS = 20_000
# Landmark modes per mode wanted: the refined ones are combinations of them.
OVERSAMPLING = 1.5
# Rows of samples whose functions are held at once.
MOMENT_ROWS = 2**17


def choose_landmarks(
    X: Array,
    n_landmarks: int,
    method: str,
    kernel: AbstractKernel,
    rng: np.random.Generator,
    **options: Any,
) -> np.ndarray:
    """Return the sorted rows of X that become landmarks, on the host.

    Parameters
    ----------
    X : array of shape (n, d)
    n_landmarks : int
        M < n.
    method : {"uniform", "kmeans++", "leverage"}
        Draw them evenly; far from each other (squared distances as odds); or by approximate ridge leverage
        scores of the kernel, which favour what the others do not explain.
    kernel : kernel
        With numeric scales; used by "leverage".
    rng : numpy Generator
        Draws on the host.

    References
    ----------
    .. [1] D. Arthur, S. Vassilvitskii, k-means++: the advantages of careful seeding, SODA 2007, section 2.2.
    .. [2] A. Rudi, D. Calandriello, L. Carratino, L. Rosasco, On fast leverage score sampling and optimal
       learning, NeurIPS 2018, eq. 3.
    """
    if method not in LANDMARKS:
        raise ValueError(f"unknown landmarks {method!r}; known are {', '.join(LANDMARKS)}")
    n = len(X)
    if method == "uniform":
        return np.sort(rng.choice(n, n_landmarks, replace=False))
    # A uniform pool first: both rules then cost what twenty candidates a landmark cost, whatever the number of samples.
    pool = np.sort(rng.choice(n, min(n, CANDIDATES * n_landmarks), replace=False))
    candidates = X[namespace(X).asarray(pool)]
    if method == "kmeans++":
        return np.sort(pool[_spread(candidates, n_landmarks, rng)])
    odds = _leverage(candidates, n_landmarks, kernel, rng, **options)
    return np.sort(rng.choice(pool, n_landmarks, replace=False, p=odds / odds.sum()))


def _spread(X: Array, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return rows of X, each drawn with odds of its squared distance to those drawn before."""
    xp = namespace(X)
    chosen = [int(rng.integers(len(X)))]
    gap = xp.full(len(X), xp.inf)
    for u in rng.random(count - 1):
        gap = xp.minimum(gap, ((X - X[chosen[-1]]).astype(float) ** 2).sum(axis=1))
        total = xp.cumsum(gap)
        if float(total[-1]) == 0.0:  # fewer distinct points than landmarks: repeat none of the rows
            rest = np.setdiff1d(np.arange(len(X)), chosen)
            return np.array([*chosen, *rest[: count - len(chosen)]])
        # By the cumulative sum on the points' own device: one number comes back a landmark.
        chosen.append(int(xp.searchsorted(total, u * total[-1], side="right")))
    return np.array(chosen)


def _leverage(
    X: Array, count: int, kernel: AbstractKernel, rng: np.random.Generator, **options: Any
) -> np.ndarray:
    """Return ridge leverage scores from a uniform pilot: what it leaves unexplained of k(x, x)."""
    xp = namespace(X)
    pilot = X[xp.asarray(np.sort(rng.choice(len(X), min(len(X), count), replace=False)))]
    K = to_host(KernelOperator(kernel, pilot, **options).to_dense()).astype(float)
    # The ridge at which the pilot has about as many degrees of freedom as there will be landmarks.
    ridge = np.trace(K) / len(K)
    inverse = xp.asarray(np.linalg.inv(K + ridge * np.eye(len(K))))
    scores = []
    for start in range(0, len(X), BLOCK):
        block = KernelOperator(kernel, X[start : start + BLOCK], pilot, **options)
        B = block.to_dense().astype(float)
        # k(x, x) less its projection on the pilot: the ridge leverage score up to a factor (Musco, Musco 2017).
        scores.append(to_host(K[0, 0] - ((B @ inverse) * B).sum(axis=1)))
    return np.maximum(np.concatenate(scores), 1e-6 * K[0, 0])


@dataclass(frozen=True)
class LandmarkMap:
    """A diffusion map on landmarks.

    Attributes
    ----------
    sigma : ndarray of shape (r,)
        Descending.
    functions : RatioFunctions
        Before normalisation: the offset is 0.
    mean, variance : ndarrays of shape (r,)
        Of the functions over all samples.
    n_isolated : int
        Landmarks, and samples of the refinement, left out.
    """

    sigma: np.ndarray
    functions: RatioFunctions
    mean: np.ndarray
    variance: np.ndarray
    n_isolated: int


def landmark_map(
    kernel: AbstractKernel,
    X: Array,
    p: Array,
    n_modes: int,
    rows: np.ndarray,
    alpha: float,
    rng: np.random.Generator,
    *,
    even: bool = True,
    **options: Any,
) -> LandmarkMap:
    r"""Return the diffusion map of all samples in the span of a map on landmarks.

    A map on M landmarks, with the density q of all samples, gives about 1.5 r functions F. Then one
    Rayleigh-Ritz step with the full operator: :math:`H y = \sigma C y`, :math:`H = F^T w K w F`, :math:`C = F^T D F`.

    Parameters
    ----------
    kernel : kernel
    X : array of shape (n, d)
    p : array of shape (n,)
        Masses.
    n_modes : int
        r.
    rows : ndarray of shape (M,)
        Landmarks.
    alpha : float
    rng : numpy Generator
    even : bool
        The landmarks were drawn evenly; otherwise they are weighted by the samples that each stands for.
    **options
        ``backend`` and ``tol``.
    """
    # The refinement mixes these, so it needs some beyond those that are wanted.
    count = int(OVERSAMPLING * n_modes) + 4
    base = coordinates(kernel, X, p, count, rows, alpha, rng, even=even, **options)
    if not len(base.sigma):
        return LandmarkMap(base.sigma, base.functions, base.sigma, base.sigma, base.n_isolated)
    sigma, Y, dropped = _refine(base.functions, X, p, alpha, rng)
    kept = min(n_modes, int((sigma > SMALLEST_SIGMA).sum()))
    functions = base.functions.combined(Y[:, :kept])
    mean, variance = law_moments(functions, X, p)
    return LandmarkMap(sigma[:kept], functions, mean, variance, base.n_isolated + dropped)


@dataclass(frozen=True)
class Coordinates:
    """Diffusion coordinates of landmarks: sigma (p,), descending, their functions, and the landmarks left out."""

    sigma: np.ndarray
    functions: RatioFunctions
    n_isolated: int


def coordinates(
    kernel: AbstractKernel,
    X: Array,
    p: Array,
    n_modes: int,
    rows: np.ndarray,
    alpha: float,
    rng: np.random.Generator,
    *,
    even: bool = True,
    **options: Any,
) -> Coordinates:
    """Return the diffusion map on the landmarks ``X[rows]`` with the density q of all samples."""
    xp = namespace(X)
    L = X[xp.asarray(rows)]
    q, w = sampling_weights(KernelOperator(kernel, L, X, **options), p, alpha)
    # A landmark may have samples around it and still no other landmark: then it is a Markov state of its own here.
    ones = xp.ones(len(L), L.dtype)
    q_L = (KernelOperator(kernel, L, **options) @ ones).astype(float)
    if not even:
        w = (
            w * q / q_L
        )  # samples that a landmark stands for: density of all over density of the landmarks
    keep = ~isolated(kernel, L, ones, q_L)
    dropped = len(L) - int(keep.sum())
    if len(L) - dropped < 2:
        raise ValueError(
            f"{dropped} of {len(L)} landmarks have no neighbours within the scale of {kernel!r}: raise the scale"
        )
    L, w = xp.ascontiguousarray(L[keep]), w[keep]
    w = w / w.mean()
    S = MarkovOperator(KernelOperator(kernel, L, **options), w)
    count = min(n_modes, len(L) - 1)
    pairs = eigenpairs(S, count, tol=options.get("tol") or 0.0, random_state=rng)
    sigma = to_host(pairs.values).astype(float)
    sigma = sigma[sigma > SMALLEST_SIGMA]
    u = S.right_vectors(pairs.vectors[:, : len(sigma)])
    Psi = (w[:, None] * u / xp.asarray(sigma)).astype(X.dtype)  # (M, p)
    zero = xp.zeros(len(sigma), X.dtype)
    functions = RatioFunctions(kernel, L, Psi, w.astype(X.dtype), zero, **options)
    return Coordinates(sigma, functions, dropped)


def _refine(
    coarse: RatioFunctions, X: Array, p: Array, alpha: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return sigma, descending, the combinations Y of the coarse functions, and the isolated samples left out."""
    xp = namespace(X)
    options: dict[str, Any] = {"backend": coarse.backend, "tol": coarse.tol}
    J, p_J = X, p
    if len(X) > REFINERS:
        rows = xp.asarray(np.sort(rng.choice(len(X), REFINERS, replace=False)))
        J, p_J = X[rows], p[rows]
    q, w = sampling_weights(KernelOperator(coarse.kernel, J, **options), p_J, alpha)
    keep = ~isolated(coarse.kernel, J, p_J, q)
    dropped = len(J) - int(keep.sum())
    J, w = xp.ascontiguousarray(J[keep]), (w * p_J)[keep]
    F = coarse.transform(J).astype(float)
    # The constant rides along as column 0: one pass gives row sums and products.
    V = xp.concatenate([xp.ones((len(J), 1)), F], axis=1) * w[:, None]
    KV = (KernelOperator(coarse.kernel, J, **options) @ V.astype(J.dtype)).astype(float)
    D = w * KV[:, 0]
    mean = D @ F / D.sum()
    F = F - mean
    KF = KV[:, 1:] - KV[:, :1] * mean
    H = (w[:, None] * F).T @ KF
    C = F.T @ (D[:, None] * F)
    # Rayleigh-Ritz with the operator of all samples: landmarks only span the space, so their noise is no noise of sigma.
    sigma, Y = whitened_pencil(to_host(H), to_host(C), cut=float(np.finfo(X.dtype).eps))
    return sigma, Y, dropped


def law_moments(functions: RatioFunctions, X: Array, p: Array) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of the functions over all samples, in blocks of rows."""
    first = second = 0.0
    for start in range(0, len(X), MOMENT_ROWS):
        block = slice(start, start + MOMENT_ROWS)
        phi = functions.transform(X[block]).astype(float)
        first = first + p[block] @ phi
        second = second + p[block] @ phi**2
    mean = to_host(first / p.sum())
    return mean, to_host(second / p.sum()) - mean**2
