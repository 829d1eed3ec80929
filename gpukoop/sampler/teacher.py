r"""Velocity fields that are known: affine, Gaussian, mixture, empirical, or any function of (x, t).

The path is x_t = (1-t) x0 + t x1 from x0 ~ N(0, I) to the data x1, and the field is v(x, t) = E[x1 - x0 | x_t = x]. A
teacher is any object with ``velocity(x, t)``, x (n, d), t a number or (n,); the classes here are also the ground
truth of the tests. D = x + (1-t) v is the denoiser E[x1 | x_t].
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, final

import numpy as np

from gpukoop.arrays import Array, is_cupy, namespace, points, require_finite
from gpukoop.checks import check_length, covariance_roots, masses, real_array
from gpukoop.kernels.formula.catalogue import Gaussian
from gpukoop.operator import KernelOperator
from gpukoop.sampler.lifting import column

# Below this time the field of an empirical law is that of its mean to rounding, and x / t has lost half its digits.
EARLY = 1e-8


class AbstractTeacher(ABC):
    """A velocity field; to add one, implement ``velocity``."""

    @abstractmethod
    def velocity(self, x: Array, t: Any) -> Array:
        """Return v(x, t), (n, d), for x (n, d) and t a number or (n,)."""


@final
class CallableTeacher(AbstractTeacher):
    """A teacher made of a function ``v(x, t)`` or of an object with ``velocity``; its answers are checked."""

    def __init__(self, source: Any) -> None:
        function = getattr(source, "velocity", None)
        self._function: Callable[[Array, Any], Array] = function if callable(function) else source
        if not callable(self._function):
            raise TypeError(
                f"teacher is {source!r}, expected an object with velocity(x, t), a function of (x, t), or None to "
                "learn from the data alone"
            )

    def velocity(self, x: Array, t: Any) -> Array:
        """Return the source's answer, an array beside x."""
        xp = namespace(x)
        answer = self._function(x, t)
        if not is_cupy(answer):
            answer = real_array(answer, "the teacher's velocity")
        v = xp.asarray(answer, dtype=x.dtype)
        if v.shape != x.shape:
            raise ValueError(
                f"the teacher's velocity has shape {v.shape} for points of shape {x.shape}: one row per point"
            )
        require_finite(v, "the teacher's velocity")
        return v


@final
class AffineTeacher(AbstractTeacher):
    r"""An autonomous affine field, whose Koopman spectrum is intrinsic.

    .. math:: v(x) = B x + c, \qquad \Phi_t: \begin{pmatrix} x \\ 1 \end{pmatrix} \mapsto
              \exp t \begin{pmatrix} B & c \\ 0 & 0 \end{pmatrix} \begin{pmatrix} x \\ 1 \end{pmatrix}

    On monomials of degree <= p the generator's eigenvalues are the sums n . beta, |n| <= p, of eigenvalues beta of B.

    Parameters
    ----------
    B : array of shape (d, d)
    c : array of shape (d,), optional
        Zero by default.
    """

    def __init__(self, B: Any, c: Any = None) -> None:
        self.B = np.atleast_2d(real_array(B, "B"))
        d = len(self.B)
        if self.B.shape != (d, d):
            raise ValueError(f"B has shape {self.B.shape}, expected a square matrix")
        self.c = np.zeros(d) if c is None else real_array(c, "c")
        if self.c.shape != (d,):
            raise ValueError(f"c has shape {self.c.shape}, expected ({d},) as B has {d} rows")

    def velocity(self, x: Array, t: Any) -> Array:
        """Return B x + c for every row."""
        xp = namespace(x)
        return x @ xp.asarray(self.B.T) + xp.asarray(self.c)

    def flow(self, x: Array, t: float = 1.0) -> Array:
        """Return where the points are at time t, to rounding: the exponential of the augmented matrix."""
        from scipy.linalg import expm

        d = len(self.c)
        augmented = np.zeros((d + 1, d + 1))
        augmented[:d, :d], augmented[:d, d] = self.B, self.c
        E = expm(t * augmented)
        xp = namespace(x)
        return x @ xp.asarray(E[:d, :d].T) + xp.asarray(E[:d, d])


