"""Wasserstein-2 flows as an estimator: exact, Sinkhorn and sliced couplings, for particles and generators."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from gpukoop.arrays import Array, to_host
from gpukoop.draws import check_count, check_positive
from gpukoop.estimators.kept import kept
from gpukoop.estimators.particles import (
    AbstractParticleFlow,
    check_choice,
    unit_length,
)
from gpukoop.estimators.weights import check_weight
from gpukoop.fitted import whole
from gpukoop.flow.descent import Field, width
from gpukoop.flow.loop import Callback
from gpukoop.flow.sinkhorn_dense import is_small
from gpukoop.flow.sliced import sliced_field
from gpukoop.flow.wasserstein import SinkhornField, exact_field, minibatch
from gpukoop.kernels.formula.catalogue import Gaussian
from gpukoop.operator import check_tol

# Default blur: so much of the root mean square width of the samples.
BLUR = 0.1
# Default marginal errors of Sinkhorn: beyond the statistical error of any samples; what float32 sums can show.
SINKHORN_TOL = {"float64": 1e-6, "float32": 1e-4}
# An error of the marginals above this spoils the velocity visibly.
UNRELIABLE = 1e-2
PROJECTIONS = 64


class WassersteinFlow(AbstractParticleFlow):
    r"""Particles follow the Kantorovich potential of their coupling with the samples; the energy is W2^2 / 2.

    .. math:: z_i \leftarrow z_i + h\, (T z_i - z_i)

    Parameters
    ----------
    coupling : "sinkhorn", "exact" or "sliced"
        Who is paired with whom. Exact: an assignment, sizes up to some thousands (on the line any size). Sinkhorn: any
        size, streamed. Sliced: millions of points, needs step sizes of order d.
    blur : float, optional
        sqrt(eps) of Sinkhorn in multiples of u, the root mean square deviation of a column of X; by default a tenth of the root mean
        square distance of the samples from their mean.
    step_size : float
        h; the gap of the means shrinks by 1 - h (sliced: 1 - h/d).
    n_iter : int
        Steps.
    generator : map, optional
        Train a map of :mod:`gpukoop.maps` by regression on the moved particles (persistent training). ``fit`` trains
        it on standard normal latent points, or ``source=``; ``sample`` evaluates it at fresh ones.
    persistence : int or inf
        Gradient steps K on the same targets; infinity is the ridge limit.
    batch_size : int, optional
        Couple random batches of particles and samples. Biased: it ends above the sampling floor.
    n_projections : int, optional
        Directions of the sliced coupling; about 64, in whole frames, by default.
    debias : bool
        Sinkhorn: subtract the coupling of the particles with themselves. False collapses: the variance of a Gaussian
        target ends at max(sigma^2 - eps, 0).
    sinkhorn_iter : int
        Upper bound of the inner iterations of a step.
    sinkhorn_tol : float, optional
        Marginal error at which they stop; 1e-6 in float64, 1e-4 in float32 by default. The law of the means
        holds whatever it is.
    init : "data", "gaussian", "mixture" or callable
        Where :meth:`sample` starts: near samples, as far from them as unseen ones; the normal law of their mean and
        covariance; a mixture of such laws; or ``init(n, rng) -> (n, d)``.
    units : "data" or "absolute"
        "absolute": ``blur`` is a number in the units of X, and columns stay as they are. "data": columns whose widths differ more
        than five times are standardised; settings, costs of the coupling and history are then of these.
    tol, backend : optional
        Accuracy of kernel sums and who computes them.
    random_state : None, int, Generator or RandomState
    verbose : int

    Attributes
    ----------
    backend_ : str
        Who sums; "assignment" or "sorting" where no kernel is summed.
    blur_, columns_ : float, :class:`~gpukoop.spectrum.LinearCoordinates` or None
        Width; the columns in which particles move, None for those of X.
    generator_ : map
        After training.
    n_iter_, converged_, history_ : int, bool, dict
        ``history_["energy"]`` holds W2^2 / 2, the Sinkhorn divergence or the sliced W2^2 / 2 before the first step and after
        every one. Exact coupling of equal sizes: it falls by exactly (1 - h)^2 a step.

    References
    ----------
    .. [1] Y.-J. Huang, Z. Malik, arXiv 2406.13619. .. [2] J. Feydy et al., arXiv 1810.08278.

    Examples
    --------
    >>> import numpy as np, gpukoop as gk
    >>> rng = np.random.default_rng(0)
    >>> X, Z = rng.normal(size=(60, 2)), rng.normal(size=(60, 2)) + 3.0
    >>> flow = gk.WassersteinFlow("exact", step_size=0.5, n_iter=10).fit(X)
    >>> end = flow.transport(Z)
    >>> bool(np.allclose(flow.history_["energy"][1:] / flow.history_["energy"][:-1], 0.25))
    True
    """

    def __init__(
        self,
        coupling: str = "sinkhorn",
        blur: float | None = None,
        step_size: float = 0.1,
        n_iter: int = 50,
        generator: Any = None,
        persistence: float = 1,
        batch_size: int | None = None,
        n_projections: int | None = None,
        debias: bool = True,
        sinkhorn_iter: int = 200,
        sinkhorn_tol: float | None = None,
        init: Any = "data",
        units: str = "data",
        tol: float | None = None,
        backend: str | None = None,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.coupling = coupling
        self.blur = blur
        self.step_size = step_size
        self.n_iter = n_iter
        self.generator = generator
        self.persistence = persistence
        self.batch_size = batch_size
        self.n_projections = n_projections
        self.debias = debias
        self.sinkhorn_iter = sinkhorn_iter
        self.sinkhorn_tol = sinkhorn_tol
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
    ) -> WassersteinFlow:
        """Keep the samples, and train the generator if there is one.

        Parameters
        ----------
        X : array of shape (m, d)
            Samples of the law to reach.
        y : ignored
        sample_weight : array of shape (m,), optional
            Weights >= 0, uniform by default; normalised to sum 1.
        source : array of shape (p, d), optional
            Latent points of the generator; standard normal draws by default.
        checkpoint : path, optional
            What was learned is written there, and the same call later reads it. A pickle: name only files that you trust.

        Returns
        -------
        WassersteinFlow
            Itself.
        """
        self._check_y(y)
        self._check_parameters()
        native = self._remember(X)
        self.X_, self.sample_weight_ = check_weight(sample_weight, native)
        native = self._place()
        self.unit_ = unit_length(native, self.sample_weight_)
        self.blur_ = BLUR * (width(native) or 1.0)
        if self.blur is not None:
            self.blur_ = self._in_units(self.blur, 1)
        if self.coupling == "sinkhorn":
            K = Gaussian(self.blur_)(native, **self._options())
            # as many particles as samples are the usual case: small clouds keep their costs, and NumPy sums them
            small = is_small(native, native, self._options())
            self.backend_ = "numpy" if small else K.explain("logsumexp").backend
        else:
            line = self.coupling == "sliced" or native.shape[1] == 1
            self.backend_ = "sorting" if line else "assignment"
        self._finish_fit(source)
        return self

    def _options(self) -> dict[str, Any]:
        return {"backend": self.backend, "tol": self.tol}

    def _check_parameters(self) -> None:
        check_choice(self.coupling, "coupling", ("sinkhorn", "exact", "sliced"))
        check_positive(self.step_size, "step_size")
        check_count(self.n_iter, "n_iter", least=0)
        check_tol(self.tol)
        check_count(self.sinkhorn_iter, "sinkhorn_iter")
        if self.sinkhorn_tol is not None:
            check_positive(self.sinkhorn_tol, "sinkhorn_tol")
        if self.blur is not None:
            check_positive(self.blur, "blur")
        if not isinstance(self.debias, bool | np.bool_):
            raise ValueError(f"debias must be True or False, got {self.debias!r}")
        if self.n_projections is not None:
            check_count(self.n_projections, "n_projections")
            if self.coupling != "sliced":
                raise ValueError("n_projections= goes with coupling='sliced'")
        self._check_common()

    def _length(self) -> float:
        return float(self.step_size)

    def _limits(self) -> dict[str, Any]:
        tol = self.sinkhorn_tol
        return {
            "n_iter": int(self.sinkhorn_iter),
            "tol": SINKHORN_TOL[str(self.X_.dtype)] if tol is None else float(tol),
        }

    def _towards(self, X: Array, weights: Array | None, fixed: bool) -> Field:
        if self.coupling == "exact":
            return exact_field(X, weights=weights, fixed=fixed)
        if self.coupling == "sliced":
            d = X.shape[1]
            count = self.n_projections or d * math.ceil(PROJECTIONS / d)
            return sliced_field(X, flow="wasserstein", n_projections=count, weights=weights)
        return SinkhornField(
            X,
            blur=self.blur_,
            weights=weights,
            debias=bool(self.debias),
            step_size=self._length(),
            options=self._options(),
            **self._limits(),
        )

    def _field(self, batch_size: int | None, fixed: bool = True) -> Field:
        if batch_size is None:
            return self._towards(self._target, self.sample_weight_, fixed)
        return minibatch(
            lambda X: self._towards(X, None, False),
            self._target,
            int(batch_size),
            self.sample_weight_,
        )

    def _regressed_field(self, batch_size: int | None) -> Field:
        return self._field(batch_size, fixed=False)

    def transport(
        self,
        Z: Any,
        n_iter: int | None = None,
        callback: Callback | None = None,
        *,
        checkpoint: str | Path | None = None,
        checkpoint_every: int | None = None,
    ) -> Array:
        """Move particles by the flow; see :meth:`~gpukoop.estimators.base.AbstractFlowEstimator.transport`.

        Warns
        -----
        ConvergenceWarning
            If Sinkhorn's marginals are off by more than 1 percent, or than a ``sinkhorn_tol`` that was asked for.
        """
        moved = super().transport(
            Z, n_iter, callback, checkpoint=checkpoint, checkpoint_every=checkpoint_every
        )
        errors = getattr(self, "history_", {}).get("marginal_error")
        if errors is not None and len(errors):
            limit = UNRELIABLE if self.sinkhorn_tol is None else max(self.sinkhorn_tol, 1e-12)
            worst = float(np.max(to_host(errors)))
            if worst > limit:
                warnings.warn(
                    f"Sinkhorn's marginals missed their weights by {worst:.2g} after sinkhorn_iter={self.sinkhorn_iter} "
                    f"iterations, wanted {limit:.2g}: raise sinkhorn_iter or blur (now {self.blur_:.3g}).",
                    ConvergenceWarning,
                    stacklevel=2,
                )
        return moved
