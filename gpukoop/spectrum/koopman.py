"""KernelEDMD: the spectrum of a reversible diffusion from pairs (x, x one lag later)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from gpukoop.arrays import Array, like, points, to_host
from gpukoop.draws import RandomState, check_count, check_positive, random_generator
from gpukoop.kernels.profile import AbstractKernel
from gpukoop.spectrum.base import AUTO, AbstractSpectrum, check_samples
from gpukoop.spectrum.dictionary import (
    calibrate,
    check_reg,
    coordinates_above,
    diffusion_dictionary,
)
from gpukoop.spectrum.nystroem import Landmarks
from gpukoop.spectrum.ratio import RatioFunctions
from gpukoop.spectrum.whitening import whitened_pencil

logger = logging.getLogger("gpukoop")

# sigma_min from few to many coordinates.
GRID = (0.3, 0.2, 0.1, 0.05, 0.02, 0.01)
FOLDS = 5
# Folds of fewer pairs than this cannot score ten modes; then sigma_min is FALLBACK.
FEWEST, FALLBACK = 20, 0.1
# Modes whose held-out score decides; later ones are noise for every choice.
SCORED = 10
# Directions of the coordinates that the pooled samples do not span.
CUT = 1e-8
# Below this a mode has decayed within one lag: its eigenvalue is noise.
SMALLEST_MU = 1e-3
# mu = 1 within this is a mode that never decays in the data.
LARGEST_MU = 1 - 1e-9
ROWS = 2**14


class KernelEDMD(AbstractSpectrum):
    r"""Spectrum of a reversible diffusion from pairs, in diffusion coordinates: symmetrised and whitened.

    .. math::
        C_0 = \frac{\Psi_x^T \Psi_x + \Psi_y^T \Psi_y}{2m}, \quad C_t = \frac{\Psi_x^T \Psi_y + \Psi_y^T \Psi_x}{2m},
        \quad C_t v = \mu\, C_0 v, \quad \lambda = -\log(\mu) / \mathrm{lag}

    The dictionary is the diffusion coordinates of landmarks with sigma >= ``reg``, centred over both halves of the pairs. The
    symmetric form makes mu real and in [-1, 1] for any data.

    Parameters
    ----------
    kernel : kernel
        Positive; of the diffusion coordinates.
    n_components : int
        r, at most so many eigenfunctions beside the constant.
    lag_time : float
        Time from a sample to its successor; eigenvalues are in its inverse.
    n_landmarks : int, optional
        Sources, drawn from X; None means 1,000, or all samples where there are fewer.
    landmarks : {"uniform", "kmeans++", "leverage"}
        How they are chosen.
    reg : float or "auto"
        sigma_min in (0, 1): coordinates that the kernel damps more are left out. Large values smooth, small values
        fit noise. "auto" takes it from the held-out VAMP-2 score of the ten leading modes in five folds: most
        coordinates within one standard error of the best.
    backend, tol
        Of every kernel sum.
    random_state : int, Generator, RandomState or None
        Landmarks; drawn on the host.

    Attributes
    ----------
    eigenvalues_ : ndarray of shape (r,)
        Ascending, in units of 1 / ``lag_time``. Modes with mu <= .001 are left out, so r may be below ``n_components``.
    mu_ : ndarray of shape (r,)
        Eigenvalues of the Koopman operator at one lag.
    diffusivity_ : float
        a = lambda_1 / mean |grad phi_1|^2: 1 if the unit of time is that of dX = -grad V dt + sqrt(2) dW.
    reg_ : float
        The sigma_min used.
    reg_path_ : dict of float to ndarray
        Held-out scores, one a fold, of every sigma_min tried; empty unless ``reg="auto"``.
    n_isolated_ : int
        Landmarks left out for want of neighbours.
    kernel_, scale_, sources_, Psi_, w_, offset_, functions_, backend_
        See :class:`gpukoop.spectrum.base.AbstractSpectrum`.

    Notes
    -----
    Cost: 2 m M pairs with p columns and O(m p^2); O(m d + M^2 + p^2) memory. Accuracy: independent pairs know
    lambda_1 to (1 - mu^2) / (mu lag sqrt(m)); higher modes are noisier.

    References
    ----------
    .. [1] H. Wu, F. Noe, Variational approach for learning Markov processes from time series data, Journal of Nonlinear
       Science 30, 2020, eq. 22: the VAMP-2 score.
    .. [2] M. O. Williams, C. W. Rowley, I. G. Kevrekidis, A kernel-based method for data-driven Koopman spectral
       analysis, Journal of Computational Dynamics 2, 2015.

    Examples
    --------
    >>> import numpy as np, gpukoop as gk
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(4000, 1))
    >>> Y = np.exp(-0.2) * X + np.sqrt(1 - np.exp(-0.4)) * rng.normal(size=X.shape)
    >>> edmd = gk.spectrum.KernelEDMD(n_components=2, lag_time=0.2, reg=0.3, random_state=0)
    >>> edmd.fit(X, successors=Y).eigenvalues_.round(1)
    array([1., 2.])
    """

    def __init__(
        self,
        kernel: AbstractKernel = AUTO,
        n_components: int = 32,
        *,
        lag_time: float = 1.0,
        n_landmarks: int | None = None,
        landmarks: Landmarks = "uniform",
        reg: float | Literal["auto"] = "auto",
        backend: str | None = None,
        tol: float | None = None,
        random_state: RandomState = None,
    ) -> None:
        self.kernel = kernel
        self.n_components = n_components
        self.lag_time = lag_time
        self.n_landmarks = n_landmarks
        self.landmarks = landmarks
        self.reg = reg
        self.backend = backend
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: Any, y: None = None, *, successors: Any = None) -> KernelEDMD:
        """Learn the spectrum from pairs.

        Parameters
        ----------
        X : array of shape (m, d)
            Samples of a stationary reversible diffusion.
        y : None
            Ignored.
        successors : array of shape (m, d)
            X one ``lag_time`` later, row by row.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If successors are missing or of another shape, or no mode survives one lag.
        """
        X, _ = points(X, "X")
        Y = _successors(X, y, successors)
        r = check_count(self.n_components, "n_components")
        check_samples(X, r)
        lag = check_positive(self.lag_time, "lag_time")
        rng = random_generator(self.random_state)
        reg = check_reg(self.reg)
        base = diffusion_dictionary(self, X, r, GRID[-1] if reg is None else reg, rng)
        folds = _fold_moments(base.functions, X, Y)
        self.reg_path_: dict[float, np.ndarray] = {}
        if reg is not None:
            self.reg_ = reg
        elif len(X) < FEWEST * FOLDS:
            self.reg_ = FALLBACK
        else:
            self.reg_path_ = _scores(base.sigma, folds, r)
            self.reg_ = _best(self.reg_path_)
        total = sum(folds[1:], folds[0])
        p = coordinates_above(base.sigma, self.reg_)
        mu, W = total.leading(p).modes()
        count = int((mu > SMALLEST_MU)[:r].sum())
        if not count:
            raise ValueError(
                f"no mode survives one lag (largest mu {mu[0]:.1e} after {p} coordinates): are the successors "
                "in the order of X? If so, use a shorter lag_time"
            )
        if count < r:
            logger.info("KernelEDMD keeps %d of %d modes with reg = %g", count, r, self.reg_)
        mu, W = np.minimum(mu[:count], LARGEST_MU), W[:, :count]
        self.mu_ = mu
        self.n_isolated_ = base.n_isolated
        mean, covariance = total.leading(p).law_of_x()
        variance = ((covariance @ W) * W).sum(axis=0)
        functions = base.functions.of(np.arange(p)).combined(W).normalised(mean @ W, variance)
        self._store(functions, -np.log(mu) / lag)
        self.diffusivity_ = calibrate(functions, X, float(self.eigenvalues_[0]))
        return self


def _successors(X: Array, y: Any, successors: Any) -> Array:
    if successors is None:
        hint = "; they were passed as y" if getattr(y, "ndim", 1) == 2 else ""
        raise ValueError(
            f"KernelEDMD learns from pairs: pass successors=Y, X one lag_time later, of shape {X.shape}{hint}"
        )
    Y, _ = points(successors, "successors", n_features=X.shape[1])
    if len(Y) != len(X):
        raise ValueError(
            f"successors has {len(Y)} rows, X has {len(X)}: row i of successors is row i of X one lag_time later"
        )
    return like(Y, X)


@dataclass(frozen=True)
class Moments:
    """Sums over pairs of coordinates: counts, first moments (p,), second moments (p, p)."""

    m: float
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    yy: np.ndarray
    xy: np.ndarray

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(a + b for a, b in zip(self._parts(), other._parts(), strict=True)))

    def __sub__(self, other: Moments) -> Moments:
        return Moments(*(a - b for a, b in zip(self._parts(), other._parts(), strict=True)))

    def _parts(self) -> tuple[Any, ...]:
        return self.m, self.x, self.y, self.xx, self.yy, self.xy

    def leading(self, p: int) -> Moments:
        """Return the moments of the first p coordinates."""
        two = (self.xx, self.yy, self.xy)
        return Moments(self.m, self.x[:p], self.y[:p], *(a[:p, :p] for a in two))

    def covariances(self) -> tuple[np.ndarray, np.ndarray]:
        """Return C_0 and C_t, symmetrised and centred by the pooled mean."""
        mean = (self.x + self.y) / (2 * self.m)
        outer = np.outer(mean, mean)
        return (self.xx + self.yy) / (2 * self.m) - outer, (self.xy + self.xy.T) / (
            2 * self.m
        ) - outer

    def modes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mu, descending, and the combinations of coordinates."""
        C0, Ct = self.covariances()
        return whitened_pencil(Ct, C0, CUT)

    def law_of_x(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and covariance of the coordinates over X."""
        mean = self.x / self.m
        return mean, self.xx / self.m - np.outer(mean, mean)

    def score(self, W: np.ndarray) -> float:
        """Return the VAMP-2 score of modes W on these pairs."""
        C0, Ct = self.covariances()
        A, B = W.T @ Ct @ W, W.T @ C0 @ W
        return float(np.trace(np.linalg.solve(B, A) @ np.linalg.solve(B, A.T)))


def _fold_moments(functions: RatioFunctions, X: Array, Y: Array) -> list[Moments]:
    """Return moments of contiguous folds: neighbours in a trajectory stay together."""
    edges = np.linspace(0, len(X), FOLDS + 1).astype(int)
    folds = []
    for first, last in pairwise(edges):
        blocks = [slice(s, min(s + ROWS, last)) for s in range(first, last, ROWS)]
        parts = [_moments(functions, X[b], Y[b]) for b in blocks]
        if parts:
            folds.append(sum(parts[1:], parts[0]))
    return folds


def _moments(functions: RatioFunctions, X: Array, Y: Array) -> Moments:
    P, Q = (functions.transform(Z).astype(float) for Z in (X, Y))
    parts = (P.sum(axis=0), Q.sum(axis=0), P.T @ P, Q.T @ Q, P.T @ Q)
    return Moments(float(len(X)), *(to_host(a) for a in parts))


def _scores(sigma: np.ndarray, folds: list[Moments], r: int) -> dict[float, np.ndarray]:
    """Return the held-out score of every sigma_min, fold by fold."""
    total = sum(folds[1:], folds[0])
    modes = max(1, min(r, SCORED, coordinates_above(sigma, GRID[0])))
    path = {}
    for reg in GRID:
        p = coordinates_above(sigma, reg)
        learned = [(total - test).leading(p).modes()[1][:, :modes] for test in folds]
        scores = [f.leading(p).score(W) for f, W in zip(folds, learned, strict=True)]
        path[reg] = np.array(scores)
    return path


def _best(path: dict[float, np.ndarray]) -> float:
    """Return the smallest sigma_min whose score is within a standard error, over folds, of the best."""
    best = max(path.values(), key=np.mean)
    for reg in sorted(path):
        lost = best - path[reg]
        if lost.mean() <= lost.std(ddof=1) / np.sqrt(len(lost)):
            return reg
    return max(path)
