"""Random-feature and kernel generators: linear in their parameters, so that a regression is exact."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from gpukoop.arrays import Array, like, namespace, points
from gpukoop.draws import check_count, random_generator
from gpukoop.kernels.formula.catalogue import Gaussian
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.maps.base import (
    AbstractLinearMap,
    affine,
    check_map_numbers,
    check_scale,
    zeros,
)
from gpukoop.operator import median_scale


class RandomFeatureMap(AbstractLinearMap):
    r"""Generator :math:`G(y) = y + [y, 1, \varphi(y)] W` with random Fourier features, W = 0 at the start.

    .. math:: \varphi(y) = \sqrt{2 / q}\, \cos(\omega^\top y + \theta), \quad \omega \sim N(0, I / \ell^2)

    Parameters
    ----------
    n_features : int
        q.
    scale : float or "median"
        Length l of the features in the units of the latent points.
    reg : float
        Ridge of the limit ``persistence=inf``, on the Gram matrix per latent point.
    learning_rate : float, optional
        Of the gradient steps of a finite persistence; 1 / (largest eigenvalue) by default.
    random_state : None, int, Generator or RandomState
        Frequencies and phases, drawn on the host.

    Notes
    -----
    Cost of an evaluation: n q d. The features stay the same over all outer iterations.

    Examples
    --------
    >>> import numpy as np
    >>> Y = np.random.default_rng(0).normal(size=(50, 2))
    >>> G = RandomFeatureMap(n_features=20, reg=1e-8, random_state=0).start(Y)
    >>> bool((G(Y) == Y).all())
    True
    >>> G = G.regress(Y, Y + 1.0, persistence=float("inf"))
    >>> bool(abs(G(Y) - Y - 1.0).max() < 1e-3)
    True
    """

    def __init__(
        self,
        n_features: int = 256,
        scale: float | str = "median",
        reg: float = 1e-3,
        learning_rate: float | None = None,
        random_state: Any = None,
    ) -> None:
        self.n_features = n_features
        self.scale = scale
        self.reg = reg
        self.learning_rate = learning_rate
        self.random_state = random_state

    def start(self, Y: Any) -> RandomFeatureMap:
        """Return the identity with frequencies drawn for latent points like Y."""
        native, _ = points(Y, "Y")
        count = check_count(self.n_features, "n_features")
        check_map_numbers(self.reg, self.learning_rate)
        scale = check_scale(self.scale)
        scale = median_scale(native) if scale == "median" else float(scale)
        rng = random_generator(self.random_state)
        other = copy.copy(self)
        other.omega_ = like(rng.standard_normal((native.shape[1], count)) / scale, native)
        other.phase_ = like(rng.uniform(0, 2 * np.pi, count), native)
        other.parameters = zeros(native.shape[1] + 1 + count, native)
        return other

    omega_: Array
    phase_: Array

    def features(self, Y: Array) -> Array:
        """Return [y, 1, phi(y)], (n, d + 1 + q)."""
        xp = namespace(Y)
        count = self.omega_.shape[1]
        with np.errstate(over="ignore", invalid="ignore"):
            phase = Y @ self.omega_ + self.phase_
        if not bool(xp.isfinite(phase).all()):
            raise ValueError(
                "Y is so far out that its features leave the range of float64: pass points in units of the scale"
            )
        return affine(Y, np.sqrt(2.0 / count) * xp.cos(phase))


class KernelMap(AbstractLinearMap):
    r"""Generator :math:`G(y) = y + [y, 1, k(y, C)] W` with landmarks C among the latent points, W = 0 at the start.

    Parameters
    ----------
    kernel : kernel, optional
        ``Gaussian("median")`` by default; the scale is resolved from the latent points.
    n_landmarks : int
        q, drawn from the first latent points seen.
    reg : float
        Ridge of the limit ``persistence=inf``.
    learning_rate : float, optional
        Of the gradient steps; 1 / (largest eigenvalue) by default.
    backend : str, optional
        Who computes the sums.
    random_state : None, int, Generator or RandomState
        Choice of the landmarks.

    Notes
    -----
    An evaluation is one lazy product K(Y, C) @ W with d right-hand sides: O(n d) memory.
    """

    def __init__(
        self,
        kernel: AbstractKernel | None = None,
        n_landmarks: int = 256,
        reg: float = 1e-3,
        learning_rate: float | None = None,
        backend: str | None = None,
        random_state: Any = None,
    ) -> None:
        self.kernel = kernel
        self.n_landmarks = n_landmarks
        self.reg = reg
        self.learning_rate = learning_rate
        self.backend = backend
        self.random_state = random_state

    landmarks_: Array
    kernel_: AbstractKernel

    def start(self, Y: Any) -> KernelMap:
        """Return the identity with landmarks drawn from Y."""
        native, _ = points(Y, "Y")
        count = min(len(native), check_count(self.n_landmarks, "n_landmarks"))
        check_map_numbers(self.reg, self.learning_rate)
        kernel = Gaussian("median") if self.kernel is None else self.kernel
        if not isinstance(kernel, AbstractKernel):
            raise TypeError(
                f"kernel is {kernel!r}, expected a kernel such as gpukoop.Gaussian(scale=1.0)"
            )
        rng = random_generator(self.random_state)
        other = copy.copy(self)
        other.kernel_ = kernel.resolve(lambda rule: median_scale(native))
        other.landmarks_ = native[np.sort(rng.choice(len(native), count, replace=False))]
        other.parameters = zeros(native.shape[1] + 1 + count, native)
        return other

    def features(self, Y: Array) -> Array:
        """Return [y, 1, k(y, C)], (n, d + 1 + q)."""
        return affine(Y, self.kernel_(Y, self.landmarks_).to_dense())

    def __call__(self, Y: Any) -> Array:
        """Return G(Y) without an (n, q) array."""
        native = self._prepared(Y)
        _, home = points(Y, "Y")
        W = self._need_start()
        d = native.shape[1]
        K = self.kernel_(native, self.landmarks_, backend=self.backend)
        return home.restore(native + native @ W[:d] + W[d] + K @ W[d + 1 :])
