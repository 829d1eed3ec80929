"""A fit with its classes: what is learned from which points, and which operator moves which points.

Points here are native arrays, already validated; the estimator is the face that takes and gives the user's arrays. Operators
are learned in the latent space and in the frame of their class.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any, final

import numpy as np

from gpukoop.arrays import Array, like, namespace, to_host
from gpukoop.checks import one_label_each, real_array
from gpukoop.draws import normal_points
from gpukoop.flow.loop import seed_from
from gpukoop.flow.start import drawn_rows
from gpukoop.kernels.formula.catalogue import Gaussian
from gpukoop.operator import KernelOperator
from gpukoop.sampler.choice import split_held_out
from gpukoop.sampler.clock import Frame
from gpukoop.sampler.diagnosis import diagnose
from gpukoop.sampler.evolution import Evolution
from gpukoop.sampler.expm import ExponentialOverflow
from gpukoop.sampler.latent import Latent
from gpukoop.sampler.learning import Learner, certificate
from gpukoop.sampler.recipe import Recipe
from gpukoop.sampler.report import SpectralReport, mode_projector, selection
from gpukoop.sampler.solves import generator, ridge
from gpukoop.sampler.teacher import AbstractTeacher

# An inverse that misses base points by more than this share of their spread is refused: 1 is no better than their mean, and
# without features of time only an exact inverse is known to be right elsewhere, too.
LOST, LOST_TIMELESS = 1.0, 1e-3


@final
class FittedFlow:
    """Flows from N(0, I) to the data: that of all points and, where there are labels, that of each class.

    Parameters
    ----------
    recipe : Recipe
    teacher : teacher or None
    X : array of shape (n, d)
        What to learn from.
    y : array of shape (n,) or None
        Labels.
    params : dict
        Of the estimator: ``latent``, ``random_state``, and ``distill`` and ``reg``, whose "auto" is resolved here, where the
        data are known.

    Attributes
    ----------
    classes : array or None
        Labels.
    learner : Learner
    data : array of shape (n, k)
        What was learned from, in the frame: report and certificate draw from it.
    generator : array of shape (D, D)
        Generator of the first slab, of all classes together.
    certificate : float
        In units of X.
    """

    def __init__(
        self,
        recipe: Recipe,
        teacher: AbstractTeacher | None,
        X: Array,
        y: Any,
        params: dict[str, Any],
    ) -> None:
        self.latent = Latent(params["latent"])
        labels = one_label_each(y, len(X))
        self.classes: Any = None if labels is None else np.unique(labels)
        if teacher is not None and labels is not None:
            raise ValueError(
                "a teacher is one velocity field and y asks for one per label: pass one of the two"
            )
        self.dtype = X.dtype
        self.seed = seed_from(params["random_state"])
        inner = self.latent.fit(X.astype(np.float64), self.seed)
        self.n_latent = int(inner.shape[1])
        labelled = self._groups(inner, labels)
        if teacher is not None:
            frames = {None: Frame.identity(self.n_latent)}
        else:
            whole = Frame.of(to_host(inner))
            frames = {k: Frame.of(to_host(part), whole.size) for k, part in labelled.items()}
        free = teacher is None and labels is None
        recipe = replace(recipe, distill=recipe.distillation(params["distill"], inner, free=free))
        groups = {k: frames[k].data_inside(part) for k, part in labelled.items()}
        self._held: Array | None = None
        if params["reg"] == "auto" and labels is None:
            rng = np.random.default_rng([self.seed, 2**31])
            groups[None], self._held = split_held_out(groups[None], rng)
        self.data = groups[None]
        learners = [Learner(candidate, teacher, self.seed) for candidate in recipe.candidates]
        for learner in learners:
            learner.prepare(frames, groups)
            learner.accumulate(groups)
        self._solve(learners, params["reg"])

    def copy(self) -> FittedFlow:
        """Return a copy that can go on learning: moments are its own, teacher, latent map and dictionaries shared."""
        learner = self.learner
        shared = [learner.teacher, self.latent, learner.frames, learner.lifts, self.data]
        if learner.guide is not None:
            shared += [learner.guide.teacher, learner.guide.lifts]
        return deepcopy(self, {id(part): part for part in shared})

    def learn_more(self, X: Array, y: Any) -> None:
        """Add points of the same law: frames, dictionaries and ridge stay."""
        labels = one_label_each(y, len(X))
        if labels is not None and not np.isin(labels, self.classes).all():
            raise ValueError("y holds labels that the first call had not: its classes are fixed")
        if (labels is None) != (self.classes is None):
            raise ValueError(
                "y was given in one call and not in another: pass labels always or never"
            )
        frames = self.learner.frames
        groups = self._groups(self.latent.encode(X.astype(np.float64)), labels)
        self.learner.accumulate({k: frames[k].data_inside(part) for k, part in groups.items()})
        self._solve([self.learner], self.learner.reg)

    def _groups(self, inner: Array, labels: np.ndarray | None) -> dict[Any, Array]:
        """Return all points under None, then those of each label."""
        groups = {None: inner}
        if labels is not None:
            xp = namespace(inner)
            for label in self.classes.tolist():
                rows = np.flatnonzero(labels == label)
                if len(rows):
                    groups[label] = inner[xp.asarray(rows)]
        return groups

    def _solve(self, learners: list[Learner], reg: Any) -> None:
        """Solve, and keep the learner whose trajectories end nearest to those of the exact flow."""
        errors: dict[Learner, float] = {}
        refusals = []
        for learner in learners:
            try:
                learner.solve(reg, self.data, self._held)
                errors[learner] = learner.error(self.data) if len(learners) > 1 else 0.0
            except ExponentialOverflow as refusal:
                refusals.append(refusal)
        if not errors:
            raise refusals[-1]
        self.learner = learner = min(errors, key=errors.__getitem__)
        pooled = learner.pooled()[0]
        stage = learner.single.stages[0]
        self.generator: np.ndarray = (
            generator(pooled, learner.lifts[0], ridge(pooled, learner.reg))
            if stage.generator is None
            else stage.generator
        )
        self._eigenvalues: np.ndarray | None = None
        self.certificate = certificate(learner, self.data) * learner.frame.size

    def backend(self, asked: str | None) -> str:
        """Return who computes the sampling product."""
        n = max(1, self.learner.lifts[0].n_features)
        centres = np.zeros((n, self.n_latent), dtype=self.dtype)
        product = KernelOperator(Gaussian(1.0), centres, backend=asked)
        return product.explain("product", t=self.n_latent).backend

    def eigenvalues(self) -> np.ndarray:
        """Return those of the generator, the known 0 first, the others by descending real part."""
        if self._eigenvalues is None:
            values = np.linalg.eigvals(self.generator[2:, 2:])
            values = values[np.argsort(-values.real, kind="stable")]
            self._eigenvalues = np.concatenate([[0.0], values])
        return self._eigenvalues.copy()

    def sample(self, n: int, seed: int, y: Any, base: str) -> Array:
        """Return n samples from base points drawn so; without y, labels are drawn as often as in the data."""
        rng = np.random.default_rng([seed, 2**30])
        if y is None and self.classes is not None:
            sizes = np.array([self.learner.sizes[k] for k in self.classes.tolist()], dtype=float)
            share = sizes / sizes.sum()
            if base == "independent":
                y = rng.choice(self.classes, n, p=share)
            else:
                y = rng.permutation(self.classes[drawn_rows(share, n, rng)])
        drawn = np.empty((n, self.n_latent))
        for rows, _, _ in self._split(n, y):  # every label has a sequence of its own
            drawn[rows] = normal_points(len(drawn[rows]), self.n_latent, rng, base)
        reference = namespace(self.data).empty(0, dtype=self.dtype)
        return self.latent.decode(self._transport(like(drawn, reference), 1.0, y))

    def transport(self, base: Array, t: Any, y: Any, modes: Any) -> Array:
        """Return where base points are at time t; ``modes`` keeps some modes of the generator only."""
        if isinstance(t, bool) or not isinstance(t, int | float | np.number) or not 0 <= t <= 1:
            raise ValueError(f"t must be a number in [0, 1], got {t!r}")
        learner = self.learner
        projector = None
        if modes is not None:
            if len(learner.lifts) > 1:
                raise ValueError("modes belong to one generator: fit with n_slabs=1 and no jump")
            # The known 0 stands for constant and time, which are one Jordan block: kept or left together.
            values = self.eigenvalues()
            mask = selection(modes, values)
            projector = mode_projector(self.generator, np.r_[mask[0], mask], np.r_[0, values])
        if projector is not None:
            frame = learner.frame
            inner = learner.single.transport(base, frame.inner_time(float(t)), projector)
            moved = frame.outside(inner, float(t)).astype(base.dtype)
        else:
            moved = base.copy() if t == 0 else self._transport(base, float(t), y)
        return self.latent.decode(moved)

    def _transport(self, base: Array, t: float, y: Any) -> Array:
        out = namespace(base).empty_like(base)
        for rows, evolution, frame in self._split(len(base), y):
            out[rows] = frame.outside(evolution.transport(base[rows], frame.inner_time(t)), t)
        return out

    def trajectory(self, base: Array, times: Any, y: Any) -> Array:
        """Return base points at each of these times, (times, n, d)."""
        at = np.atleast_1d(real_array(times, "times"))
        if (
            at.ndim != 1
            or at.size == 0
            or not np.isfinite(at).all()
            or at.min() < 0
            or at.max() > 1
        ):
            raise ValueError(f"times must be numbers in [0, 1], got {times!r}")
        xp = namespace(base)
        out = xp.empty((len(at), *base.shape), dtype=base.dtype)
        for rows, evolution, frame in self._split(len(base), y):
            inner = np.array([frame.inner_time(float(t)) for t in at])
            moved = evolution.trajectory(base[rows], inner)
            for i, t in enumerate(at):
                out[i, rows] = frame.outside(moved[i], float(t))
        return xp.stack([self.latent.decode(state) for state in out])

    def inverse(self, X: Array, y: Any) -> Array:
        """Return the base points that the flow carries to X."""
        inner = self.latent.encode(X.astype(np.float64))
        out = namespace(inner).empty(inner.shape, dtype=X.dtype)
        for rows, evolution, frame in self._split(len(inner), y):
            self._require_inverse(evolution)
            points_inside = frame.data_inside(inner[rows]).astype(X.dtype)
            out[rows] = evolution.inverse(points_inside)
        return out

    def _require_inverse(self, evolution: Evolution) -> None:
        """Raise unless base points come back: features that cannot tell the times apart may invert nothing."""
        timeless = self.learner.recipe.time_degree == 0 or evolution.stages[0].lift.autonomous
        rng = np.random.default_rng([self.seed, 2**35])
        base = like(rng.standard_normal((256, self.n_latent)), self.data)
        back = evolution.inverse(evolution.transport(base))
        off = float(((back - base) ** 2).mean()) ** 0.5
        if not off < (LOST_TIMELESS if timeless else LOST):
            cause = (
                "as no polynomial in time is among its features"
                if timeless
                else "by these features"
            )
            cure = "time_degree >= 1" if timeless else "solver='sat' or other features"
            raise ValueError(
                f"this flow cannot be inverted {cause}: points of N(0, I) come back {off:.2g} off (root mean square); fit with {cure}"
            )

    def _split(self, n: int, y: Any) -> list[tuple[Any, Evolution, Frame]]:
        """Return (rows, evolution, frame) for the labels wanted."""
        evolutions, frames = self.learner.evolutions, self.learner.frames
        if y is None:
            return [(slice(None), evolutions[None], frames[None])]
        if self.classes is None:
            raise ValueError("y asks for labels, but fit was given none: call fit(X, y)")
        wanted = np.asarray(to_host(y) if hasattr(y, "get") else y)
        if wanted.ndim == 0:
            wanted = np.broadcast_to(wanted, (n,))
        if wanted.shape != (n,):
            raise ValueError(f"y has shape {wanted.shape}, expected one label or ({n},) labels")
        pairs = []
        for label in np.unique(wanted).tolist():
            if label not in evolutions:
                raise ValueError(
                    f"y holds {label!r}, which is none of the labels of fit: {self.classes.tolist()}"
                )
            pairs.append((np.flatnonzero(wanted == label), evolutions[label], frames[label]))
        return pairs

    def report(self, n_seeds: int, n_trajectories: int) -> SpectralReport:
        """Return the spectral report, with refits of other seeds and exact trajectories."""
        learner, others = self.learner, []
        for i in range(1, n_seeds + 1):
            other = Learner(learner.recipe, learner.teacher, self.seed + i)
            other.prepare({None: learner.frame}, {None: self.data})
            other.accumulate({None: self.data})
            m, lift = other.moments[None][0], other.lifts[0]
            others.append(np.linalg.eigvals(generator(m, lift, ridge(m, learner.reg))[2:, 2:]))
        return diagnose(
            learner,
            self.generator,
            self.data,
            others=others,
            n_trajectories=n_trajectories,
            certificate=self.certificate,
        )
