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

from gpukoop.arrays import Array, like, namespace, to_host
from gpukoop.blas import one_thread
from gpukoop.centring import centred
from gpukoop.flow.descent import Motion, uniform
from gpukoop.flow.memory import Kept
from gpukoop.kernels.formula.profile import AbstractKernel

DIVERGENCES = ("kl", "kl-dual", "chi2", "js")
NEWTON_ITER = 100
# Lengths of a Newton step that are tried at once; the first is where it starts from.
LENGTHS = np.array([0.0, *0.5 ** np.arange(16)])
# After a full Newton step that promised less than this, relative to the value, the next one would promise its square.
SQUARED = 1e-10
# exp of more than this is no density ratio of the f-dual.
LARGEST_LOG = 500.0
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
        # In float64: the functions are nearly dependent, and what float32 rounds they amplify.
        self.kernel, self.landmarks, self.options = kernel, landmarks.astype(float), options
        # Landmarks are few, so their matrix is a small one; sums over all particles stay lazy.
        values, vectors = xp.linalg.eigh(kernel(self.landmarks).to_dense())
        keep = values > RANK_TOL * float(values[-1])
        self.root = vectors[:, keep] / xp.sqrt(values[keep])  # (q landmarks, rank)
        self.penalty = xp.ones(self.root.shape[1])

    def features(self, Y: Array) -> Array:
        """Return k(y, C) K_CC^(-1/2)."""
        return self.kernel(Y.astype(float), self.landmarks).to_dense() @ self.root

    def gradient(self, Y: Array, beta: Array) -> Array:
        """Return the gradient from one pass over n q pairs."""
        wide = Y.astype(float)
        # Coefficients are taken back to the landmarks first: one column instead of the gradient of every function.
        slope = self.kernel(wide, self.landmarks, **self.options).gradient(self.root @ beta)
        return slope.astype(Y.dtype, copy=False)


class FourierDictionary(AbstractDictionary):
    """Random features sqrt(2 / q) cos(omega y + phase) of the Gaussian kernel."""

    def __init__(self, X: Array, scale: float, n_features: int, rng: np.random.Generator) -> None:
        d, wide = X.shape[1], X[:0].astype(float)
        self.omega = like(rng.standard_normal((d, n_features)) / scale, wide)
        self.phase = like(rng.uniform(0, 2 * np.pi, n_features), wide)
        self.height = float(np.sqrt(2 / n_features))
        self.penalty = namespace(X).ones(n_features)

    def features(self, Y: Array) -> Array:
        """Return the cosines, (n, q)."""
        xp = namespace(Y)
        return self.height * xp.cos(Y.astype(float) @ self.omega + self.phase)

    def gradient(self, Y: Array, beta: Array) -> Array:
        """Return the gradient, (n, d)."""
        xp = namespace(Y)
        slope = -self.height * xp.sin(Y.astype(float) @ self.omega + self.phase) * beta
        return (slope @ self.omega.T).astype(Y.dtype, copy=False)


