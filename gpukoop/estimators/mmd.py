"""MMD flows as an estimator: explicit, implicit, sliced, DrMMD and KALE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gpukoop.arrays import Array
from gpukoop.draws import check_count, check_positive
from gpukoop.estimators.kept import kept
from gpukoop.estimators.particles import AbstractParticleFlow, check_choice, resolved, unit_length
from gpukoop.estimators.weights import check_weight
from gpukoop.fitted import whole
from gpukoop.flow.descent import Field
from gpukoop.flow.drmmd import drmmd_field, kale_field
from gpukoop.flow.loop import Step, seed_from
from gpukoop.flow.mmd import is_energy, mmd_field
from gpukoop.flow.riesz import implicit_step
from gpukoop.flow.sliced import sliced_field
from gpukoop.kernels.formula.catalogue import Energy, Riesz
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.operator import check_tol


class MMDFlow(AbstractParticleFlow):
    r"""Particles descend half the squared maximum mean discrepancy to the samples, or a divergence built on it.

    .. math:: F = \tfrac12 MMD^2, \qquad z_i \leftarrow z_i + h\, v_i, \qquad v_i = -n\, \partial F / \partial z_i

    Parameters
    ----------
    kernel : kernel, optional
        ``Energy()`` by default: it reaches everywhere and has no scale to choose.
    step_size : float
        h, multiplies the plain velocity; in multiples of scale^2 of the kernel, of :math:`u^{2 - r}` for Riesz kernels, u the root
        mean square deviation of a column of X. Gaussian: monotone up to 2/3. Any size with ``scheme="implicit"``.
    n_iter : int
        Steps.
    scheme : "explicit" or "implicit"
        Implicit: Riesz kernels with exponent in [1, 2) only; the energy never rises. Exact on the line.
    noise : float or callable
        beta in multiples of u, or ``callable(i)``: the velocity is taken at z + beta xi, xi standard normal; the particles stay.
    momentum : float
        mu in [0, 1): G <- v + mu G.
    n_projections : int, optional
        Energy kernel only: slice along so many directions a step, O(P n log n) instead of n^2; d is one frame.
    regularization : float, optional
        lambda of DrMMD (or KALE): large is MMD, small the divergence.
    divergence : "chi2" or "kl"
        What ``regularization`` leads to: DrMMD or KALE.
    n_landmarks : int, optional
        Nystroem landmarks of DrMMD's linear solve.
    generator, persistence, batch_size : optional
        Train a map of :mod:`gpukoop.maps` instead of moving free particles; see :class:`WassersteinFlow`.
    init : "data", "gaussian", "mixture" or callable
        Where :meth:`sample` starts: near samples, as far from them as unseen ones; the normal law of their mean and
        covariance; a mixture of such laws; or ``init(n, rng) -> (n, d)``.
    units : "data" or "absolute"
        "absolute": ``step_size`` and ``noise`` are numbers in the units of X, and columns stay as they are. "data": columns
        whose widths differ more than five times are standardised, unless the scale of ``kernel`` is a number; settings, history
        and ``kernel_`` are then of these.
    tol, backend : optional
        Accuracy of kernel sums and who computes them.
    random_state : None, int, Generator or RandomState
    verbose : int

    Attributes
    ----------
    backend_ : str
        Who sums; "sorting" where nothing is summed over pairs.
    kernel_, columns_ : kernel, :class:`~gpukoop.spectrum.LinearCoordinates` or None
        With numeric scales; the columns in which particles move, None for those of X.
    n_iter_, converged_, history_ : int, bool, dict
        ``history_["energy"]`` holds F before the first step and after every one: MMD^2/2, DrMMD or KALE; ``dissipation``
        is mean \|v\|^2, ``displacement`` the root mean square step.

    Notes
    -----
    Cost of a step: n (n + m) pairs, O(n + m) memory; on the line and sliced, sorting only.

    References
    ----------
    .. [1] Arbel et al., arXiv 1906.04370. .. [2] Hertrich et al., arXiv 2305.11463. .. [3] Chen et al., arXiv 2409.14980.

    Examples
    --------
    >>> import numpy as np, gpukoop as gk
    >>> rng = np.random.default_rng(0)
    >>> X, Z = rng.normal(size=(100, 2)), rng.normal(size=(80, 2)) + 3.0
    >>> flow = gk.MMDFlow(scheme="implicit", step_size=10.0, n_iter=20).fit(X)
    >>> bool(np.linalg.norm(flow.transport(Z).mean(axis=0) - X.mean(axis=0)) < 0.1)
    True
    """

    def __init__(
        self,
        kernel: Any = None,
        step_size: float = 0.1,
        n_iter: int = 200,
        scheme: str = "explicit",
        noise: Any = 0.0,
        momentum: float = 0.0,
        n_projections: int | None = None,
        regularization: float | None = None,
        divergence: str = "chi2",
        n_landmarks: int | None = None,
        generator: Any = None,
        persistence: float = 1,
        batch_size: int | None = None,
        init: Any = "data",
        units: str = "data",
        tol: float | None = None,
        backend: str | None = None,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.kernel = kernel
        self.step_size = step_size
        self.n_iter = n_iter
        self.scheme = scheme
        self.noise = noise
        self.momentum = momentum
        self.n_projections = n_projections
        self.regularization = regularization
        self.divergence = divergence
        self.n_landmarks = n_landmarks
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
    ) -> MMDFlow:
        """Keep the samples, and train the generator if there is one.

        Parameters
        ----------
        X : array of shape (m, d)
            Samples of the law to reach.
        y : ignored
        sample_weight : array of shape (m,), optional
            Weights >= 0, uniform by default; normalised to sum 1. Not with ``regularization``.
        source : array of shape (p, d), optional
            Latent points of the generator; standard normal draws by default.
        checkpoint : path, optional
            What was learned is written there, and the same call later reads it. A pickle: name only files that you trust.

        Returns
        -------
        MMDFlow
            Itself.
        """
        self._check_y(y)
        kernel = self._check_parameters()
        native = self._remember(X)
        self.X_, self.sample_weight_ = check_weight(sample_weight, native)
        native, weight = self._place(kernel), self.sample_weight_
        if weight is not None and self.regularization is not None:
            raise ValueError(
                "sample_weight= has no meaning in the linear solve of DrMMD and KALE, whose samples are equal: drop it, or "
                "regularization="
            )
        self.unit_ = unit_length(native, weight)
        self.kernel_ = resolved(kernel, native, weight)
        self.backend_ = (
            "sorting"
            if self._sorted()
            else self.kernel_(native, **self._options()).explain("value_and_gradient").backend
        )
        self.landmarks_ = None
        if self.n_landmarks is not None and self.n_landmarks < len(native):
            rng = np.random.default_rng([seed_from(self.random_state), 3])
            self.landmarks_ = native[
                np.sort(rng.choice(len(native), self.n_landmarks, replace=False))
            ]
        self._finish_fit(source)
        return self

    def _options(self) -> dict[str, Any]:
        return {"backend": self.backend, "tol": self.tol}

    def _check_parameters(self) -> AbstractKernel:
        check_positive(self.step_size, "step_size")
        check_count(self.n_iter, "n_iter", least=0)
        check_choice(self.scheme, "scheme", ("explicit", "implicit"))
        check_choice(self.divergence, "divergence", ("chi2", "kl"))
        check_tol(self.tol)
        if check_positive(self.momentum, "momentum", zero=True) >= 1:
            raise ValueError(
                f"momentum must be in [0, 1), got {self.momentum!r}: at 1 speed never decays"
            )
        if not callable(self.noise):
            check_positive(self.noise, "noise", zero=True)
        self._check_common()
        kernel = Energy() if self.kernel is None else self.kernel
        if not isinstance(kernel, AbstractKernel):
            raise TypeError(
                f"kernel is {kernel!r}, expected a kernel such as gpukoop.Gaussian(scale=1.0)"
            )
        if self.n_landmarks is not None:
            check_count(self.n_landmarks, "n_landmarks")
            if self.regularization is None or self.divergence != "chi2":
                raise ValueError(
                    "n_landmarks serves the linear solve of DrMMD: pass regularization= with divergence='chi2', "
                    "or drop it"
                )
        self._check_combination(kernel)
        return kernel

    def _check_combination(self, kernel: AbstractKernel) -> None:
        noisy = callable(self.noise) or self.noise > 0
        if self.regularization is not None:
            check_positive(self.regularization, "regularization")
            if not kernel.positive:
                raise ValueError(
                    f"regularization= needs a positive definite kernel, got {kernel!r}: use Gaussian(...) or drop it"
                )
        elif self.divergence == "kl":
            raise ValueError("divergence='kl' is KALE, which needs regularization=, such as 0.1")
        if self.scheme == "implicit":
            if not isinstance(kernel, Riesz) or kernel.exponent < 1:
                raise ValueError(
                    f"scheme='implicit' needs Energy() or Riesz(exponent) with exponent in [1, 2), got {kernel!r}: "
                    "use scheme='explicit'"
                )
            if noisy or self.momentum > 0 or self.n_projections is not None:
                raise ValueError(
                    "scheme='implicit' takes no noise, momentum or n_projections: its steps are already monotone "
                    "for every step_size"
                )
        if self.n_projections is not None:
            check_count(self.n_projections, "n_projections")
            if not is_energy(kernel):
                raise ValueError(
                    f"n_projections= sorts, which sums Energy() only, got {kernel!r}: drop one of them"
                )
        if noisy and (self.n_projections is not None or self.regularization is not None):
            raise ValueError(
                "noise goes with the plain explicit flow: drop n_projections and regularization"
            )

    def _sorted(self) -> bool:
        line = self.X_.shape[1] == 1 and is_energy(self.kernel_) and self.backend is None
        noisy = callable(self.noise) or self.noise > 0
        return self.n_projections is not None or (line and not noisy)

    @property
    def _repeats(self) -> bool:
        noisy = callable(self.noise) or self.noise > 0
        plain = self.scheme == "explicit" and self.regularization is None
        return plain and not noisy and not self._sorted()

    def _length(self) -> float:
        return self._kernel_step(self.step_size, self.kernel_)

    def _field(self, batch_size: int | None) -> Field:
        if self._sorted():
            return sliced_field(
                self._target,
                flow="energy",
                n_projections=self.n_projections or 1,
                weights=self.sample_weight_,
            )
        options = self._options()
        if self.regularization is not None:
            lam = float(self.regularization)
            if self.divergence == "kl":
                return kale_field(self.kernel_, self._target, regularization=lam, **options)
            return drmmd_field(
                self.kernel_, self._target, regularization=lam, landmarks=self.landmarks_, **options
            )
        noise = self.noise
        if not callable(noise):
            noise = None if noise == 0 else _constant(float(noise))
        if noise is not None and self.units == "data":
            given, unit = noise, self.unit_
            noise = lambda i: unit * given(i)
        return mmd_field(
            self.kernel_, self._target, weights=self.sample_weight_, noise=noise, **options
        )

    def _particle_step(self, field: Field) -> Step:
        if self.scheme == "implicit" and isinstance(self.kernel_, Riesz):
            return implicit_step(
                self.kernel_,
                self._target,
                step_size=self._length(),
                weights=self.sample_weight_,
                **self._options(),
            )
        return super()._particle_step(field)

    def witness(self, Q: Any, Z: Any) -> Array:
        """Return the witness E_Z k(., z) - E_X k(., x) at Q, (q,): positive where particles Z are too many."""
        from gpukoop.arrays import like
        from gpukoop.flow.mmd import witness

        q, home = self._check_points(Q, "Q")
        z, _ = self._check_points(Z, "Z")
        value = witness(
            self.kernel_,
            self._seen(q),
            self._seen(z),
            self._target,
            self.sample_weight_,
            **self._options(),
        )
        return home.restore(like(value, q))


def _constant(value: float) -> Any:
    return lambda i: value
