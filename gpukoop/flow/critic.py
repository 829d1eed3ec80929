r"""f-divergences from samples: a critic in a finite dictionary, found by Newton, whose gradient moves the particles.

========== ==================================================
y, x       particles (n, d), samples (m, d) with weights b
h          critic sum_c beta_c psi_c, q functions
rho        regularization, (rho / 2) sum_c penalty_c beta_c^2
========== ==================================================

=========== ==========================================================================
divergence  maximised over h
=========== ==========================================================================
kl          mean h(y) - log sum_j b_j exp h(x_j), Donsker-Varadhan
kl-dual     mean h(y) - sum_j b_j (exp h(x_j) - 1)
chi2        mean h(y) - sum_j b_j (h(x_j) + h(x_j)^2 / 4): one linear solve
js          2 log 2 - mean softplus(-h(y)) - sum_j b_j softplus(h(x_j)), logistic regression
=========== ==========================================================================

js is KL(mu | M) + KL(nu | M), M the mixture. All are concave in beta; the maximum is the divergence, its gradient in the
particles follows by the envelope theorem. For chi2 with a kernel dictionary it is DrMMD / (1 + l) with l = 2 rho.

References
----------
.. [1] C. Caucheteux, C. Bonet, A. Korba, Generative Wasserstein Flows, arXiv 2605.31369.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpukoop.arrays import Array, like, namespace
from gpukoop.blas import one_thread
from gpukoop.flow.descent import Motion, uniform
from gpukoop.kernels.formula.profile import AbstractKernel

DIVERGENCES = ("kl", "kl-dual", "chi2", "js")
NEWTON_ITER = 100
HALVINGS = 40
# Eigenvalues of K_CC below this, relative to the largest, are rounding.
RANK_TOL = 1e-12
# Mean and covariance should be seen whatever the penalty of the kernel part.
POLYNOMIAL_PENALTY = 0.1
# Beyond so many features the polynomial holds squares only, no products.
MANY_FEATURES = 12


class AbstractDictionary(ABC):
    """Finitely many functions psi_c with gradients, and the penalty of each coefficient."""

    penalty: Array

    @abstractmethod
    def features(self, Y: Array) -> Array:
        """Return psi_c(y_i), (n, q)."""

    @abstractmethod
    def gradient(self, Y: Array, beta: Array) -> Array:
        """Return the gradient of sum_c beta_c psi_c at Y, (n, d)."""


class KernelDictionary(AbstractDictionary):
    """Functions of the kernel's space spanned by k(c, .), orthonormal there, so that the penalty is its norm."""

    def __init__(self, kernel: AbstractKernel, landmarks: Array, **options: Any) -> None:
        xp = namespace(landmarks)
        self.kernel, self.landmarks, self.options = kernel, landmarks, options
        values, vectors = xp.linalg.eigh(kernel(landmarks).to_dense().astype(float))
        keep = values > RANK_TOL * float(values[-1])
        self.root = vectors[:, keep] / xp.sqrt(values[keep])  # (q landmarks, rank)
        self.penalty = xp.ones(self.root.shape[1])

    def features(self, Y: Array) -> Array:
        """Return k(y, C) K_CC^(-1/2)."""
        return self.kernel(Y, self.landmarks).to_dense().astype(float) @ self.root

    def gradient(self, Y: Array, beta: Array) -> Array:
        """Return the gradient from one pass over n q pairs."""
        weights = like(self.root @ beta, Y)
        return self.kernel(Y, self.landmarks, **self.options).gradient(weights)


class FourierDictionary(AbstractDictionary):
    """Random features sqrt(2 / q) cos(omega y + phase) of the Gaussian kernel."""

    def __init__(self, X: Array, scale: float, n_features: int, rng: np.random.Generator) -> None:
        d = X.shape[1]
        self.omega = like(rng.standard_normal((d, n_features)) / scale, X)
        self.phase = like(rng.uniform(0, 2 * np.pi, n_features), X)
        self.height = float(np.sqrt(2 / n_features))
        self.penalty = namespace(X).ones(n_features)

    def features(self, Y: Array) -> Array:
        """Return the cosines, (n, q)."""
        xp = namespace(Y)
        return self.height * xp.cos(Y @ self.omega + self.phase).astype(float)

    def gradient(self, Y: Array, beta: Array) -> Array:
        """Return the gradient, (n, d)."""
        xp = namespace(Y)
        slope = -self.height * xp.sin(Y @ self.omega + self.phase) * like(beta, Y)
        return slope @ self.omega.T


class PolynomialDictionary(AbstractDictionary):
    """1, coordinates and their products, standardised by the samples: log ratios of normal laws are exact."""

    def __init__(self, X: Array, penalty: float = POLYNOMIAL_PENALTY) -> None:
        xp = namespace(X)
        d = X.shape[1]
        self.centre = X.mean(axis=0)
        spread = X.std(axis=0)
        self.spread = xp.where(spread > 0, spread, 1.0)
        pairs = [(c, e) for c in range(d) for e in range(c, d) if d <= MANY_FEATURES or c == e]
        self.left = [c for c, _ in pairs]
        self.right = [e for _, e in pairs]
        self.penalty = penalty * xp.ones(1 + d + len(pairs))

    def features(self, Y: Array) -> Array:
        """Return the monomials, (n, 1 + d + d (d + 1) / 2)."""
        xp = namespace(Y)
        y = ((Y - self.centre) / self.spread).astype(float)
        return xp.concatenate([xp.ones((len(y), 1)), y, y[:, self.left] * y[:, self.right]], axis=1)

    def gradient(self, Y: Array, beta: Array) -> Array:
        """Return the gradient, (n, d)."""
        xp = namespace(Y)
        d = Y.shape[1]
        y = ((Y - self.centre) / self.spread).astype(float)
        form = xp.zeros((d, d))
        for k, (c, e) in enumerate(zip(self.left, self.right, strict=True)):
            form[c, e] += beta[1 + d + k]
            form[e, c] += beta[1 + d + k]
        return like((beta[1 : 1 + d] + y @ form) / self.spread, Y)


