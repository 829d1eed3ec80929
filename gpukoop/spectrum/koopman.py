"""KernelEDMD: the spectrum of a reversible diffusion from pairs (x, x one lag later)."""

from __future__ import annotations

import logging
import warnings
from typing import Any, Literal

import numpy as np

from gpukoop.arrays import Array, like, points
from gpukoop.draws import RandomState, check_count, check_positive, random_generator
from gpukoop.fitted import own_points, remember_columns, whole
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.spectrum.asymmetry import DECAYED, Asymmetry
from gpukoop.spectrum.base import AUTO, AbstractSpectrum, check_samples
from gpukoop.spectrum.coordinates import fitted_coordinates
from gpukoop.spectrum.dictionary import (
    calibrate,
    check_reg,
    coordinates_above,
    diffusion_dictionary,
)
from gpukoop.spectrum.nystroem import Landmarks
from gpukoop.spectrum.pairs import (
    FOLDS,
    GRID,
    best_reg,
    block_moments,
    carriers,
    folds_of,
    held_out_scores,
    noise_level,
)
from gpukoop.spectrum.ratio import RatioFunctions
from gpukoop.spectrum.rotating import RotatingFunctions, whole_pairs

logger = logging.getLogger("gpukoop")

# Folds of fewer pairs than this cannot score ten modes; then sigma_min is FALLBACK.
FEWEST, FALLBACK = 20, 0.1
# An eigenfunction that fewer samples carry (a fiftieth of them, if they are few) is slow by chance: a handful of
# points in a tail whose successors happen to stay there. Measured: 5 to 16 for such modes of 20,000 Gaussian
# pairs, 43 and more for the first four true ones.
CARRIERS = 30.0
# Below this a mode has decayed within one lag: its eigenvalue is noise.
SMALLEST_MU = 1e-3
# mu = 1 within this is a mode that never decays in the data.
LARGEST_MU = 1 - 1e-9


