"""The Koopman exponential sampler as an estimator; the mathematics is in ``gpukoop.sampler``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from gpukoop.arrays import Array, Home, like, namespace, points, to_host
from gpukoop.draws import check_count
from gpukoop.flow.loop import seed_from
from gpukoop.kernels.radial import Gaussian
from gpukoop.operator import KernelOperator
from gpukoop.sampler.clock import Frame
from gpukoop.sampler.diagnosis import diagnose
from gpukoop.sampler.evolution import Evolution, generator, ridge
from gpukoop.sampler.latent import Latent
from gpukoop.sampler.learning import Learner, certificate, energy_distance, split_held_out
from gpukoop.sampler.recipe import Recipe
from gpukoop.sampler.report import SpectralReport, mode_projector
from gpukoop.sampler.teacher import as_teacher


class KoopmanSampler(BaseEstimator):
    r"""New samples in one step: a flow from noise to data, made linear by a lift and solved in closed form.

    The path x_t = (1-t) x0 + t x1 from N(0, I) to the data defines a velocity field. Functions g(x, t) = [1, t, x, phi] evolve
    along it by a matrix, d/dt g = g A, learned by regression from a stream of triples (x0, x1, t). A sample costs one
    evaluation of g(x0, 0) and one product with a D x d matrix: no integration, no network, no teacher.

    .. math:: x_1 = g(x_0, 0)\, P, \qquad P = (B_1 - M + \lambda I)^{-1} B_1 C \; (\text{sat}) \quad\text{or}\quad e^{A} C

    Parameters
    ----------
    dictionary : "nystroem", "fourier", "polynomial" or object
        Kernel features at landmarks; random cosines; monomials times Chebyshev polynomials in time (d <= 3); or
        an object with ``features(x, t)`` and ``features_and_jvp(x, t, u)``.
    n_features : int
        Landmarks or cosines, at most the number of data points of a class. Directions below rounding are dropped, so fewer may remain.
    solver : "sat" or "exponential"
        Summation by parts with a boundary penalty: no exponential, an energy identity instead of blow-up. Or the
        exponential of the least-squares generator, which needs its ridge in a narrow window.
    clock : "linear" or "log"
        Time of the exponential and where triples are spent; "log" is 1 - t = e^-s, stable, ends with a denoiser call.
    n_slabs : int
        Few-step sampling: the points are lifted again at the start of each slab.
    reg : float or "auto"
        Ridge >= 0 in units of tr(S)/D; 0 is the minimum-norm solution. "auto" takes what brings samples nearest to held-out
        points, a tenth of the data that is not learned from.
    teacher : object with velocity(x, t), callable or None
        A known velocity field in the units of X; None learns from the data alone. A teacher is not called when sampling.
    degree, time_degree : int
        Of the polynomial dictionary; ``time_degree`` also of the affine part below.
    scale : float or "auto"
        Length of the features, in units of the root mean square deviation of X (of X itself with a teacher). "auto" is
        0.2 (two coordinates) to 1 (ten and more) times the median distance of landmarks.
    time_scale : float
        Their length in t.
    kernel : kernel, optional
        Radial profile of the Nystroem features; its scale multiplies the two lengths. Gaussian by default.
    gaussian_part : bool
        Add features in which Gaussian data are exact: the Gaussian's endpoint map, and x times Chebyshev polynomials in t.
    jump : float or None
        In (0, 1): flow to this time, then one call of the denoiser; 0.8 is a good choice. Two evaluations.
    distill : int or "auto"
        Slabs of a chain whose endpoints the one-step map is regressed on, a third of the features each; 0 takes the map of the
        solver itself. Sharper where modes are separated. "auto" is 8 for the SAT solver in at most 4 coordinates and from
        1,000 unlabelled points without a teacher, else 0. The chain also serves ``t < 1`` and ``invert``.
    n_triples : int or None
        Triples (noise, point, time) of a slab; None is one per data point, but at least 100 and at most 200 per feature.
    n_bins : int
        Times between 0 and 1 at which the SAT solver keeps operators for ``trajectory``; 1 is none.
    symmetrize : bool
        Impose summation by parts on the sampled moments: the energy identity becomes exact.
    latent : None, int, (encode, decode) or object
        Learn in a latent space: so many principal components; two functions; or fit/transform/inverse_transform.
    backend : str, optional
        Who computes kernel sums.
    random_state : None, int, Generator or RandomState
        Noise, landmarks, order of the data.

    Attributes
    ----------
    generator_ : array of shape (D, D)
        Generator of the first slab, of all classes together, per clock time, in the frame of the data.
    eigenvalues_ : complex array
        Of the quotient by constant and time, with the known 0 first; computed when first asked for.
    reg_, reg_path_ : float, list of (reg, energy distance)
    energy_ratio_ : float
        Second moment of the samples over that of the data, in the frame; below 1 by misfit and ridge.
    certificate_ : float
        Bound on the root mean square error of the map against the exact flow, in units of X. Safe, loose; nan with slabs.
    classes_ : array or None
        Labels.
    lift_, n_features_lifted_ : Lift, int
        Dictionary of the generator and its size D.
    backend_ : str
        Who computes the sampling product.

    Notes
    -----
    Cost of a fit: 5 N D^2 flops, streamed in memory O(n_bins D^2), whatever the number of points; of n samples: n D
    features and a product. Accuracy: the map is linear in g(., 0), so its error is at least that of a ridge regression of exact
    endpoints on g(x0, 0). Where modes are well separated the exact map is nearly discontinuous and samples fall in between: use
    ``n_slabs`` or ``jump``. In more than about 16 dimensions use ``latent``.

    References
    ----------
    .. [1] E. Turan, A. Siozopoulos, L. Martinez-Garcia, J. Gaubil, E. Piat, M. Ovsjanikov, Unfolding Generative Flows with
       Koopman Operators, arXiv 2506.22304.
    .. [2] S. Klus et al., Data-driven approximation of the Koopman generator, Physica D 406, 2020.

    Examples
    --------
    >>> import numpy as np, gpukoop as gk
    >>> X = np.random.default_rng(0).normal(size=(500, 2))
    >>> sampler = gk.KoopmanSampler(n_features=50, random_state=0).fit(X)
    >>> sampler.sample(100).shape
    (100, 2)
    """

    classes_: Any
    n_features_in_: int
    _latent: Latent
    _home: Home
    _held: Array | None

    def __init__(
        self,
        dictionary: Any = "nystroem",
        n_features: int = 1000,
        solver: str = "sat",
        clock: str = "linear",
        n_slabs: int = 1,
        reg: Any = "auto",
        teacher: Any = None,
        *,
        degree: int = 4,
        time_degree: int = 6,
        scale: Any = "auto",
        time_scale: float = 1.0,
        kernel: Any = None,
        gaussian_part: bool = True,
        jump: float | None = None,
        distill: Any = "auto",
        n_triples: int | None = None,
        n_bins: int = 8,
        symmetrize: bool = False,
        latent: Any = None,
        backend: str | None = None,
        random_state: Any = None,
    ) -> None:
        self.dictionary = dictionary
        self.n_features = n_features
        self.solver = solver
        self.clock = clock
        self.n_slabs = n_slabs
        self.reg = reg
        self.teacher = teacher
        self.degree = degree
        self.time_degree = time_degree
        self.scale = scale
        self.time_scale = time_scale
        self.kernel = kernel
        self.gaussian_part = gaussian_part
        self.jump = jump
        self.distill = distill
        self.n_triples = n_triples
        self.n_bins = n_bins
        self.symmetrize = symmetrize
        self.latent = latent
        self.backend = backend
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, *, teacher: Any = None) -> KoopmanSampler:
        """Learn the flow from N(0, I) to the law of X.

        Parameters
        ----------
        X : array of shape (n, d)
        y : array of shape (n,), optional
            Labels: then one operator is learned for each label beside that of all points.
        teacher : object with velocity(x, t) or callable, optional
            Takes the place of the parameter of this name.

        Returns
        -------
        KoopmanSampler
            Itself.

        Raises
        ------
        ValueError, TypeError
            If the data or a parameter cannot be used; the message says which and what to do.
        """
        field = as_teacher(self.teacher if teacher is None else teacher)
        recipe = Recipe.checked(self.get_params(deep=False))
        native, labels = self._begin(X, y)
        if field is not None and labels is not None:
            raise ValueError(
                "a teacher is one velocity field and y asks for one per label: pass one of the two"
            )
        seed = self._seed = seed_from(self.random_state)
        inner = self._latent.fit(native, seed)
        self.n_latent_ = int(inner.shape[1])
        labelled = self._groups(inner, labels)
        if field is not None:
            frames = {None: Frame.identity(self.n_latent_)}
        else:
            whole = Frame.of(to_host(inner))
            frames = {k: Frame.of(to_host(part), whole.size) for k, part in labelled.items()}
        recipe = replace(
            recipe,
            distill=recipe.distillation(self.distill, inner, free=field is None and labels is None),
        )
        self._learner = Learner(recipe, field, seed)
        groups = {k: frames[k].data_inside(part) for k, part in labelled.items()}
        self._held = None
        if self.reg == "auto" and labels is None:
            rng = np.random.default_rng([seed, 2**31])
            groups[None], self._held = split_held_out(groups[None], rng)
        self._learner.prepare(frames, groups)
        self._learner.accumulate(groups)
        self._data = groups[None]  # in the frame: report and certificate draw from it
        return self._finish()

    def partial_fit(self, X: Any, y: Any = None) -> KoopmanSampler:
        """Learn from more points of the same law: frame, dictionary and ridge stay those of the first call.

        Memory does not grow with the number of calls; the result is that of one pass over all points.
        """
        if not hasattr(self, "_learner"):
            return self.fit(X, y)
        native, labels = self._begin(X, y, more=True)
        if (labels is None) != (self.classes_ is None):
            raise ValueError(
                "y was given in one call and not in another: pass labels always or never"
            )
        frames = self._learner.frames
        groups = self._groups(self._latent.encode(native), labels)
        self._learner.accumulate({k: frames[k].data_inside(part) for k, part in groups.items()})
        return self._finish(self.reg_)

    def _begin(self, X: Any, y: Any, more: bool = False) -> tuple[Array, np.ndarray | None]:
        """Validate data and labels; returns float64 points."""
        native, home = points(X, "X")
        if more:
            self._same_features(native, "X", self.n_features_in_)
        else:
            self.n_features_in_ = int(native.shape[1])
            self._home = home
            self._dtype = native.dtype
            self._latent = Latent(self.latent)
        labels = None
        if y is not None:
            labels = np.asarray(to_host(y))
            if labels.shape != (len(native),):
                raise ValueError(
                    f"y has shape {labels.shape}, expected one label for each of {len(native)} rows of X"
                )
        if not more:
            self.classes_ = None if labels is None else np.unique(labels)
        elif labels is not None and not np.isin(labels, self.classes_).all():
            raise ValueError("y holds labels that the first call had not: its classes are fixed")
        return native.astype(np.float64), labels

    def _groups(self, inner: Array, labels: np.ndarray | None) -> dict[Any, Array]:
        """Return all points under None, then those of each label."""
        groups = {None: inner}
        if labels is not None:
            xp = namespace(inner)
            for label in self.classes_.tolist():
                rows = np.flatnonzero(labels == label)
                if len(rows):
                    groups[label] = inner[xp.asarray(rows)]
        return groups

    def _finish(self, reg: float | None = None) -> KoopmanSampler:
        learner = self._learner
        learner.solve(self.reg if reg is None else reg, self._held)
        pooled = learner.pooled()[0]
        self.reg_, self.reg_path_ = learner.reg, learner.reg_path
        lift = learner.lifts[0]
        stage = learner.single.stages[0]
        self.generator_ = (
            generator(pooled, lift, ridge(pooled, self.reg_))
            if stage.generator is None
            else stage.generator
        )
        self.__dict__.pop("_eigenvalues", None)
        self.lift_, self.n_features_lifted_ = lift, lift.n_features
        self.energy_ratio_ = learner.evolutions[None].energy_ratio
        self.certificate_ = certificate(learner, self._data) * learner.frame.size
        centres = np.zeros((max(1, lift.n_features), self.n_latent_), dtype=self._dtype)
        self.backend_ = (
            KernelOperator(Gaussian(1.0), centres, backend=self.backend)
            .explain("product", t=self.n_latent_)
            .backend
        )
        return self

    @property
    def eigenvalues_(self) -> np.ndarray:
        """Eigenvalues of the generator, the known 0 first, the others by descending real part."""
        check_is_fitted(self)
        if "_eigenvalues" not in self.__dict__:
            values = np.linalg.eigvals(self.generator_[2:, 2:])
            values = values[np.argsort(-values.real, kind="stable")]
            self._eigenvalues = np.concatenate([[0.0], values])
        return self._eigenvalues

    def sample(self, n_samples: int = 1, random_state: Any = None, *, y: Any = None) -> Array:
        """Draw noise and return where the flow carries it.

        Parameters
        ----------
        n_samples : int
            At least 1; memory grows with n_samples times d only.
        random_state : None, int, Generator or RandomState
            None takes the estimator's.
        y : label or array of shape (n_samples,), optional
            Wanted labels; without it labels are drawn as often as in the data.

        Returns
        -------
        array of shape (n_samples, d)
            Library, device and dtype of X.
        """
        check_is_fitted(self)
        n = check_count(n_samples, "n_samples")
        seed = seed_from(self.random_state if random_state is None else random_state)
        rng = np.random.default_rng([seed, 2**30])
        base = like(rng.standard_normal((n, self.n_latent_)), self._reference())
        if y is None and self.classes_ is not None:
            sizes = np.array([self._learner.sizes[k] for k in self.classes_.tolist()], dtype=float)
            y = rng.choice(self.classes_, n, p=sizes / sizes.sum())
        return self._home.restore(self._decode(self._transport(base, 1.0, y)))

    def transport(self, Z: Any, t: float = 1.0, *, y: Any = None, modes: Any = None) -> Array:
        """Return where the flow carries base points by time t.

        Parameters
        ----------
        Z : array of shape (n, d)
            Points of N(0, I); with ``latent``, of the latent space.
        t : float
            In [0, 1].
        y : label or array of shape (n,), optional
            Without it the operator of all classes together moves the points.
        modes : callable or sequence of int, optional
            Keep only these modes of the generator (one slab): ``modes(eigenvalues) -> mask`` or indices; see
            :func:`gpukoop.sampler.mode_projector`.

        Returns
        -------
        array of shape (n, d)
            Library, device and dtype of Z.
        """
        native, home = self._base(Z)
        if isinstance(t, bool) or not isinstance(t, int | float | np.number) or not 0 <= t <= 1:
            raise ValueError(f"t must be a number in [0, 1], got {t!r}")
        projector = None
        if modes is not None:
            if len(self._learner.lifts) > 1:
                raise ValueError("modes belong to one generator: fit with n_slabs=1 and no jump")
            projector = mode_projector(self.generator_, modes)
        if projector is not None:
            frame = self._learner.frame
            inner = self._learner.single.transport(native, frame.inner_time(float(t)), projector)
            moved = frame.outside(inner, float(t)).astype(native.dtype)
        else:
            moved = native.copy() if t == 0 else self._transport(native, float(t), y)
        return home.restore(self._decode(moved))

    def trajectory(self, Z: Any, times: Any, *, y: Any = None) -> Array:
        """Return base points at each of these times, (times, n, d); all times of a slab in one product.

        Parameters
        ----------
        Z : array of shape (n, d)
            Points at time 0.
        times : sequence of float
            In [0, 1], in any order. Between the kept times of the SAT solver a cubic spline is read; the
            exponential is exact at every time.
        y : label or array of shape (n,), optional
        """
        native, home = self._base(Z)
        at = np.atleast_1d(np.asarray(times, dtype=float))
        if (
            at.ndim != 1
            or at.size == 0
            or not np.isfinite(at).all()
            or at.min() < 0
            or at.max() > 1
        ):
            raise ValueError(f"times must be numbers in [0, 1], got {times!r}")
        xp = namespace(native)
        out = xp.empty((len(at), *native.shape), dtype=native.dtype)
        for rows, evolution, frame in self._split(len(native), y):
            inner = np.array([frame.inner_time(float(t)) for t in at])
            moved = evolution.trajectory(native[rows], inner)
            for i, t in enumerate(at):
                out[i, rows] = frame.outside(moved[i], float(t))
        return home.restore(xp.stack([self._decode(state) for state in out]))

    def invert(self, X: Any, *, y: Any = None) -> Array:
        """Return the base points that the flow carries to X, (n, d); with ``latent``, in the latent space.

        A solve of its own with the other sign, not exp(-A), which amplifies every decaying mode.
        """
        check_is_fitted(self)
        native, home = points(X, "X")
        self._same_features(native, "X", self.n_features_in_)
        inner = self._latent.encode(native.astype(np.float64))
        out = namespace(inner).empty(inner.shape, dtype=native.dtype)
        for rows, evolution, frame in self._split(len(inner), y):
            points_inside = frame.data_inside(inner[rows]).astype(native.dtype)
            out[rows] = evolution.inverse(points_inside)
        return home.restore(out)

    def spectral_report(self, *, n_seeds: int = 0, n_trajectories: int = 0) -> SpectralReport:
        """Return the spectrum of the generator with everything that says how far to trust it.

        Parameters
        ----------
        n_seeds : int
            Refits with other seeds; the report then holds the largest distance of each leading eigenvalue to the nearest
            of theirs.
        n_trajectories : int
            Base points whose exact flow (of the teacher, or of the data) is integrated, for the closure residual of the
            lift and the fidelity of trajectories at t = .25, .5, .75, 1. 500 cost a few seconds.

        Returns
        -------
        SpectralReport
            Of the quotient by constant and time; ``str()`` is a page of text.
        """
        check_is_fitted(self)
        check_count(n_seeds, "n_seeds", least=0)
        check_count(n_trajectories, "n_trajectories", least=0)
        others = []
        for i in range(1, n_seeds + 1):
            other = Learner(self._learner.recipe, self._learner.teacher, self._seed + i)
            other.prepare({None: self._learner.frame}, {None: self._data})
            other.accumulate({None: self._data})
            m, lift = other.moments[None][0], other.lifts[0]
            others.append(np.linalg.eigvals(generator(m, lift, ridge(m, self.reg_))[2:, 2:]))
        return diagnose(
            self._learner,
            self.generator_,
            self._data,
            others=others,
            n_trajectories=n_trajectories,
            certificate=self.certificate_,
        )

    def score(self, X: Any, y: Any = None) -> float:
        """Return minus the energy distance between X and as many samples; about 0 is as good as fresh data."""
        check_is_fitted(self)
        native, _ = points(X, "X")
        self._same_features(native, "X", self.n_features_in_)
        drawn = like(self.sample(len(native)), native)
        return -energy_distance(drawn, native, self.backend)

    def _base(self, Z: Any) -> tuple[Array, Home]:
        check_is_fitted(self)
        native, home = points(Z, "Z")
        self._same_features(native, "Z", self.n_latent_)
        return native, home

    def _same_features(self, native: Array, name: str, expected: int) -> None:
        if native.shape[1] != expected:
            raise ValueError(
                f"{name} has {native.shape[1]} features, but {type(self).__name__} is expecting {expected} features "
                "as input: the columns of the X it was fitted to, or of its latent space"
            )

    def _reference(self) -> Array:
        xp = namespace(self._data)
        return xp.empty(0, dtype=self._dtype)

    def _split(self, n: int, y: Any) -> list[tuple[Any, Evolution, Frame]]:
        """Return (rows, evolution, frame) for the labels wanted."""
        evolutions, frames = self._learner.evolutions, self._learner.frames
        if y is None:
            return [(slice(None), evolutions[None], frames[None])]
        if self.classes_ is None:
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
                    f"y holds {label!r}, which is none of the labels of fit: {self.classes_.tolist()}"
                )
            pairs.append((np.flatnonzero(wanted == label), evolutions[label], frames[label]))
        return pairs

    def _transport(self, base: Array, t: float, y: Any) -> Array:
        out = namespace(base).empty_like(base)
        for rows, evolution, frame in self._split(len(base), y):
            out[rows] = frame.outside(evolution.transport(base[rows], frame.inner_time(t)), t)
        return out

    def _decode(self, latent: Array) -> Array:
        return self._latent.decode(latent)


__all__ = ["KoopmanSampler"]
