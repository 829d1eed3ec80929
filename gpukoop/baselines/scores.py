r"""Particles moved by a kernel density: by its score, :math:`s(z) = \nabla \log \sum_j k(z, x_j)`, or by the spectrum of its generator.

The sums stay lazy.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpukoop.baselines.base import AbstractBaseline, likeliest_scale
from gpukoop.checks import check_length
from gpukoop.draws import RandomState, check_count, check_positive
from gpukoop.flow.kswgd import make_step
from gpukoop.flow.loop import State, run_flow
from gpukoop.kernels.formula.catalogue import Gaussian
from gpukoop.scales import median_scale
from gpukoop.spectrum import GeneratorEDMD

# Of SVGD's step-size rule: share of the past in the mean square of the velocity, and what is added to its root.
PAST, LITTLE = 0.9, 1e-6
# Of LAWGD: draws of the density that its generator is learned from, and how many of them carry the eigenfunctions.
DRAWS, LANDMARKS = 4_000, 500


class _AbstractScored(AbstractBaseline):
    """A baseline with the score of a kernel density."""

    scale: Any
    backend: str | None
    n_iter: int
    step_size: float

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if not (isinstance(self.scale, str) and self.scale == "auto"):
            check_length(self.scale, "scale")
        check_count(self.n_iter, "n_iter", least=0)
        check_positive(self.step_size, "step_size")

    def _learn(self, X: np.ndarray, rng: np.random.Generator) -> None:
        self._samples = X
        auto = isinstance(self.scale, str)
        self.scale_ = likeliest_scale(X, rng) if auto else float(self.scale)

    def _score(self, Z: np.ndarray) -> np.ndarray:
        K = Gaussian(self.scale_)(Z, self._samples, backend=self.backend)
        return K.logsumexp_and_gradient(np.zeros(len(self._samples)))[1]

    def _normal_start(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Return n draws of the normal law with the mean and covariance of the samples."""
        X = self._samples
        root = np.linalg.qr((X - X.mean(axis=0)) / math.sqrt(max(1, len(X) - 1)), mode="r")
        return X.mean(axis=0) + rng.standard_normal((n, len(root))) @ root


class Langevin(_AbstractScored):
    r"""Unadjusted Langevin steps in the score of a kernel density, from resampled data.

    .. math:: z \leftarrow z + h\, s(z) + \sqrt{2 h}\, \xi, \qquad h = \text{step\_size} \cdot \text{scale}^2

    Parameters
    ----------
    scale : "auto" or float
        Of the kernel density, as in :class:`KernelDensity`.
    n_iter : int, default=100
    step_size : float, default=0.1
        In units of scale^2, in which the score's steepest slope is 1: stable below 2.
    backend : str, optional
        Who computes the sums.
    random_state : int, Generator, RandomState or None

    Notes
    -----
    Its stationary law is the kernel density, wider by about half of step_size in scale^2: it is no better than
    :class:`KernelDensity`, at n_iter times the cost. Cost of a step: one pass over n m pairs.
    """

    def __init__(
        self,
        scale: Any = "auto",
        n_iter: int = 100,
        step_size: float = 0.1,
        backend: str | None = None,
        random_state: RandomState = None,
    ) -> None:
        self.scale = scale
        self.n_iter = n_iter
        self.step_size = step_size
        self.backend = backend
        self.random_state = random_state

    def _draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        Z = self._samples[rng.integers(len(self._samples), size=n)]
        h = float(self.step_size) * self.scale_**2
        for _ in range(self.n_iter):
            Z = Z + h * self._score(Z) + math.sqrt(2 * h) * rng.standard_normal(Z.shape)
        return Z