@dataclass(frozen=True)
class JoinedDictionary(AbstractDictionary):
    """The functions of several dictionaries."""

    parts: tuple[AbstractDictionary, ...]

    @property
    def penalty(self) -> Array:
        """Penalties of all parts."""
        first = self.parts[0].penalty
        return namespace(first).concatenate([p.penalty for p in self.parts])

    def features(self, Y: Array) -> Array:
        """Return the functions of all parts side by side."""
        return namespace(Y).concatenate([p.features(Y) for p in self.parts], axis=1)

    def gradient(self, Y: Array, beta: Array) -> Array:
        """Return the sum of the gradients."""
        total, start = Y * 0.0, 0
        for p in self.parts:
            stop = start + len(p.penalty)
            total = total + p.gradient(Y, beta[start:stop])
            start = stop
        return total


class CriticField:
    """Field of an f-divergence between particles and samples.

    Parameters
    ----------
    X : array of shape (m, d)
    dictionary : AbstractDictionary
    divergence : {"kl", "kl-dual", "chi2", "js"}
    regularization : float
        rho > 0: without it the divergence of two point clouds is infinite.
    weights : array of shape (m,), optional
        Of the samples, sum 1.

    Notes
    -----
    Cost of an evaluation: (n + m) q^2 operations a Newton iteration, 3 to 10 of them; O((n + m) q) memory.
    """

    def __init__(
        self,
        X: Array,
        dictionary: AbstractDictionary,
        divergence: str,
        *,
        regularization: float,
        weights: Array | None = None,
    ) -> None:
        self.dictionary, self.divergence = dictionary, divergence
        self.b = (uniform(X) if weights is None else weights).astype(float)
        self.at_samples = dictionary.features(X)
        self.rho = regularization * dictionary.penalty

    def critic(self, Y: Array, start: Array | None = None) -> tuple[Array, float, Array]:
        """Return beta, the divergence, and the derivative of the divergence in each h(y_i) times n."""
        xp = namespace(Y)
        at_particles = self.dictionary.features(Y)
        beta = xp.zeros(at_particles.shape[1]) if start is None else start
        value, slope, curvature, pull = self._evaluate(at_particles, beta)
        for _ in range(NEWTON_ITER):
            system = curvature + xp.diag(self.rho + 1e-14 * float(xp.trace(curvature)))
            direction = xp.linalg.solve(system, slope)
            gain = float(slope @ direction)
            if not gain > 1e-15 * max(1.0, abs(value)):
                break
            step, improved = 1.0, False
            for _ in range(HALVINGS):
                trial = self._evaluate(at_particles, beta + step * direction)
                if trial[0] >= value + 1e-4 * step * gain:
                    improved = True
                    break
                step /= 2
            if not improved:
                break
            beta = beta + step * direction
            value, slope, curvature, pull = trial
        return beta, value, pull

    def _evaluate(self, P: Array, beta: Array) -> tuple[float, Array, Array, Array]:
        """Return value, gradient and minus the Hessian in beta, and n times the derivative in h(y)."""
        xp = namespace(P)
        S, b, n = self.at_samples, self.b, len(P)
        hy, hx = P @ beta, S @ beta
        pull = xp.ones(n)
        mean_y = P.mean(axis=0)
        value = float(hy.mean())
        outer = None
        if self.divergence == "kl":
            top = float(hx.max())
            p = b * xp.exp(hx - top)
            total = float(p.sum())
            p = p / total
            value -= top + float(np.log(total))
            slope, bend = p, p
            outer = S.T @ p
        elif self.divergence == "kl-dual":
            if float(hx.max()) > 500:
                return -np.inf, beta, xp.eye(len(beta)), pull
            slope = bend = b * xp.exp(hx)
            value -= float((b * xp.expm1(hx)).sum())
        elif self.divergence == "chi2":
            slope, bend = b * (1 + hx / 2), b / 2
            value -= float((b * (hx + hx**2 / 4)).sum())
        else:
            pull, own = _sigmoid(-hy), _sigmoid(hx)
            mean_y = P.T @ pull / n
            slope, bend = b * own, b * own * _sigmoid(-hx)
            softplus = float(xp.logaddexp(0.0, -hy).mean()) + float(
                (b * xp.logaddexp(0.0, hx)).sum()
            )
            value = 2 * float(np.log(2.0)) - softplus
        curvature = S.T @ (bend[:, None] * S)
        if outer is not None:
            curvature = curvature - xp.outer(outer, outer)
        if self.divergence == "js":
            curvature = curvature + P.T @ ((pull * (1 - pull))[:, None] * P) / n
        value -= 0.5 * float((self.rho * beta**2).sum())
        return value, mean_y - S.T @ slope - self.rho * beta, curvature, pull

    def __call__(
        self, Z: Array, memory: dict[str, Array], rng: Any = None, iteration: int = 0
    ) -> Motion:
        """Return minus the gradient of the divergence at the particles, and the divergence."""
        with one_thread(self.at_samples.size):
            beta, value, pull = self.critic(Z, memory.get("critic"))
        velocity = -self.dictionary.gradient(Z, beta) * like(pull, Z)[:, None]
        return Motion(velocity, value, memory={"critic": beta})


def _sigmoid(s: Array) -> Array:
    xp = namespace(s)
    return xp.exp(-xp.logaddexp(0.0, -s))