class PolynomialDictionary(AbstractDictionary):
    """1, coordinates and their products, standardised by the samples: log ratios of normal laws are exact."""

    def __init__(self, X: Array, penalty: float = POLYNOMIAL_PENALTY) -> None:
        xp = namespace(X)
        X = X.astype(float)
        d = X.shape[1]
        self.centre, x = centred(X)
        spread = x.std(axis=0)
        # A constant coordinate is worth nothing as a feature, and must not become NaN.
        self.spread = xp.where(spread > 0, spread, 1.0)
        pairs = [(c, e) for c in range(d) for e in range(c, d) if d <= MANY_FEATURES or c == e]
        self.left = [c for c, _ in pairs]
        self.right = [e for _, e in pairs]
        self.penalty = penalty * xp.ones(1 + d + len(pairs))

    def features(self, Y: Array) -> Array:
        """Return the monomials, (n, 1 + d + d (d + 1) / 2)."""
        xp = namespace(Y)
        y = (Y - self.centre) / self.spread
        return xp.concatenate([xp.ones((len(y), 1)), y, y[:, self.left] * y[:, self.right]], axis=1)

    def gradient(self, Y: Array, beta: Array) -> Array:
        """Return the gradient, (n, d)."""
        xp = namespace(Y)
        d = Y.shape[1]
        y = (Y - self.centre) / self.spread
        form = xp.zeros((d, d))
        for k, (c, e) in enumerate(zip(self.left, self.right, strict=True)):
            # Both entries: the derivative of y_c y_e falls on c and on e, twice on a square.
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
        self.lengths = namespace(X).asarray(LENGTHS)
        # For chi2 the curvature is that of the samples alone: it is the same at every critic.
        self.fixed = self._curvature(self.b / 2) if divergence == "chi2" else None

    def critic(self, Y: Array, start: Array | None = None) -> tuple[Array, float, Array]:
        """Return beta, the divergence, and the derivative of the divergence in each h(y_i) times n.

        Newton's method; all lengths of a step are tried in one go, and the host reads one vector an iteration.
        """
        xp = namespace(Y)
        P, S = self.dictionary.features(Y), self.at_samples
        # The critic of the last step is a step away from this one: Newton's method then takes one or two iterations.
        beta = xp.zeros(P.shape[1]) if start is None else start
        hy, hx = P @ beta, S @ beta
        value = 0.0
        for _ in range(NEWTON_ITER):
            slope, system = self._newton(P, hy, hx, beta)
            direction = xp.linalg.solve(system, slope)
            dy, dx = P @ direction, S @ direction
            levels = self._levels(
                hy[:, None] + self.lengths * dy[:, None],
                hx[:, None] + self.lengths * dx[:, None],
                beta[:, None] + self.lengths * direction[:, None],
            )
            # One look at the device an iteration: gain, value and sixteen trial values come together.
            numbers = to_host(xp.concatenate([(slope @ direction).reshape(1), levels]))
            gain, value, tried = float(numbers[0]), float(numbers[1]), numbers[2:]
            # A warm start that overflows at the moved particles is dropped; from zero every divergence is finite.
            if start is not None and not np.isfinite(value):
                return self.critic(Y)
            # Armijo's rule, for all lengths at once; the longest that passes is taken, and NaN compares as false.
            enough = tried >= value + 1e-4 * LENGTHS[1:] * gain
            if not gain > 1e-15 * max(1.0, abs(value)) or not enough.any():
                break
            k = int(np.argmax(enough))
            length, value = float(LENGTHS[1 + k]), float(tried[k])
            beta, hy, hx = beta + length * direction, hy + length * dy, hx + length * dx
            if k == 0 and (self.fixed is not None or gain <= SQUARED * max(1.0, abs(value))):
                break
        return beta, value, _sigmoid(-hy) if self.divergence == "js" else xp.ones(len(P))

    def _levels(self, hy: Array, hx: Array, beta: Array) -> Array:
        """Return the objectives of several critics, (t,), from their values (n, t), (m, t) and coefficients (q, t)."""
        xp, b = namespace(hy), self.b
        penalty = 0.5 * (self.rho @ beta**2)
        if self.divergence == "js":
            # log(1 + e^-h) without forming e^-h, which overflows where the classifier is sure.
            softplus = xp.logaddexp(0.0, -hy).mean(axis=0) + b @ xp.logaddexp(0.0, hx)
            return 2 * float(np.log(2.0)) - softplus - penalty
        value = hy.mean(axis=0) - penalty
        if self.divergence == "chi2":
            return value - b @ (hx + hx**2 / 4)
        top = hx.max(axis=0)
        if self.divergence == "kl":
            # The Donsker-Varadhan form: its value does not change with a constant in h, so the maximum may be taken off.
            return value - top - xp.log(b @ xp.exp(hx - top))
        fits = top <= LARGEST_LOG
        # A length that overflows is worth -inf and never chosen, instead of a NaN that would end the search.
        return xp.where(fits, value - b @ xp.expm1(xp.where(fits, hx, 0.0)), -xp.inf)

    def _newton(self, P: Array, hy: Array, hx: Array, beta: Array) -> tuple[Array, Array]:
        """Return gradient and minus the Hessian of the objective in beta."""
        xp, b, n = namespace(P), self.b, len(P)
        mean_y = None
        if self.divergence == "kl":
            p = b * xp.exp(hx - hx.max())
            slope = bend = p / p.sum()
        elif self.divergence == "kl-dual":
            slope = bend = b * xp.exp(hx)
        elif self.divergence == "chi2":
            slope = bend = b * (1 + hx / 2)
        else:
            pull, own = _sigmoid(-hy), _sigmoid(hx)
            mean_y = pull @ P / n
            slope, bend = b * own, b * own * _sigmoid(-hx)
        seen = slope @ self.at_samples
        curvature = self._curvature(bend) if self.fixed is None else self.fixed
        if self.divergence == "kl":
            # The covariance of the features under the tilted samples, not their second moments: the logarithm outside
            # subtracts it.
            curvature = curvature - seen[:, None] * seen
        if mean_y is None:
            mean_y = P.mean(axis=0)
        else:
            curvature = curvature + ((pull * (1 - pull))[:, None] * P).T @ P / n
        # Without a penalty functions that the samples do not tell apart leave the system singular; this is below its
        # rounding.
        ridge = self.rho + 1e-14 * xp.trace(curvature)
        return mean_y - seen - self.rho * beta, curvature + xp.diag(ridge)

    def _curvature(self, bend: Array) -> Array:
        return (bend[:, None] * self.at_samples).T @ self.at_samples

    def __call__(self, Z: Array, kept: Kept, rng: Any = None, iteration: int = 0) -> Motion:
        """Return minus the gradient of the divergence at the particles, and the divergence."""
        # Small products: BLAS loses more to waking its threads than they save.
        with one_thread(self.at_samples.size):
            beta, value, pull = self.critic(Z, kept.coefficients)
        velocity = -self.dictionary.gradient(Z, beta) * like(pull, Z)[:, None]
        return Motion(velocity, value, kept=Kept(coefficients=beta))


def _sigmoid(s: Array) -> Array:
    xp = namespace(s)
    return xp.exp(-xp.logaddexp(0.0, -s))
