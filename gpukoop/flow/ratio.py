r"""f-divergences by their log density ratio: one classifier, every divergence.

========== ======================================================
mu, nu     laws of particles and samples, r = d mu / d nu
s          log r, the logit of the classifier of particles against samples
========== ======================================================

The Wasserstein gradient of :math:`D_f(\mu | \nu) = E_\nu f(r)` is :math:`\nabla f'(r)`, so particles move with

.. math:: v = -\nabla f'(r) = -r f''(r)\, \nabla s

and only the factor depends on the divergence:

=============== ============================ =======================
name            f(r)                         r f''(r)
=============== ============================ =======================
kl              r log r                      1
reverse-kl      -log r                       1 / r
chi2            (r - 1)^2                    2 r
reverse-chi2    (r - 1)^2 / r                2 / r^2
js              r log r - (r + 1) log((r+1)/2)   1 / (1 + r)
hellinger       (sqrt r - 1)^2               1 / (2 sqrt r)
tv              \|r - 1\| / 2, smoothed        1 / (4 cosh^2(s / 2))
alpha(a)        (r^a - a r + a - 1)/(a (a - 1))  r^(a - 1)
=============== ============================ =======================

Total variation has no gradient away from r = 1; \|r - 1\| / 2 is smoothed so that f'(r) = tanh(s / 2) / 2.

References
----------
.. [1] C. Caucheteux, C. Bonet, A. Korba, Generative Wasserstein Flows, arXiv 2605.31369.
.. [2] Y. Gao et al., Deep Generative Learning via Variational Gradient Flow, arXiv 1901.08469.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpukoop.arrays import Array, like, namespace, to_host
from gpukoop.blas import one_thread
from gpukoop.flow.critic import AbstractDictionary, CriticField
from gpukoop.flow.descent import Motion
from gpukoop.flow.memory import Kept

# Log ratios beyond this are what the classifier believes where it has seen one cloud only.
LARGEST_LOG = 8.0

# s -> r f''(r), for arrays of any library: exponentials are taken by the function that is handed over.
PULLS: dict[str, Callable[[Any, Any], Any]] = {
    "kl": lambda s, exp: 1.0 + 0.0 * s,
    "reverse-kl": lambda s, exp: exp(-s),
    "chi2": lambda s, exp: 2.0 * exp(s),
    "reverse-chi2": lambda s, exp: 2.0 * exp(-2.0 * s),
    "js": lambda s, exp: 1.0 / (1.0 + exp(s)),
    "hellinger": lambda s, exp: 0.5 * exp(-0.5 * s),
    "tv": lambda s, exp: exp(s) / (1.0 + exp(s)) ** 2,
}
# Their values f(r) from s, for the energy.
VALUES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "kl": lambda s: s,  # E_mu log r
    "reverse-kl": lambda s: -s * np.exp(-s),
    "chi2": lambda s: np.expm1(s) ** 2 * np.exp(-s),
    "reverse-chi2": lambda s: np.expm1(-s) ** 2,
    "js": lambda s: s - (1 + np.exp(-s)) * (np.logaddexp(0, s) - np.log(2)),
    "hellinger": lambda s: np.expm1(-s / 2) ** 2,
    "tv": lambda s: np.abs(np.expm1(-s)) / 2,
}


def pull(divergence: str) -> Callable[[Any, Any], Any]:
    """Return s -> r f''(r) of a divergence; "alpha(0.5)" names the alpha divergence with a = .5."""
    if divergence in PULLS:
        return PULLS[divergence]
    a = alpha(divergence)
    return lambda s, exp: exp((a - 1.0) * s)


def value(divergence: str, s: np.ndarray) -> float:
    """Return the divergence from log ratios at the particles: E_nu f(r) = E_mu f(r) / r."""
    # As the pull is clipped, so that energy and velocity are of one ratio.
    s = np.clip(s, -LARGEST_LOG, LARGEST_LOG)
    if divergence in VALUES:
        return float(VALUES[divergence](s).mean())
    a = alpha(divergence)
    return float(((np.exp(a * s) - a * np.exp(s) + a - 1) * np.exp(-s) / (a * (a - 1))).mean())


def alpha(divergence: str) -> float:
    """Return a of "alpha(a)"; raise unless it is one, with a neither 0 nor 1 (those are reverse-kl and kl)."""
    names = ", ".join(PULLS)
    try:
        # Anything that is no call of one number falls through to the message that lists the names.
        head, tail = divergence.split("(")
        a = float(tail.removesuffix(")"))
    except ValueError:
        head, a = "", 0.0
    if head != "alpha" or a in (0.0, 1.0) or not np.isfinite(a):
        raise ValueError(
            f"divergence is {divergence!r}: choose one of {names}, or alpha(a) with a neither 0 nor 1"
        )
    return a


class RatioField:
    """Field of an f-divergence from the closed-form classifier in a finite dictionary.

    Parameters
    ----------
    X : array of shape (m, d)
    dictionary : AbstractDictionary
    divergence : str
        A name of the table of this module.
    regularization : float
        rho > 0 of the classifier.
    weights : array of shape (m,), optional
        Of the samples, sum 1.

    Notes
    -----
    Cost: as :class:`~gpukoop.flow.critic.CriticField` for js.
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
        self.divergence, self.pull = divergence, pull(divergence)
        # The classifier of js is the Bayes classifier of any two clouds: its logit is the log ratio whatever divergence is
        # asked.
        self.classifier = CriticField(
            X, dictionary, "js", regularization=regularization, weights=weights
        )

    def __call__(self, Z: Array, kept: Kept, rng: Any = None, iteration: int = 0) -> Motion:
        """Return minus the gradient of f'(r) at the particles, and the divergence that the classifier sees."""
        xp = namespace(Z)
        dictionary = self.classifier.dictionary
        with one_thread(self.classifier.at_samples.size):
            beta, _, _ = self.classifier.critic(Z, kept.coefficients)
            s = xp.clip(dictionary.features(Z) @ beta, -LARGEST_LOG, LARGEST_LOG)
        velocity = -dictionary.gradient(Z, beta) * like(self.pull(s, xp.exp), Z)[:, None]
        return Motion(velocity, value(self.divergence, to_host(s)), kept=Kept(coefficients=beta))
