"""JKO steps as an estimator: proximal steps of divergences, for particles and parametric maps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from gpukoop.draws import check_count, check_positive
from gpukoop.estimators.kept import kept
from gpukoop.estimators.particles import (
    AbstractParticleFlow,
    check_choice,
    resolved,
    unit_length,
)
from gpukoop.estimators.weights import check_weight
from gpukoop.fitted import whole
from gpukoop.flow.critic import (
    DIVERGENCES,
    CriticField,
    FourierDictionary,
    JoinedDictionary,
    KernelDictionary,
    PolynomialDictionary,
)
from gpukoop.flow.descent import Field
from gpukoop.flow.drmmd import kale_field
from gpukoop.flow.jko import field_of_step, jko_field
from gpukoop.flow.loop import Step, seed_from
from gpukoop.flow.mmd import mmd_field
from gpukoop.flow.riesz import implicit_step
from gpukoop.flow.wasserstein import SinkhornField, exact_field
from gpukoop.kernels.formula.catalogue import Energy, Gaussian, Riesz
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.operator import check_tol

OBJECTIVES = ("mmd", "kl", "kl-dual", "chi2", "js", "kale", "w2")
# Largest exact assignment; more particles are coupled by Sinkhorn.
LARGEST_EXACT = 2_000
BLUR = 0.05
# Default steps; an implicit step towards the energy distance goes as far as it may.
TAU, RIESZ_TAU = 0.1, 10.0


class JKOFlow(AbstractParticleFlow):
    r"""Each step minimises a divergence to the samples plus the squared Wasserstein distance to where it started.

    .. math:: Z^+ = \arg\min_Y\; D(Y) + \frac1n \sum_i \frac{|y_i - z_i|^2}{2 \tau}

    Parameters
    ----------
    objective : {"mmd", "kl", "kl-dual", "chi2", "js", "kale", "w2"}
        D: MMD^2 / 2; Kullback-Leibler in the Donsker-Varadhan form or as an f-dual; chi-squared; Jensen-Shannon (KL to the
        mixture, both ways); KALE; W2^2 / 2. The f-divergences are estimated by a critic.
    tau : float, optional
        Step; D never rises, whatever tau. In multiples of scale^2 of the kernel ("mmd", "kale"; of :math:`u^{2 - r}` for Riesz
        kernels), of u^2 (critics), u the root mean square deviation of a column of X, or as it stands ("w2"). By default 10 for
        Riesz kernels, which take any step in one solve, else .1.
    n_steps : int
        JKO steps.
    kernel : kernel, optional
        Of the MMD, KALE or the critic. By default ``Energy()`` for "mmd", which reaches everywhere, else ``Gaussian("median")``. For Riesz kernels with exponent in [1, 2) MMD
        steps are the implicit ones (exact on the line, DC in d dimensions).
    regularization : float
        rho of the critic, lambda of KALE.
    critic : {"kernel", "features", "quadratic"}
        Functions of the critic: a kernel at landmarks, or random Fourier features, both with a quadratic polynomial; or
        that polynomial alone, which is exact between normal laws.
    n_features : int
        Landmarks or random features of the critic.
    inner_iter, inner_tol : int and float
        Bounds of a step's own minimisation; the tolerance is relative to the width of the particles.
    generator, persistence, batch_size : optional
        Parametric JKO: a map of :mod:`gpukoop.maps` is regressed on the proximal points.
    init : "data", "gaussian", "mixture" or callable
        Where :meth:`sample` starts: near samples, as far from them as unseen ones; the normal law of their mean and
        covariance; a mixture of such laws; or ``init(n, rng) -> (n, d)``.
    units : "data" or "absolute"
        "absolute": ``tau`` is a number in the units of X, and columns stay as they are. "data": columns whose widths differ more
        than five times are standardised, unless the scale of ``kernel`` is a number; settings, history and
        ``kernel_`` are then of these.
    tol, backend : optional
        Accuracy of kernel sums and who computes them.
    random_state : None, int, Generator or RandomState
    verbose : int

    Attributes
    ----------
    backend_ : str
    kernel_, columns_ : kernel, :class:`~gpukoop.spectrum.LinearCoordinates` or None
        The columns in which particles move, None for those of X.
    n_iter_, converged_, history_ : int, bool, dict
        ``history_["energy"]`` holds D before the first step and after every one; ``inner_iter`` the inner iterations.

    Notes
    -----
    The penalty is summed over dimensions and averaged over particles; codes that average over dimensions with weight
    1 / lambda have tau = d lambda / 2.

    References
    ----------
    .. [1] C. Caucheteux, C. Bonet, A. Korba, arXiv 2605.31369. .. [2] P. Glaser et al., arXiv 2106.08929.

    Examples
    --------
    >>> import numpy as np, gpukoop as gk
    >>> rng = np.random.default_rng(0)
    >>> X, Z = rng.normal(size=(60, 2)), rng.normal(size=(60, 2)) + 3.0
    >>> flow = gk.JKOFlow("w2", tau=1.0, n_steps=5).fit(X)
    >>> end = flow.transport(Z)
    >>> bool(np.allclose(flow.history_["energy"][1:] / flow.history_["energy"][:-1], 0.25))
    True
    """

    def __init__(
        self,
        objective: str = "mmd",
        tau: float | None = None,
        n_steps: int = 20,
        kernel: Any = None,
        regularization: float = 0.01,
        critic: str = "kernel",
        n_features: int = 100,
        inner_iter: int = 100,
        inner_tol: float = 1e-6,
        generator: Any = None,
        persistence: float = math.inf,
        batch_size: int | None = None,
        init: Any = "data",
        units: str = "data",
        tol: float | None = None,
        backend: str | None = None,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.objective = objective
        self.tau = tau
        self.n_steps = n_steps
        self.kernel = kernel
        self.regularization = regularization
        self.critic = critic
        self.n_features = n_features
        self.inner_iter = inner_iter
        self.inner_tol = inner_tol
        self.generator = generator
        self.persistence = persistence
        self.batch_size = batch_size
        self.init = init
        self.units = units
        self.tol = tol
        self.backend = backend
        self.random_state = random_state
        self.verbose = verbose

    @whole
    @kept
    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        sample_weight: Any = None,
        source: Any = None,
        checkpoint: str | Path | None = None,
    ) -> JKOFlow:
        """Keep the samples, and train the generator if there is one.

        Parameters
        ----------
        X : array of shape (m, d)
            Samples of the law to reach.
        y : ignored
        sample_weight : array of shape (m,), optional
            Weights >= 0, uniform by default; not for KALE.
        source : array of shape (p, d), optional
            Latent points of the generator; standard normal draws by default.
        checkpoint : path, optional
            What was learned is written there, and the same call later reads it. A pickle: name only files that you trust.

        Returns
        -------
        JKOFlow
            Itself.
        """
        self._check_y(y)
        kernel = self._check_parameters()
        native = self._remember(X)
        self.X_, self.sample_weight_ = check_weight(sample_weight, native)
        if self.sample_weight_ is not None and self.objective == "kale":
            raise ValueError(
                "sample_weight is not known to objective='kale': use 'kl', or resample X"
            )
        native = self._place(kernel if self._uses_kernel() else None)
        self.unit_ = unit_length(native, self.sample_weight_)
        self.kernel_ = resolved(kernel if self._uses_kernel() else Gaussian(1.0), native)
        self.backend_ = (
            "assignment"
            if self.objective == "w2"
            else self.kernel_(native, **self._options()).explain("gradient").backend
        )
        self.seed_ = seed_from(self.random_state)
        self._finish_fit(source)
        return self

    def _options(self) -> dict[str, Any]:
        return {"backend": self.backend, "tol": self.tol}

    def _uses_kernel(self) -> bool:
        return self.objective != "w2" and not (
            self.objective not in ("mmd", "kale") and self.critic == "quadratic"
        )

    def _check_parameters(self) -> AbstractKernel:
        check_choice(self.objective, "objective", OBJECTIVES)
        check_choice(self.critic, "critic", ("kernel", "features", "quadratic"))
        if self.tau is not None:
            check_positive(self.tau, "tau")
        check_positive(self.regularization, "regularization")
        check_positive(self.inner_tol, "inner_tol")
        check_count(self.n_steps, "n_steps", least=0)
        check_count(self.n_features, "n_features")
        check_count(self.inner_iter, "inner_iter")
        check_tol(self.tol)
        self._check_common()
        kernel = self.kernel
        if kernel is None:
            kernel = Energy() if self.objective == "mmd" else Gaussian("median")
        if not isinstance(kernel, AbstractKernel):
            raise TypeError(
                f"kernel is {kernel!r}, expected a kernel such as gpukoop.Gaussian(scale=1.0)"
            )
        if self.objective != "mmd" and self._uses_kernel() and not kernel.positive:
            raise ValueError(
                f"objective={self.objective!r} needs a positive definite kernel, got {kernel!r}: use Gaussian(...)"
            )
        if self.critic == "features" and self.objective not in ("mmd", "kale", "w2"):
            if not isinstance(kernel, Gaussian):
                raise ValueError(
                    f"critic='features' draws features of a Gaussian kernel, got {kernel!r}: use critic='kernel'"
                )
        return kernel

    def _length(self) -> float:
        tau = self.tau
        if tau is None:
            tau = RIESZ_TAU if self._implicit() else TAU
        if self.objective in ("mmd", "kale"):
            return self._kernel_step(tau, self.kernel_)
        return float(tau) if self.objective == "w2" else self._in_units(tau, 2)

    def _steps(self) -> int:
        return self.n_steps

    def _implicit(self) -> bool:
        return (
            self.objective == "mmd"
            and isinstance(self.kernel_, Riesz)
            and self.kernel_.exponent >= 1
        )

    def _energy(self, fixed: bool) -> Field:
        X, b, options = self._target, self.sample_weight_, self._options()
        if self.objective == "mmd":
            return mmd_field(self.kernel_, X, weights=b, **options)
        if self.objective == "kale":
            return kale_field(self.kernel_, X, regularization=float(self.regularization), **options)
        if self.objective == "w2":
            if len(X) <= LARGEST_EXACT or X.shape[1] == 1:
                return exact_field(X, weights=b, fixed=fixed)
            from gpukoop.flow.descent import width

            blur = BLUR * (width(X) or 1.0)
            return SinkhornField(X, blur=blur, weights=b, tol=1e-6, options=options)
        return CriticField(
            X,
            self._dictionary(),
            self.objective,
            regularization=float(self.regularization),
            weights=b,
        )

    def _dictionary(self) -> Any:
        X = self._target
        polynomial = PolynomialDictionary(X)
        if self.critic == "quadratic":
            return PolynomialDictionary(X, penalty=1.0)
        rng = np.random.default_rng([self.seed_, 3])
        if self.critic == "features":
            scale = self.kernel_.terms[0][1].length
            return JoinedDictionary((FourierDictionary(X, scale, self.n_features, rng), polynomial))
        count = min(len(X), self.n_features)
        landmarks = X[np.sort(rng.choice(len(X), count, replace=False))]
        return JoinedDictionary(
            (KernelDictionary(self.kernel_, landmarks, **self._options()), polynomial)
        )

    def _field(self, batch_size: int | None, fixed: bool = True) -> Field:
        if self._implicit():
            return field_of_step(self._riesz_step(), self._length())
        return jko_field(
            self._energy(fixed),
            self._length(),
            n_iter=int(self.inner_iter),
            tol=float(self.inner_tol),
            double=self.objective in DIVERGENCES,
        )

    def _riesz_step(self) -> Step:
        if not isinstance(self.kernel_, Riesz):
            raise TypeError(f"{self.kernel_!r} is no Riesz kernel")
        return implicit_step(
            self.kernel_,
            self._target,
            step_size=self._length(),
            weights=self.sample_weight_,
            **self._options(),
        )

    def _regressed_field(self, batch_size: int | None) -> Field:
        return self._field(batch_size, fixed=False)