@final
class GaussianTeacher(AbstractTeacher):
    r"""The field towards N(m, S), and its flow in closed form.

    .. math:: v_i = m_i + a_i (x_i - t m_i), \quad a_i = \frac{t s_i - (1-t)}{\sigma_i^2}, \quad
              \sigma_i^2 = (1-t)^2 + t^2 s_i, \qquad x_i(t) = t m_i + \sigma_i(t) x_i(0)

    in the eigenbasis of S; hence x(1) = m + S^(1/2) x(0).

    Parameters
    ----------
    mean : array of shape (d,), or a number
    covariance : array of shape (d, d), or a number
    """

    def __init__(self, mean: Any, covariance: Any) -> None:
        self.mean = np.atleast_1d(real_array(mean, "mean"))
        self.covariance = np.atleast_2d(real_array(covariance, "covariance"))
        d = len(self.mean)
        if self.mean.shape != (d,) or d == 0 or self.covariance.shape != (d, d):
            raise ValueError(
                f"mean {self.mean.shape} and covariance {self.covariance.shape} do not fit: expected (d,) and (d, d)"
            )
        self._s, self._basis = covariance_roots(self.covariance, "covariance")

    def velocity(self, x: Array, t: Any) -> Array:
        """Return v(x, t)."""
        xp = namespace(x)
        Q, m, s = (xp.asarray(a) for a in (self._basis, self.mean @ self._basis, self._s))
        t = column(t, x)
        a = (t * s - (1 - t)) / ((1 - t) ** 2 + t**2 * s)
        return (m + a * (x @ Q - t * m)) @ Q.T

    def flow(self, x: Array, t: float = 1.0) -> Array:
        """Return where points of time 0 are at time t."""
        xp = namespace(x)
        Q, m, s = (xp.asarray(a) for a in (self._basis, self.mean @ self._basis, self._s))
        return (t * m + xp.sqrt((1 - t) ** 2 + t**2 * s) * (x @ Q)) @ Q.T

    def sample(self, n_samples: int, rng: np.random.Generator) -> np.ndarray:
        """Draw from N(m, S)."""
        return np.asarray(self.flow(rng.standard_normal((n_samples, len(self.mean)))))


