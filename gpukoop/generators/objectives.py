r"""Objectives by name: each is a velocity of this package towards a batch of samples, and drives particles and networks alike.

================ ===================================== ==================================================
objective        velocity at z                         known elsewhere as
================ ===================================== ==================================================
sinkhorn         T_zx z - T_zz z, debiased plans       W-Flow; Sinkhorn generative models
w2               T z - z, exact plan of the batch      W2-FE; minibatch OT
sliced-w2        mean over lines                       sliced Wasserstein generators
mmd              -grad of the witness                  MMD-GAN with a fixed kernel, moment matching networks
energy           the same, kernel -\|x - y\|            Cramer GAN, energy-distance networks
sliced-energy    the same, by sorting                  sliced MMD flows
drmmd            de-regularized witness                between MMD and chi2
kale             its entropic sister                   between MMD and KL
drift            mean shift to samples less to own     drifting models
kl, js, chi2,    -r f''(r) grad log r, log r by a      f-GAN; js is the GAN, reverse-kl VGrow
reverse-kl, ...  classifier in closed form or a network
w1               -grad of a 1-Lipschitz critic         WGAN-GP
================ ===================================== ==================================================

``critic="network"`` replaces the closed form of the f-divergences; ``w1`` is always a network (:mod:`.critics`), held to slopes of 1
by a penalty or, ``critic="spectral"``, by the norms of its layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpukoop.arrays import Array
from gpukoop.flow.critic import JoinedDictionary, KernelDictionary, PolynomialDictionary
from gpukoop.flow.descent import Field
from gpukoop.flow.drift import drift_field
from gpukoop.flow.drmmd import drmmd_field, kale_field
from gpukoop.flow.mmd import mmd_field
from gpukoop.flow.ratio import PULLS, RatioField, pull
from gpukoop.flow.sliced import sliced_field
from gpukoop.flow.wasserstein import SinkhornField, exact_field
from gpukoop.kernels.formula.catalogue import Energy, Gaussian
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.scales import median_scale

# Scales of a mixture, in median distances of the samples: one scale alone sees either the shape or the details. Narrower ones alone
# leave a drift among the first modes that it finds (bench/results.md).
MIXTURE = (0.1, 0.2, 0.5, 1.0)
# Sinkhorn's blur in root mean square widths; the marginal error of a batch is far above this tolerance anyway.
BLUR, SINKHORN_ITER, SINKHORN_TOL, SCALING = 0.05, 50, 1e-2, 0.6
# In more dimensions all distances of a batch are alike: at a scale that is small beside them only the nearest sample would be seen,
# and particles crowd at typical ones (bench/results.md).
MANY, WIDE_SCALES, WIDE_BLUR = 30, (0.3, 0.5, 0.8), 0.7
# Points whose pairs weigh the kernels of a mixture, and the least mean of a kernel that is made up for.
PAIRED, LEAST = 1_000, 1e-4
REGULARIZATION = 1e-2
# Functions of the closed-form classifier.
LANDMARKS = 100
PROJECTIONS = 64


@dataclass(frozen=True)
class Choices:
    """What an objective needs to know beside the batch, in the units of the samples it was made for.

    Attributes
    ----------
    scales : tuple of float
        Of the Gaussian kernels of a mixture.
    weights : tuple of float
        What each kernel of the mixture is multiplied by.
    blur : float
    regularization : float
    n_projections : int
    backend : str, optional
    """

    scales: tuple[float, ...]
    weights: tuple[float, ...]
    blur: float
    regularization: float = REGULARIZATION
    n_projections: int = PROJECTIONS
    backend: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Options of the kernel sums."""
        return {} if self.backend is None else {"backend": self.backend}

    @property
    def mixture(self) -> AbstractKernel:
        """Gaussians of all scales times their weights."""
        parts = [Gaussian(s) * w for s, w in zip(self.scales, self.weights, strict=True)]
        whole: AbstractKernel = parts[0]
        for part in parts[1:]:
            whole = whole + part
        return whole


def choices(
    X: np.ndarray,
    scale: float | tuple[float, ...] | None,
    blur: float | None,
    regularization: float,
    backend: str | None,
) -> Choices:
    """Return the choices for samples X; what is None is derived from them."""
    many = X.shape[1] > MANY
    if scale is None:
        relative = WIDE_SCALES if many else MIXTURE
        # with m = 1 the rule is the median distance over sqrt(2 log 2), whatever the number of samples
        median = median_scale(X, 1) * float(np.sqrt(2 * np.log(2)))
        scales = tuple(c * median for c in relative)
    else:
        scales = tuple(np.atleast_1d(np.asarray(scale, dtype=float)).tolist())
    width = float(np.sqrt(X.var(axis=0, dtype=float).sum()))
    relative_blur = WIDE_BLUR if many else BLUR
    return Choices(
        scales,
        mixed(X, scales) if many else tuple(s * s / len(scales) for s in scales),
        relative_blur * width if blur is None else blur,
        regularization,
        backend=backend,
    )