class SVGD(_AbstractScored):
    r"""Stein variational gradient descent in the score of a kernel density, from a normal law.

    .. math:: v_i = \frac1n \sum_j k(z_i, z_j)\, s(z_j) + \nabla_{z_j} k(z_i, z_j)

    Parameters
    ----------
    scale, backend, random_state
        As in :class:`Langevin`.
    n_iter : int, default=200
    step_size : float, default=0.05
        Of the published rule: every coordinate's velocity is divided by the root of its mean square so far.

    Notes
    -----
    k is a Gaussian of the median rule, taken anew at every step. Cost of a step: one pass over n m pairs and two over n^2.

    References
    ----------
    .. [1] Q. Liu, D. Wang, Stein variational gradient descent, NeurIPS 2016, algorithm 1.
    """

    def __init__(
        self,
        scale: Any = "auto",
        n_iter: int = 200,
        step_size: float = 0.05,
        backend: str | None = None,
        random_state: RandomState = None,
    ) -> None:
        self.scale = scale
        self.n_iter = n_iter
        self.step_size = step_size
        self.backend = backend
        self.random_state = random_state

    def _draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        Z = self._normal_start(n, rng)
        past = None
        for _ in range(self.n_iter):
            v = self._velocity(Z)
            past = v**2 if past is None else PAST * past + (1 - PAST) * v**2
            Z = Z + float(self.step_size) * v / (LITTLE + np.sqrt(past))
        return Z

    def _velocity(self, Z: np.ndarray) -> np.ndarray:
        scale = median_scale(Z) if len(Z) > 1 else 1.0
        K = Gaussian(scale)(Z, Z, backend=self.backend)
        # the kernel is even: its gradient in the source is minus that in the target
        return (K @ self._score(Z) - K.gradient(np.ones(len(Z)))) / len(Z)


class LAWGD(_AbstractScored):
    r"""Laplacian-adjusted Wasserstein gradient descent towards a kernel density, from a normal law.

    .. math:: v(z) = -\sum_k \frac{1}{\lambda_k} \Bigl(\frac1n \sum_j \varphi_k(z_j)\Bigr) \nabla \varphi_k(z)

    with the eigenfunctions of the Langevin generator of the density.

    Parameters
    ----------
    scale, backend, random_state
        As in :class:`Langevin`.
    n_components : int, default=32
        Eigenfunctions.
    n_iter : int, default=160
    step_size : float, default=0.05
        Time of a step: moments fall as exp(-time).

    Attributes
    ----------
    spectrum_ : gpukoop.GeneratorEDMD
        In units of the columns' deviations.

    Notes
    -----
    The published method finds the eigenfunctions by finite differences, on a grid that more than two features do not allow; here
    they are those of :class:`gpukoop.GeneratorEDMD` over 4,000 draws of the density. :class:`gpukoop.KSWGD` learns them from the samples
    and starts near these. Cost of a step: three passes over 500 n pairs.

    References
    ----------
    .. [1] S. Chewi, T. Le Gouic, C. Lu, T. Maunu, P. Rigollet, arXiv 2006.02509, section 4.
    """

    def __init__(
        self,
        scale: Any = "auto",
        n_components: int = 32,
        n_iter: int = 160,
        step_size: float = 0.05,
        backend: str | None = None,
        random_state: RandomState = None,
    ) -> None:
        self.scale = scale
        self.n_components = n_components
        self.n_iter = n_iter
        self.step_size = step_size
        self.backend = backend
        self.random_state = random_state

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_count(self.n_components, "n_components")

    def _learn(self, X: np.ndarray, rng: np.random.Generator) -> None:
        super()._learn(X, rng)
        Y = X[rng.integers(len(X), size=DRAWS)]
        Y = Y + self.scale_ * rng.standard_normal(Y.shape)
        self.spectrum_ = GeneratorEDMD(
            n_components=int(self.n_components),
            n_landmarks=LANDMARKS,
            backend=self.backend,
            random_state=0,
        ).fit(Y, diffusion=math.sqrt(2))

    def _draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        step = make_step(self.spectrum_, step_size=float(self.step_size), backend=self.backend)
        state = State(self._normal_start(n, rng))
        ended = run_flow(step, state, int(self.n_iter), seed=0, step_size=float(self.step_size))
        return np.asarray(ended.particles)