class KernelEDMD(AbstractSpectrum):
    r"""Spectrum of a diffusion from pairs, in diffusion coordinates: whitened, and symmetrised if it is reversible.

    .. math::
        C_0 = \frac{\Psi_x^T \Psi_x + \Psi_y^T \Psi_y}{2m}, \quad C_t = \frac{\Psi_x^T \Psi_y + \Psi_y^T \Psi_x}{2m},
        \quad C_t v = \mu\, C_0 v, \quad \lambda = -\log(\mu) / \mathrm{lag}

    The dictionary is the diffusion coordinates of landmarks with sigma >= ``reg``, centred over both halves of the pairs. The
    symmetric form makes mu real and in [-1, 1] for any data. Pairs whose law is another when x and y change places are
    warned about: rotations, say. ``reversible=False`` takes :math:`C_t = \Psi_x^T \Psi_y / m`; mu, lambda and the
    eigenfunctions are complex then, in conjugate pairs, |mu| <= 1.

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
    coordinates : None, "standardize", "whiten", "pca", "tica", object or torch module, optional
        g of k(g(x), g(y)): see :class:`gpukoop.spectrum.LinearCoordinates`; or any object with ``transform(X)`` (n, p) and
        ``vjp(X, G)``, which carries gradients back, (n, d). Eigenvalues are those of the process whatever g.
    reg : float or "auto"
        sigma_min in (0, 1): coordinates that the kernel damps more are left out. Large values smooth, small values
        fit noise. "auto" takes it from the held-out VAMP-2 score of the ten leading modes in five folds: most
        coordinates within one standard error of the best.
    reversible : bool
        Whether the process is the same backwards in time. True is right for dX = -grad V dt + sqrt(2) dW, and needs
        half as many pairs there.
    backend, tol
        Of every kernel sum.
    random_state : int, Generator, RandomState or None
        Landmarks; drawn on the host.

    Attributes
    ----------
    eigenvalues_ : ndarray of shape (r,)
        Ascending, in units of 1 / ``lag_time``. Modes with mu <= .001 are left out, so r may be below ``n_components``.
        Complex if not ``reversible``: by ascending real part, conjugate pairs whole; the imaginary part is the angular
        frequency, known up to multiples of 2 pi / ``lag_time``.
    mu_ : ndarray of shape (r,)
        Eigenvalues of the Koopman operator at one lag.
    is_noise_ : ndarray of shape (r,)
        Modes that decay within a lag by more than three relaxation times, |mu| < exp(-3), or below what p coordinates
        of m unrelated pairs show, sqrt(p / m), times sqrt(2) if ``reversible``: their numbers mean nothing.
    asymmetry_, asymmetry_error_ : float
        The antisymmetric moment E[u(x) v(y) - v(x) u(y)] / 2 of two leading functions of variance 1 that stands out most,
        0 for a reversible process, and its standard error from 20 contiguous blocks; nan if there are fewer than 200
        pairs, or fewer than two functions that outlive a lag. Beyond chance (one run in a thousand) it is warned about.
    diffusivity_ : float
        a = lambda_1 / mean |grad phi_1|^2: 1 if the unit of time is that of dX = -grad V dt + sqrt(2) dW.
    reg_ : float
        The sigma_min used.
    reg_path_ : dict of float to ndarray
        Held-out scores, one a fold, of every sigma_min tried; empty unless ``reg="auto"``.
    n_spurious_ : int
        Modes left out because fewer than 30 samples carry them.
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
        reversible: bool = True,
        coordinates: Any = None,
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
        self.reversible = reversible
        self.coordinates = coordinates
        self.backend = backend
        self.tol = tol
        self.random_state = random_state

    @whole
    def fit(self, X: Any, y: None = None, *, successors: Any = None) -> KernelEDMD:
        """Learn the spectrum from pairs.

        Parameters
        ----------
        X : array of shape (m, d)
            Samples of a stationary diffusion, a reversible one unless ``reversible=False``.
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

        Warns
        -----
        RuntimeWarning
            If ``reversible`` and the pairs are not.
        """
        remember_columns(self, X)
        X, _ = own_points(X, "X")
        self._check_parameters()
        Y = _successors(X, y, successors)
        if not isinstance(self.reversible, bool):
            raise TypeError(f"reversible is {self.reversible!r}, expected True or False")
        r = check_count(self.n_components, "n_components")
        check_samples(X, r)
        lag = check_positive(self.lag_time, "lag_time")
        self.n_features_in_ = X.shape[1]
        self.coordinates_, kernel = fitted_coordinates(self.coordinates, self.kernel, X, Y)
        X, Y = self.seen(X), self.seen(Y)
        rng = random_generator(self.random_state)
        reg = check_reg(self.reg)
        base = diffusion_dictionary(self, kernel, X, r, GRID[-1] if reg is None else reg, rng)
        blocks = block_moments(base.functions, X, Y)
        self.reg_path_: dict[float, np.ndarray] = {}
        if reg is not None:
            self.reg_ = reg
        elif len(X) < FEWEST * FOLDS:
            self.reg_ = FALLBACK
        else:
            self.reg_path_ = held_out_scores(base.sigma, folds_of(blocks), r, self.reversible)
            self.reg_ = best_reg(self.reg_path_)
        p = coordinates_above(base.sigma, self.reg_)
        blocks = [block.leading(p) for block in blocks]
        self._measure_asymmetry(Asymmetry.of(blocks))
        total = sum(blocks[1:], blocks[0])
        mu, W = total.modes() if self.reversible else total.rotating_modes()
        size = mu if self.reversible else np.abs(mu)
        slow = int((size > SMALLEST_MU)[: 2 * r].sum())
        if not slow:
            raise ValueError(
                f"no mode survives one lag (largest mu {size[0]:.1e} after {p} coordinates): are the successors "
                "in the order of X? If so, use a shorter lag_time"
            )
        mean, covariance = total.law_of_x()
        coordinates, W = base.functions.of(np.arange(p)), W[:, :slow]
        functions: RatioFunctions | RotatingFunctions
        if self.reversible:
            variance = ((covariance @ W) * W).sum(axis=0)
            functions = coordinates.combined(W).normalised(mean @ W, variance)
        else:
            functions = RotatingFunctions.of_modes(coordinates, W, mean, covariance)
        carried = np.flatnonzero(carriers(functions, X) >= min(CARRIERS, len(X) / 50))
        carried = whole_pairs(mu, carried, r)
        self.n_spurious_ = int((np.arange(slow) < carried.max(initial=0)).sum()) + 1 - len(carried)
        if not len(carried):
            raise ValueError(
                f"no mode is left: each is carried by fewer than {CARRIERS:.0f} samples, or n_components = {r} cuts a "
                "conjugate pair: raise the scale of the kernel, or n_components"
            )
        if len(carried) < r:
            logger.info("KernelEDMD keeps %d of %d modes with reg = %g", len(carried), r, self.reg_)
        size = size[carried]
        self.mu_ = mu[carried] * np.minimum(1.0, LARGEST_MU / size)
        edge = noise_level(W.shape[0], total.m) * (np.sqrt(2) if self.reversible else 1.0)
        self.is_noise_ = size < max(DECAYED, edge)
        if self.is_noise_.any():
            logger.info(
                "KernelEDMD: %d of %d modes are noise, |mu| < %.2g: decayed within one lag_time, or too few pairs "
                "(is_noise_ says which)",
                self.is_noise_.sum(),
                len(size),
                max(DECAYED, edge),
            )
        self.n_isolated_ = base.n_isolated
        self._store(functions.of(carried), -np.log(self.mu_) / lag)
        self.diffusivity_ = calibrate(self.functions_, X, float(self.eigenvalues_[0].real))
        return self

    def _measure_asymmetry(self, found: Asymmetry) -> None:
        self.asymmetry_, self.asymmetry_error_ = found.moment, found.error
        if self.reversible and found.significant:
            warnings.warn(
                f"the pairs are not those of a reversible process in its stationary law: two leading functions have an "
                f"antisymmetric moment of {found.moment:.2g} +- {found.error:.1g}, where 0 is expected. The eigenvalues are "
                "those of the symmetrised process; KernelEDMD(reversible=False) gives the complex ones of the process itself",
                RuntimeWarning,
                stacklevel=3,
            )


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
