"""How an estimator is judged: particles against the data it was fitted to, by :mod:`gpukoop.verdict`."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from gpukoop.arrays import Array, points, to_host
from gpukoop.draws import RandomState, check_positive
from gpukoop.estimators.start import in_different_units
from gpukoop.estimators.weights import host_weight
from gpukoop.fitted import check_columns
from gpukoop.parameters import check_points
from gpukoop.verdict import Report, diagnose, distance_multiple
from gpukoop.verdict.report import ABOUT_COPIES, FEW

# The first sample is judged by at most so many particles and data: half a second, and differences too small for them to
# show are no reason to warn.
JUDGED = 2_000
# Fewer particles than this tell nothing; fewer than FEW only what is far off, and so the report says;
# of fewer samples no number of particles tells more, and a warning says so.
LEAST = 20
# Particles of an unasked diagnosis, and of a score at least and at most.
DRAWN, SCORED = 2_000, (1_000, 10_000)
# Samples kept aside are worth it from so many on.
ENOUGH = 20
REMEDIES = {
    "support": "start on the data (KSWGD: init='data'), raise n_iter or total_time, or lower the kernel's scale",
    "modes": "raise n_components, or n_iter and total_time",
    "basins": "raise n_components and total_time, or start on the data",
    "spread": "standardise the columns, raise n_components or n_iter, or lower the blur or the kernel's scale",
    "location": "standardise the columns, raise n_components or n_iter, or start on the data",
    "memorisation": "drop repeated rows (sample_weight= counts them), or start farther off (init): these particles are the data again",
    "diversity": "use fewer steps or a larger scale: the particles have run together",
}
# Flows towards the samples end on them, however good the law is: from a start on the data the first steps are enough, and a kernel or
# a blur as wide as the data never sees single samples (banana: .9 to 1.0 of an unseen sample's distance at the same energy distance).
STOP_EARLIER = {
    "JKOFlow": "n_steps=2, or kernel=gk.Gaussian('median')",
    "MMDFlow": "n_iter=50, or kernel=gk.Gaussian('median')",
    "WassersteinFlow": "n_iter=5, or a larger blur",
}
# Of a sampler without modes or iterations: eight short steps of 300 features are nearer than one long one of 1,000 on four of four laws.
SHORTER_STEPS = (
    "n_slabs=8 and n_features=300, eight short steps in place of one long one; where some regions are far narrower than others, "
    "KSWGD"
)
REMEDY = "raise n_iter (total_time), n_components or n_features, or lower the kernel's scale"


class JudgedMixin:
    """``diagnose`` and ``score`` of an estimator that samples."""

    random_state: Any

    @property
    def _standardises(self) -> bool:
        """Whether columns in different units are brought to one, or have scales of their own."""
        scale: Any = getattr(getattr(self, "kernel", None), "scale", 1.0)
        spectrum = getattr(self, "spectrum_", None)
        return np.ndim(scale) > 0 or getattr(spectrum, "coordinates_", None) is not None

    def diagnose(
        self, Z: Any = None, law: Any = None, *, random_state: RandomState = 0, **options: Any
    ) -> Report:
        """Return a report on particles against the data: see :func:`gpukoop.diagnose`.

        Parameters
        ----------
        Z : array of shape (n, d), optional
            Particles; by default as many new samples as there are data, at most 2,000.
        law : callable, optional
            Exact draws, if the law is known.
        random_state : int, Generator, RandomState or None, default=0
            Permutations of the report.
        **options
            ``level``, ``n_permutations``, ``sample_weight``, ... of :func:`gpukoop.diagnose`.

        Returns
        -------
        Report
        """
        check_is_fitted(self)
        check_columns(self, Z)
        if Z is None:
            self._silent = True
            try:
                Z = self.sample(min(DRAWN, len(self._data())))  # type: ignore[attr-defined]
            finally:
                del self._silent
        weight = getattr(self, "sample_weight_", None)
        options = {"held_out": self._kept_aside(), "sample_weight": weight, **options}
        report = diagnose(Z, self._data(), law, random_state=random_state, **options)
        return replace(
            report,
            advice="" if report.passed else self._advice(report),
            remark=self._remark(),
        )

    def _remark(self) -> str:
        """Return what a report says of the fit itself: modes that are not followed, columns that one unit does not fit."""
        carried = np.asarray(vars(self).get("carried_", True))
        left = int(np.sum(~carried))
        said = []
        if left:
            said.append(
                f"{left} of {carried.size} modes are carried by a handful of samples and were not followed"
            )
        some = slice(None, None, max(1, len(self._data()) // SCORED[1]))
        weight = host_weight(getattr(self, "sample_weight_", None))
        weight = None if weight is None else weight[some]
        if not self._standardises and in_different_units(self._data()[some], weight):
            said.append(
                f"The widths of columns differ more than five times, and {type(self).__name__} measures all in one unit: narrow "
                "ones lose their details unless columns are standardised before (StandardScaler)"
            )
        return ". ".join(said)

    def _advice(self, report: Report) -> str:
        """Return what to try where a report fails."""
        worst, who = report.failures[0].name, type(self).__name__
        if worst == "memorisation" and who in STOP_EARLIER:
            return f"{STOP_EARLIER[who]}: the flow has carried the particles onto the samples"
        if who == "KoopmanSampler" and worst not in ("spread", *ABOUT_COPIES):
            return SHORTER_STEPS
        return REMEDIES.get(worst, REMEDY)

    def score(self, X: Any, y: Any = None) -> float:
        """Return minus the energy distance of new samples to X, in units of what as many samples of the law show.

        About -1 is as good as fresh data, whatever the parameters, so that settings can be compared; X are data that were not
        learned from. The same starting points are used at every call.
        """
        native, _ = check_points(self, X, "X")
        size = int(np.clip(len(native), *SCORED))
        self._silent = True
        try:
            Z = self.sample(size, random_state=0)  # type: ignore[attr-defined]
        finally:
            del self._silent
        Z = to_host(points(Z, "samples")[0]).astype(float)
        return -distance_multiple(Z, to_host(native).astype(float), np.random.default_rng(0))

    def _data(self) -> Array:
        """Return the samples that were learned from."""
        return self.X_  # type: ignore[attr-defined]

    def _kept_aside(self) -> Array | None:
        return getattr(self, "X_held_out_", None)


class ConvergedByVerdict(JudgedMixin):
    """An estimator whose first sample is judged, and whose ``converged_`` is the verdict on its last particles.

    That the flow itself sees nothing left to do does not count.
    """

    _ended: Any = None
    _on_law: bool | None = None
    _settled = False

    def sample(
        self,
        n_samples: int = 1,
        random_state: Any = None,
        *,
        checkpoint: str | Path | None = None,
        checkpoint_every: int | None = None,
    ) -> Array:
        """Draw starting points, move them by the flow and return where they end.

        Parameters
        ----------
        n_samples : int
            Number of particles, at least 1.
        random_state : None, int, Generator or RandomState
            Seed of the draw; None takes the estimator's ``random_state``.
        checkpoint, checkpoint_every : path and int, optional
            See :meth:`transport`; the same start must be drawn again, so one of the two ``random_state`` is needed.

        Returns
        -------
        array of shape (n_samples, d)
            Library and device of the samples given to ``fit``.

        Warns
        -----
        ConvergenceWarning
            If the first sample of 20 particles or more after a fit is off the law of the data, or copies them, or if there are
            fewer than 100 data to tell; ``report_`` says more. A sample of fewer than 100 particles that passes does not count
            as the first: its ``report_`` says that so few tell little. Of less than 20 nothing is said.
        """
        Z = super().sample(  # type: ignore[misc]
            n_samples, random_state, checkpoint=checkpoint, checkpoint_every=checkpoint_every
        )
        if "_silent" not in vars(self) and self._tells_more(len(Z)):
            before = vars(self).get("report_")
            self.report_ = report = self.diagnose(Z, n_points=JUDGED)
            self._on_law = report.on_law if report.conclusive else None
            said = _warning(report)
            if said and (before is None or not report.passed):
                warnings.warn(
                    f"{type(self).__name__} {said}. print(estimator.report_) says more.",
                    ConvergenceWarning,
                    stacklevel=2,
                )
        return Z

    def _tells_more(self, n: int) -> bool:
        """Return whether n particles would tell what no sample since the fit has told."""
        report = vars(self).get("report_")
        if report is None:
            return n >= LEAST
        return not report.conclusive and report.sizes[0] < FEW <= n

    def _arrived(self, Z: Array) -> None:
        """Remember where the particles of a run ended, before the verdict is asked for."""
        self._on_law, self._ended = None, Z[:: max(1, len(Z) // JUDGED)]

    @property
    def converged_(self) -> bool:
        """Whether the particles of the last run are on the law of the data; found when first asked for."""
        if self._ended is None:
            raise AttributeError("converged_ is known after transport or sample")
        if len(self._ended) < LEAST:
            return self._settled  # too few to judge: the moments of the modes vanish
        if self._on_law is None:
            report = self.diagnose(self._ended, n_points=JUDGED)
            self._on_law = report.on_law and (report.conclusive or self._settled)
        return self._on_law

    @converged_.setter
    def converged_(self, settled: bool) -> None:
        """Remember whether the flow itself had nothing left to do, for particles too few to judge."""
        self._settled = settled


def _warning(report: Report) -> str:
    """Return what is to be said of a first sample, or nothing."""
    if not report.passed:
        worst = report.failures[0]
        return (
            f"ended off the law of its data: {worst.text} ({worst.name}, p = {worst.p_value:.1g}). "
            f"What to try: {report.advice}"
        )
    n, m = report.sizes
    # Of few particles the report says so, and the next that are more are judged again.
    if report.conclusive or m >= FEW:
        return ""
    return (
        f"cannot be judged by {n} particles and {m} samples, {FEW} of either are the least: less than "
        f"{report.least_seen:.0%} of the particles off the law would not be seen"
    )


def check_fraction(fraction: Any) -> None:
    """Raise unless it is a share of the samples that leaves some."""
    if not 0 <= check_positive(fraction, "validation_fraction", zero=True) < 1:
        raise ValueError(
            f"validation_fraction is {fraction}: pass a share of the samples, in [0, 1)"
        )


def set_aside(
    X: Array, Y: Array | None, fraction: float
) -> tuple[Array, Array | None, Array | None]:
    """Return samples and successors to learn from, and samples kept aside, or None if there would be too few."""
    check_fraction(fraction)
    size = int(fraction * len(X))
    if size < ENOUGH:
        return X, Y, None
    # the same rows at every fit: a fit without a random_state must not begin to depend on chance
    order = np.random.default_rng(len(X)).permutation(len(X))
    kept, aside = np.sort(order[size:]), np.sort(order[:size])
    return X[kept], None if Y is None else Y[kept], X[aside]