@final
class MixtureTeacher(AbstractTeacher):
    r"""The field towards a Gaussian mixture.

    .. math:: v = \sum_k \rho_k(x, t) \left[ \mu_k + (t S_k - (1-t) I)\, \Sigma_k^{-1} (x - t \mu_k) \right],
              \qquad \Sigma_k = (1-t)^2 I + t^2 S_k

    with responsibilities rho_k proportional to w_k N(x; t mu_k, Sigma_k), by log-sum-exp.

    Parameters
    ----------
    weights : array of shape (K,)
        Positive; divided by their sum.
    means : array of shape (K, d)
    covariances : array of shape (K, d, d)
    """

    def __init__(self, weights: Any, means: Any, covariances: Any) -> None:
        self.means = np.atleast_2d(real_array(means, "means"))
        self.covariances = real_array(covariances, "covariances")
        self.weights = real_array(weights, "weights")
        K, d = self.means.shape if self.means.ndim == 2 else (0, 0)
        if self.weights.shape != (K,) or self.covariances.shape != (K, d, d) or K * d == 0:
            raise ValueError(
                f"weights {self.weights.shape}, means {self.means.shape} and covariances "
                f"{self.covariances.shape} do not fit: expected (K,), (K, d), (K, d, d)"
            )
        # Sigma_k is diagonal in the eigenbasis of S_k at every t: no solve per point.
        self._s, self._basis = covariance_roots(self.covariances, "covariances")
        self.weights = masses(self.weights, "weights", K)
        if not (self.weights > 0).all():
            raise ValueError("weights must be positive: leave out components of weight 0")

    def velocity(self, x: Array, t: Any) -> Array:
        """Return v(x, t)."""
        xp = namespace(x)
        t = column(t, x)
        logs, fields = [], []
        for w, mu, s, Q in zip(self.weights, self.means, self._s, self._basis, strict=True):
            mu, s, Q = xp.asarray(mu), xp.asarray(s), xp.asarray(Q)
            offset = (x - t * mu) @ Q
            variance = (1 - t) ** 2 + t**2 * s
            quadratic = (offset**2 / variance + xp.log(variance)).sum(axis=1)
            logs.append(math.log(w) - 0.5 * quadratic)
            fields.append(mu + ((t * s - (1 - t)) / variance * offset) @ Q.T)
        log = xp.stack(logs, axis=1)
        share = xp.exp(log - log.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        return sum(share[:, k, None] * field for k, field in enumerate(fields))

    def sample(self, n_samples: int, rng: np.random.Generator) -> np.ndarray:
        """Draw from the mixture."""
        which = rng.choice(len(self.weights), n_samples, p=self.weights)
        root = self._basis * np.sqrt(self._s)[:, None, :]  # (K, d, d)
        noise = rng.standard_normal((n_samples, self.means.shape[1]))
        return self.means[which] + np.einsum("nij,nj->ni", root[which], noise)


@final
class EmpiricalTeacher(AbstractTeacher):
    r"""The field towards data points, each blurred by ``smooth``; by streamed log-sum-exp, never an n x m matrix.

    .. math:: v = \bar y + \frac{t h^2 - (1-t)}{\sigma^2} (x - t \bar y), \quad \sigma^2 = (1-t)^2 + t^2 h^2,
              \quad \bar y = \sum_j \mathrm{softmax}_j\!\left(-\frac{|x - t y_j|^2}{2 \sigma^2}\right) y_j

    With z = x / t and a Gaussian kernel of scale sigma / t, ybar = z + scale^2 grad logsumexp: one pass over the pairs.

    Parameters
    ----------
    Y : array of shape (m, d)
    smooth : float
        h, standard deviation of the blur. 0 memorises: the flow ends on the data points, and the field is
        singular at t = 1, so it is taken at no later time than 1 - ``last``.
    last : float
        Time that is left when the field stops changing.
    backend : str, optional
        Who computes.

    Notes
    -----
    Cost: n m pairs a call. For times that differ from row to row the logits become those of a Gaussian of scale 1 in
    d + 1 coordinates, a_i = (t x, -t^2) / sigma^2 against b_j = (y_j, |y_j|^2 / 2) with log-weights |b_j|^2 / 2:
    still one pass, with an absolute error of the logits of about eps |a|^2.
    """

    def __init__(
        self, Y: Any, *, smooth: float = 0.0, last: float = 1e-3, backend: str | None = None
    ) -> None:
        self.Y = points(Y, "Y")[0].astype(float)
        self.smooth = check_length(smooth, "smooth", zero=True)
        self.last, self.backend = check_length(last, "last"), backend

    def denoised(self, x: Array, t: Any) -> Array:
        """Return the mean of the data given x at time t, (n, d)."""
        xp = namespace(x)
        if np.ndim(t) == 0:
            t = min(float(t), 1.0 - self.last)
            if t < EARLY:
                return xp.broadcast_to(self.Y.mean(axis=0), x.shape)
            scale = math.sqrt((1 - t) ** 2 + (t * self.smooth) ** 2) / t
            return self._softmax_mean(x / t, self.Y, scale, xp.zeros(len(self.Y)))
        t = xp.minimum(column(t, x), 1.0 - self.last)
        variance = (1 - t) ** 2 + (t * self.smooth) ** 2
        a = xp.concatenate([t * x, -(t**2)], axis=1) / variance
        b = xp.concatenate([self.Y, 0.5 * (self.Y**2).sum(axis=1, keepdims=True)], axis=1)
        centre = b.mean(axis=0)  # softmax sees differences of b only
        b = b - centre
        mean = self._softmax_mean(a, b, 1.0, 0.5 * (b**2).sum(axis=1))
        return (mean + centre)[:, :-1]

    def _softmax_mean(self, z: Array, Y: Array, scale: float, logs: Array) -> Array:
        K = KernelOperator(Gaussian(scale), z, Y, backend=self.backend)
        return z + scale**2 * K.logsumexp_and_gradient(logs)[1]

    def velocity(self, x: Array, t: Any) -> Array:
        """Return v(x, t)."""
        xp = namespace(x)
        mean = self.denoised(x, t)
        t = xp.minimum(column(t, x), 1.0 - self.last)
        variance = (1 - t) ** 2 + (t * self.smooth) ** 2
        return mean + (t * self.smooth**2 - (1 - t)) / variance * (x - t * mean)


def as_teacher(source: Any) -> AbstractTeacher | None:
    """Return a teacher from an object with ``velocity``, a function of (x, t), or None.

    Parameters
    ----------
    source : object, callable or None
        What was given as ``teacher=``.

    Returns
    -------
    AbstractTeacher or None
    """
    if source is None or isinstance(source, AbstractTeacher):
        return source
    return CallableTeacher(source)
