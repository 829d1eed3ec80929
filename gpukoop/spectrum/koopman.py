"""KernelEDMD: the spectrum of a reversible diffusion from pairs (x, x one lag later)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from gpukoop.arrays import Array, points
from gpukoop.draws import RandomState, check_count, check_flag, check_positive, random_generator
from gpukoop.fitted import check_columns, own_points, remember_columns, whole
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.lagged import check_lag, pairs, runs_of, thinned
from gpukoop.spectrum.asymmetry import Asymmetry, warn_of_asymmetry
from gpukoop.spectrum.base import AUTO, AbstractSpectrum, check_samples
from gpukoop.spectrum.coordinates import fitted_coordinates, functions_of_points
from gpukoop.spectrum.dictionary import calibrate, check_reg, diffusion_dictionary
from gpukoop.spectrum.held_out import ScoredOnPairs, successors_of
from gpukoop.spectrum.modes import ResolvedModes, resolved_modes
from gpukoop.spectrum.nystroem import Coordinates, Landmarks
from gpukoop.spectrum.pairs import GRID, Moments, block_moments
from gpukoop.spectrum.trajectory import SEEN, Stream, trajectory_moments


class KernelEDMD(ScoredOnPairs, AbstractSpectrum):
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
        Ascending, in units of 1 / ``lag_time_``. Modes with mu <= .001 are left out, so r may be below ``n_components``.
        Complex if not ``reversible``: by ascending real part, conjugate pairs whole; the imaginary part is the angular
        frequency, known up to multiples of 2 pi / ``lag_time``.
    timescales_ : ndarray of shape (r,)
        1 / Re ``eigenvalues_``, in the unit of ``lag_time_``: relaxation times, descending.
    lag_time_ : float
        ``lag_time``, or ``lag`` * ``frame_time`` of trajectories.
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
    def fit(
        self,
        X: Any,
        y: None = None,
        *,
        successors: Any = None,
        lag: int | None = None,
        frame_time: float = 1.0,
    ) -> KernelEDMD:
        """Learn the spectrum from pairs, or from trajectories.

        Parameters
        ----------
        X : array of shape (m, d)
            Samples of a stationary diffusion, a reversible one unless ``reversible=False``. With ``lag`` a trajectory of
            successive frames, or a list of such arrays of different lengths: no pair joins two of them.
        y : None
            Ignored.
        successors : array of shape (m, d)
            X one ``lag_time`` later, row by row.
        lag : int, optional
            Frames from a state to its successor. Memory-mapped runs are read in chunks; the dictionary is made of at most
            50,000 frames spread evenly over all runs.
        frame_time : float
            Time between two frames, in the unit that ``timescales_`` shall have; with ``lag`` it replaces ``lag_time``.

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
        self._check_parameters()
        self._lag = None
        if lag is not None:
            if successors is not None:
                raise ValueError("successors= and lag= both say what follows X: pass one of them")
            runs = runs_of(X, "X")
            self._lag = lag = check_lag(runs, lag)
            lag_time = lag * check_positive(frame_time, "frame_time")
            remember_columns(self, *runs)
            seen = thinned(runs, SEEN, "X")
            base = self._dictionary(seen, runs, lag)
            blocks = trajectory_moments(functions_of_points(base.functions, self), runs, lag)
            return self._solve(base, blocks, self.seen(seen), lag_time)
        remember_columns(self, X, successors)
        X, _ = own_points(X, "X")
        Y = successors_of(X, y, successors)
        lag_time = check_positive(self.lag_time, "lag_time")
        base = self._dictionary(X, X, Y)
        X, Y = self.seen(X), self.seen(Y)
        return self._solve(base, block_moments(base.functions, X, Y), X, lag_time)

    @whole
    def partial_fit(
        self,
        X: Any,
        y: None = None,
        *,
        lag: int = 1,
        frame_time: float = 1.0,
        continues: bool = False,
    ) -> KernelEDMD:
        """Learn from one more chunk of a trajectory, or from an iterator of chunks, in memory that does not grow.

        Parameters
        ----------
        X : array of shape (n, d), or iterator of such arrays
            The first chunk makes the dictionary, so it should have been wherever later ones go: states that it has not seen
            are described by the nearest ones it has.
        y : None
            Ignored.
        lag, frame_time
            As in :meth:`fit`; the same at every call.
        continues : bool
            Whether X goes on where the chunk before it ended; if not, no pair joins the two. The chunks of an iterator
            continue each other.

        Returns
        -------
        self
            Fitted to all chunks so far.

        Notes
        -----
        Cost: one evaluation of p coordinates a frame; O(p^2) memory between calls.
        """
        self._check_parameters()
        self._lag = lag = check_count(lag, "lag")
        lag_time = lag * check_positive(frame_time, "frame_time")
        stream: Stream | None = self.__dict__.get("_stream")
        if stream is not None and stream.lag != lag:
            raise ValueError(f"lag is {lag}, the chunks before had {stream.lag}: a fit has one lag")
        for chunk in X if isinstance(X, Iterator) else [X]:
            native, _ = own_points(chunk, "X")
            if stream is None:
                remember_columns(self, chunk)
                seen = thinned([native], SEEN, "X")
                base = self._dictionary(seen, [native], lag)
                self._stream = stream = Stream(base, self.seen(seen), lag)
            else:
                check_columns(self, chunk)
                points(native, "X", n_features=self.n_features_in_, other="the first chunk")
            stream = stream.extended(self.seen(native), continues)
            continues = isinstance(X, Iterator)
        if stream is None or not stream.blocks:
            raise ValueError(f"X has no pair: chunks must be longer than lag = {lag} frames")
        self._solve(stream.base, list(stream.blocks), stream.seen, lag_time)
        self._stream = stream
        return self

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_positive(self.lag_time, "lag_time")
        check_flag(self.reversible, "reversible")
        check_reg(self.reg)

    def _dictionary(self, X: Array, first: Any, later: Any) -> Coordinates:
        """Return the diffusion coordinates that eigenfunctions are combined of, on samples X.

        The kernel's own coordinates are learned from pairs: two arrays, or runs and a lag.
        """
        check_samples(X, self.n_components)
        rng, reg = random_generator(self.random_state), check_reg(self.reg)
        self.n_features_in_ = X.shape[1]
        if self.coordinates is not None and isinstance(first, list):
            frames = sum(map(len, first))
            first, later = pairs(first, later, stride=max(1, frames // SEEN))
        self.coordinates_, kernel = fitted_coordinates(
            self.coordinates, self.kernel, X if isinstance(first, list) else first, later
        )
        smallest = GRID[-1] if reg is None else reg
        return diffusion_dictionary(self, kernel, self.seen(X), self.n_components, smallest, rng)

    def _solve(
        self, base: Coordinates, blocks: list[Moments], X: Array, lag_time: float
    ) -> KernelEDMD:
        """Find the modes from the moments of blocks of pairs; X are samples that judge them."""
        reg = check_reg(self.reg)
        found = resolved_modes(base, blocks, X, reg, self.n_components, self.reversible)
        self.__dict__.pop("_stream", None)
        return self._adopt(base, found, X, lag_time)

    def _adopt(
        self, base: Coordinates, found: ResolvedModes, X: Array, lag_time: float
    ) -> KernelEDMD:
        """Become the estimator of modes that were found."""
        self.lag_time_ = lag_time
        self.reg_, self.reg_path_ = found.reg, found.reg_path
        self.mu_, self.is_noise_, self.n_spurious_ = found.mu, found.is_noise, found.n_spurious
        self.n_isolated_ = base.n_isolated
        self._measure_asymmetry(found.asymmetry)
        self._store(found.functions, -np.log(self.mu_) / lag_time)
        self.diffusivity_ = calibrate(self.functions_, X, float(self.eigenvalues_[0].real))
        return self

    def _measure_asymmetry(self, found: Asymmetry) -> None:
        self.asymmetry_, self.asymmetry_error_ = found.moment, found.error
        if self.reversible:
            warn_of_asymmetry(found)