def mixed(X: np.ndarray, scales: tuple[float, ...]) -> tuple[float, ...]:
    r"""Return :math:`s^2 / (S\, E\, e^{-|x - x'|^2 / 2 s^2})` for each of S scales: none outshouts the others.

    s^2 makes gradients lengths. In many dimensions a kernel that is narrower than the distances is some 10^-3 for all pairs;
    over its mean it says as much as a wide one, and what it says is local.
    """
    from scipy.spatial.distance import pdist

    rows = np.linspace(0, len(X) - 1, min(len(X), PAIRED)).astype(int)
    squares = pdist(X[rows].astype(float), "sqeuclidean")
    means = (np.exp(-squares / (2 * s * s)).mean() if len(squares) else 1.0 for s in scales)
    # beside a scale far below all distances, whose mean underflows, the others are all there is
    return tuple(s * s / (len(scales) * max(m, LEAST)) for s, m in zip(scales, means, strict=True))


def _sinkhorn(X: Array, c: Choices, rng: np.random.Generator) -> Field:
    return SinkhornField(
        X,
        blur=c.blur,
        own=0.0,
        n_iter=SINKHORN_ITER,
        tol=SINKHORN_TOL,
        scaling=SCALING,
        options=c.options,
    )


def _classifier(divergence: str) -> Callable[[Array, Choices, np.random.Generator], Field]:
    def make(X: Array, c: Choices, rng: np.random.Generator) -> Field:
        rows = rng.choice(len(X), min(LANDMARKS, len(X)), replace=False)
        functions = (
            PolynomialDictionary(X),
            KernelDictionary(Gaussian(max(c.scales)), X[rows], **c.options),
        )
        return RatioField(
            X, JoinedDictionary(functions), divergence, regularization=c.regularization
        )

    return make


# name -> field towards a batch (X, choices, generator of the batch)
OBJECTIVES: dict[str, Callable[[Array, Choices, np.random.Generator], Field]] = {
    "sinkhorn": _sinkhorn,
    "w2": lambda X, c, rng: exact_field(X, fixed=False),
    "sliced-w2": lambda X, c, rng: sliced_field(
        X, flow="wasserstein", n_projections=c.n_projections
    ),
    "mmd": lambda X, c, rng: mmd_field(c.mixture, X, unbiased=True, **c.options),
    "energy": lambda X, c, rng: mmd_field(Energy(), X, unbiased=True, **c.options),
    "sliced-energy": lambda X, c, rng: sliced_field(
        X, flow="energy", n_projections=c.n_projections
    ),
    "drmmd": lambda X, c, rng: drmmd_field(
        Gaussian(max(c.scales)), X, regularization=c.regularization, **c.options
    ),
    "kale": lambda X, c, rng: kale_field(
        Gaussian(max(c.scales)), X, regularization=c.regularization, **c.options
    ),
    "drift": lambda X, c, rng: drift_field(X, c.scales, **c.options),
    **{name: _classifier(name) for name in PULLS},
}
# Objectives whose critic is a network, by name of the objective.
NETWORK_ONLY = ("w1",)


def check_objective(objective: str, critic: str) -> None:
    """Raise unless there is such an objective with such a critic."""
    known = [*OBJECTIVES, *NETWORK_ONLY, "alpha(a)"]
    divergence = isinstance(objective, str) and (
        objective in PULLS or objective.startswith("alpha(")
    )
    if divergence:
        pull(objective)
    elif not isinstance(objective, str) or objective not in known:
        raise ValueError(f"objective is {objective!r}: choose one of {', '.join(known)}")
    if not isinstance(critic, str) or critic not in ("kernel", "network", "spectral"):
        raise ValueError(f"critic is {critic!r}: choose 'kernel', 'network' or 'spectral'")
    if critic == "spectral" and objective not in NETWORK_ONLY:
        raise ValueError(f"critic='spectral' belongs to w1, not to {objective}")
    if critic == "network" and not divergence and objective not in NETWORK_ONLY:
        raise ValueError(
            f"critic='network' belongs to the f-divergences and w1; {objective} has its velocity in closed form"
        )


def closed_form(objective: str) -> Callable[[Array, Choices, np.random.Generator], Field]:
    """Return what makes the field of an objective towards a batch."""
    return OBJECTIVES.get(objective) or _classifier(objective)


__all__ = ["OBJECTIVES", "Choices", "check_objective", "choices", "closed_form"]
