"""DiffusionMap: the spectrum of a Langevin generator from samples of its law alone."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from gpukoop.arrays import Array, like, namespace, to_host, unchecked
from gpukoop.checks import masses
from gpukoop.draws import RandomState, check_count, check_positive, random_generator
from gpukoop.fitted import own_points, remember_columns, whole
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.operator import KernelOperator
from gpukoop.spectrum.bandwidth import kernel_bandwidth, resolve_scale
from gpukoop.spectrum.base import (
    AUTO,
    AbstractSpectrum,
    check_samples,
    mean_and_variance,
)
from gpukoop.spectrum.coordinates import fitted_coordinates
from gpukoop.spectrum.eigsh import METHODS, Method, eigenpairs
from gpukoop.spectrum.markov import (
    SMALLEST_SIGMA,
    MarkovOperator,
    eigenvalues_of_generator,
    isolated,
    sampling_weights,
)
from gpukoop.spectrum.nystroem import Landmarks, choose_landmarks, landmark_map, law_moments
from gpukoop.spectrum.ratio import RatioFunctions

# 1 - sigma below this many eps is rounding: the samples fall into pieces that the kernel does not connect.
CONNECTED = 100.0


class DiffusionMap(AbstractSpectrum):
    r"""Eigenvalues and eigenfunctions of :math:`-\Delta + \nabla V \cdot \nabla` from samples of :math:`e^{-V}`.

    .. math::
        q_l = \textstyle\sum_{l'} k(x_l, x_{l'}), \quad w = q^{-\alpha}, \quad D = w\,(K w), \quad
        D^{-1/2} w K w D^{-1/2} s_k = \sigma_k s_k, \quad \lambda_k = -2 \log(\sigma_k) / \varepsilon

        \varphi_k(z) \propto \frac{1}{\sigma_k}
        \frac{\sum_l k(z, x_l)\, w_l\, u_k(x_l)}{\sum_l k(z, x_l)\, w_l}, \quad u_k = D^{-1/2} s_k

    Parameters
    ----------
    kernel : kernel
        Positive. ``Gaussian("auto")`` finds a scale that resolves the last mode without isolated samples. A scale for each
        feature is a scale in coordinates x / scale, whose generator is then learned.
    n_components : int
        r, eigenfunctions beside the constant; below the number of samples.
    alpha : float
        Power of the density that is divided out: 1/2 gives the Langevin generator of the samples' law, 1 the
        Laplacian of their manifold whatever the law, 0 the generator of its square.
    n_landmarks : int, optional
        Number M of sources; None keeps all samples. The map is then made on M landmarks and improved by one
        Rayleigh-Ritz step with the operator of all samples (of 20,000 of them, drawn evenly, if there are more).
    landmarks : {"uniform", "kmeans++", "leverage"}
        How they are chosen, see :func:`gpukoop.spectrum.nystroem.choose_landmarks`.
    rule : {"log", "linear"}
        lambda = -2 log(sigma) / eps, exact where the kernel is the heat kernel, or 2 (1 - sigma) / eps.
    coordinates : None, "standardize", "whiten", "pca", object or torch module, optional
        g of k(g(x), g(y)): see :class:`gpukoop.spectrum.LinearCoordinates`; or any object with ``transform(X)`` (n, p) and
        ``vjp(X, G)``, which carries gradients back, (n, d). The generator is that of the law of g(x).
    method : {"auto", "block", "lanczos", "dense"}
        Of :func:`gpukoop.spectrum.eigsh`. Only "dense" forms the matrix.
    backend, tol
        Of every kernel sum; see ``KernelOperator``. ``tol`` is also the residual of the eigenpairs.
    random_state : int, Generator, RandomState or None
        Landmarks, the subsample of ``scale="auto"``, and the starting block; drawn on the host.

    Attributes
    ----------
    eigenvalues_ : ndarray of shape (r,)
        Ascending, in units of 1 / length ** 2 of X.
    sigma_ : ndarray of shape (r,)
        Eigenvalues of the Markov matrix, descending.
    kernel_, scale_, bandwidth_
        The kernel with numbers, the scale of its first term, and eps.
    n_isolated_ : int
        Samples left out of the sources because they have no neighbours: more than .3 of their row is their own.
    sources_, Psi_, w_, offset_, functions_, diffusivity_, backend_
        See :class:`gpukoop.spectrum.base.AbstractSpectrum`.

    Notes
    -----
    Cost: about 12 products of 16 columns over the m^2 pairs, O(m r) memory; with landmarks O(n M) pairs and O(n d + M^2)
    memory. Euclidean distances suffice on manifolds. For kernels other than Gaussian eps is their second
    moment in d = ``X.shape[1]`` dimensions, which holds for data that fill the space.

    There is no ``score``. The variational one, of variances and slopes on unseen samples, is infinite for functions that are constant on
    islands of samples, which a kernel that is too narrow makes of any data. In a pipeline the last step's score chooses.

    References
    ----------
    .. [1] R. R. Coifman, S. Lafon, Diffusion maps, Applied and Computational Harmonic Analysis 21, 2006, section 3.
    .. [2] F. Li, Y. Marzouk, Diffusion map particle systems for generative modeling, arXiv 2304.00200.

    Examples
    --------
    >>> import numpy as np, gpukoop as gk
    >>> angle = 2 * np.pi * np.arange(500) / 500
    >>> X = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    >>> spectrum = gk.spectrum.DiffusionMap(gk.Gaussian(0.2), n_components=4).fit(X)
    >>> spectrum.eigenvalues_.round(2)
    array([1.02, 1.02, 4.08, 4.08])
    """

    n_isolated_: int

    def __init__(
        self,
        kernel: AbstractKernel = AUTO,
        n_components: int = 32,
        *,
        alpha: float = 0.5,
        n_landmarks: int | None = None,
        landmarks: Landmarks = "uniform",
        rule: Literal["log", "linear"] = "log",
        coordinates: Any = None,
        method: Method = "auto",
        backend: str | None = None,
        tol: float | None = None,
        random_state: RandomState = None,
    ) -> None:
        self.kernel = kernel
        self.n_components = n_components
        self.alpha = alpha
        self.n_landmarks = n_landmarks
        self.landmarks = landmarks
        self.rule = rule
        self.coordinates = coordinates
        self.method = method
        self.backend = backend
        self.tol = tol
        self.random_state = random_state

    @whole
    def fit(self, X: Any, y: None = None, *, sample_weight: Any = None) -> DiffusionMap:
        """Learn the spectrum of the law that X was drawn from.

        Parameters
        ----------
        X : array of shape (m, d)
            Samples, float32 or float64; NumPy or CuPy. The spectrum stays in their library and on their device.
        y : None
            Ignored.
        sample_weight : array of shape (m,), optional
            Masses, such as quadrature weights; equal by default. Samples of mass 0 are left out.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If there are too few samples, all are equal, the kernel takes values <= 0, or its scale is so small that no
            mode is left.

        Warns
        -----
        ConvergenceWarning
            If fewer than ``n_components`` modes are resolved, or the samples fall into pieces.
        """
        remember_columns(self, X)
        X, _ = own_points(X, "X")
        self._check_parameters()
        r = check_count(self.n_components, "n_components")
        check_samples(X, r)
        p = _masses(sample_weight, X)
        # A sample without weight has no mass as a Markov state: its row would divide by zero.
        if sample_weight is not None and not bool(p.all()):
            X, p = namespace(X).ascontiguousarray(X[p > 0]), p[p > 0]
            check_samples(X, r)
        self.n_features_in_ = X.shape[1]
        weight = None if sample_weight is None else to_host(p)
        self.coordinates_, kernel = fitted_coordinates(
            self.coordinates, self.kernel, X, weight=weight
        )
        X = self.seen(X)
        with unchecked():  # X and the masses have been looked at
            return self._learn(kernel, X, p, r)

    def _learn(self, kernel: AbstractKernel, X: Array, p: Array, r: int) -> DiffusionMap:
        rng = random_generator(self.random_state)
        options: dict[str, Any] = {"backend": self.backend, "tol": self.tol}
        landmarks = self.n_landmarks
        if landmarks is not None:
            landmarks = check_count(landmarks, "n_landmarks", 2)
        kernel = resolve_scale(kernel, X, r, rng, landmarks, **options)
        self.bandwidth_ = kernel_bandwidth(kernel, X.shape[1])
        if landmarks is None or landmarks >= len(X):
            sigma, raw, phi = self._full_map(kernel, X, p, r, rng)
            # Samples without neighbours are no sources, but they are samples: moments are over all.
            mean, variance = (
                law_moments(raw, X, p) if self.n_isolated_ else mean_and_variance(phi, p / p.sum())
            )
        else:
            rows = choose_landmarks(X, landmarks, self.landmarks, kernel, rng, **options)
            even = self.landmarks == "uniform"
            made = landmark_map(kernel, X, p, r, rows, self.alpha, rng, even=even, **options)
            sigma, raw, mean, variance = made.sigma, made.functions, made.mean, made.variance
            self.n_isolated_ = made.n_isolated
        sigma = self._judged(sigma, r, X)
        self.sigma_ = sigma
        self.diffusivity_ = 1.0
        self._store(
            raw.normalised(mean, variance),
            eigenvalues_of_generator(sigma, self.bandwidth_, self.rule),
        )
        return self

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_positive(self.alpha, "alpha", zero=True)
        if not isinstance(self.method, str) or self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}; known are {', '.join(METHODS)}")
        if not isinstance(self.rule, str) or self.rule not in ("log", "linear"):
            raise ValueError(f"rule is {self.rule!r}, expected 'log' or 'linear'")

    def _full_map(
        self, kernel: AbstractKernel, X: Array, p: Array, r: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, RatioFunctions, Array]:
        """Return sigma, the functions before normalisation, their values at the samples kept."""
        xp = namespace(X)
        options: dict[str, Any] = {"backend": self.backend, "tol": self.tol}
        K = KernelOperator(kernel, X, **options)
        q, w = sampling_weights(K, p, self.alpha)
        keep = ~isolated(kernel, X, p, q)
        self.n_isolated_ = len(X) - int(keep.sum())
        if self.n_isolated_:
            X, p = xp.ascontiguousarray(X[keep]), p[keep]
            if len(X) <= r:
                raise ValueError(
                    f"{self.n_isolated_} of {self.n_isolated_ + len(X)} samples have no neighbours within the "
                    f"scale of {kernel!r}, too few are left for n_components = {r}: raise the scale"
                )
            K = KernelOperator(kernel, X, **options)
            q, w = sampling_weights(K, p, self.alpha)
        # The masses enter twice, in the density and here: a sample of weight two is then exactly two samples on one place.
        w = w * p * (len(X) / p.sum())
        S = MarkovOperator(K, w)
        pairs = eigenpairs(S, r, method=self.method, tol=self.tol or 0.0, random_state=rng)
        sigma = to_host(pairs.values).astype(float)
        # Ascending decay: what is cut are the fast modes, whose extension would multiply noise by 1 / sigma.
        kept = int((sigma > SMALLEST_SIGMA).sum())
        sigma = sigma[:kept]
        u = S.right_vectors(pairs.vectors[:, :kept])
        # Nystroem's extension: K w u / (K w) is sigma u at the samples, so 1 / sigma makes it u itself there and smooth
        # between.
        Psi = (w[:, None] * u / xp.asarray(sigma)).astype(X.dtype)
        zero = xp.zeros(kept, X.dtype)
        raw = RatioFunctions(kernel, X, Psi, w.astype(X.dtype), zero, **options)
        return sigma, raw, u

    def _judged(self, sigma: np.ndarray, r: int, X: Array) -> np.ndarray:
        """Return sigma, below 1 by more than rounding; say where modes are missing or pieces fall apart."""
        if not len(sigma):
            raise ValueError(
                f"no mode is left: every eigenvalue of the Markov matrix of {len(X)} samples is below "
                f"{SMALLEST_SIGMA}. The scale of {self.kernel!r} is far larger than their spread (lower it, or "
                "use 'auto'), or there are too few samples or landmarks"
            )
        if len(sigma) < r:
            warnings.warn(
                f"{len(sigma)} of {r} modes are resolved, the others have sigma <= {SMALLEST_SIGMA} and were "
                "dropped: lower the scale of the kernel (scale='auto' finds one), or n_components",
                ConvergenceWarning,
                stacklevel=3,
            )
        top = 1 - CONNECTED * float(np.finfo(X.dtype).eps)
        torn = int((sigma > top).sum())
        if torn:
            warnings.warn(
                f"the samples fall into {torn + 1} pieces that the kernel does not connect at this scale: "
                f"{torn} eigenvalue(s) are 0 to rounding; raise the scale to connect them",
                ConvergenceWarning,
                stacklevel=3,
            )
        # Not above 1 - rounding: its logarithm is an eigenvalue of the generator, and must not be negative.
        return np.minimum(sigma, top)


def _masses(sample_weight: Any, X: Array) -> Array:
    """Return masses of the samples with mean one, in the dtype of X."""
    xp = namespace(X)
    if sample_weight is None:
        return xp.ones(len(X), X.dtype)
    return like(masses(sample_weight, "sample_weight", len(X)) * len(X), X)
