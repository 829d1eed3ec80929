"""The Koopman exponential sampler as an estimator; the mathematics is in ``gpukoop.sampler``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from gpukoop.arrays import Array, unchecked
from gpukoop.draws import check_count
from gpukoop.estimators.kept import kept
from gpukoop.estimators.verdict import JudgedMixin
from gpukoop.estimators.weights import repeated
from gpukoop.fitted import framed, own_points, remember_columns, whole
from gpukoop.flow.loop import seed_from
from gpukoop.parameters import check_points, check_shared
from gpukoop.persistence import PersistentEstimator
from gpukoop.sampler.fitting import FittedFlow
from gpukoop.sampler.recipe import Recipe
from gpukoop.sampler.report import SpectralReport
from gpukoop.sampler.teacher import as_teacher


class KoopmanSampler(JudgedMixin, PersistentEstimator):
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
        Landmarks or cosines, at most as many as points of a class, or half of fewer than 1,000; directions of rounding are dropped.
    solver : "sat" or "exponential"
        Summation by parts with a boundary penalty: no exponential, an energy identity instead of blow-up. Or the
        exponential of the least-squares generator, which needs its ridge in a narrow window.
    clock : "linear" or "log"
        Time of the exponential and where triples are spent; "log" is 1 - t = e^-s, stable, ends with a denoiser call.
    n_slabs : int
        Few-step sampling: the points are lifted again at the start of each slab.
    reg : float or "auto"
        Ridge >= 0 in units of tr(S)/D; 0 is the minimum-norm solution. "auto" brings samples nearest to a held-out tenth of the
        data; for the exponential, trajectories nearest to those of the exact flow (of the teacher, or of 1,000 points).
    teacher : object with velocity(x, t), callable or None
        A known velocity field in the units of X; None learns from the data alone. A teacher is not called when sampling.
    degree, time_degree : int or "auto"
        Of the polynomial dictionary; ``time_degree`` also of the affine part below. "auto": 4 and 6 for SAT; for the exponential
        4, 3 or 2, by trajectories as ``reg``, and 2: more takes them off the data (moons at t = 1: .19 off with 2, .36 with 6).
    scale, time_scale : float or "auto", float
        Length of the features, in units of the root mean square deviation of X (of X itself with a teacher), and in t. "auto"
        is 0.2 (two coordinates) to 1 (ten and more) times the median distance of landmarks.
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
    n_triples, n_bins : int or None, int
        Triples (noise, point, time) of a slab; None is one per data point, but at least 100 (of fewer than 1,000 points 40) and
        at most 200 per feature. Times between 0 and 1 at which the SAT solver keeps operators for ``trajectory``; 1 is none.
    symmetrize : bool
        Impose summation by parts on the sampled moments: the energy identity becomes exact.
    latent : None, int, (encode, decode) or object
        Learn in a latent space: so many principal components; two functions; or fit/transform/inverse_transform.
    base : "sobol" or "independent"
        Base points of :meth:`sample`. "sobol": a scrambled sequence [3]_ for each label (its first 16 coordinates), in random order.
        A sample has the law of an independent one, but those of one call depend on each other: their means vary less, so that
        s / sqrt(n) is too large an error, and tests that ask for independent draws want "independent". Calls with other seeds
        are independent.
    backend, verbose : str, optional, and int
        Who computes kernel sums; 1: a progress bar, with the time left.
    random_state : None, int, Generator or RandomState
        Noise, landmarks, order of the data.

    Attributes
    ----------
    generator_ : array of shape (D, D)
        Generator of the first slab, of all classes together, per clock time, in the frame of the data.
    eigenvalues_ : complex array
        Of the quotient by constant and time, with the known 0 first; computed when first asked for.
    reg_, reg_path_ : float, list of (reg, energy distance or, for the exponential, distance of endpoints in the frame)
    energy_ratio_ : float
        Second moment of the samples over that of the data, in the frame; below 1 by misfit and ridge.
    certificate_ : float
        Bound on the root mean square error of the map against the exact flow, in units of X. Safe, loose; nan with slabs.
    lift_, n_features_lifted_, classes_, backend_ : Lift, int, array or None, str
        Dictionary of the generator and its size D; labels; who computes the sampling product.

    Notes
    -----
    Cost of a fit: 5 N D^2 flops, streamed in memory O(n_bins D^2), whatever the number of points; of n samples: n D
    features and a product. Accuracy: the map is linear in g(., 0), so its error is at least that of a ridge regression of exact
    endpoints on g(x0, 0). Where modes are well separated the exact map is nearly discontinuous and samples fall in between: use
    ``n_slabs`` or ``jump``. In more than about 16 dimensions use ``latent``. No column is standardised: the path mixes noise and data
    in one unit, so a column 100 times narrower than the others keeps its width and loses its details. Standardise it before.

    References
    ----------
    .. [1] E. Turan, A. Siozopoulos, L. Martinez, J. Gaubil, E. Pierson, M. Ovsjanikov, Unfolding Generative Flows with
       Koopman Operators, arXiv 2506.22304.
    .. [2] S. Klus et al., Data-driven approximation of the Koopman generator, Physica D 406, 2020.
    .. [3] A. B. Owen, Scrambling Sobol' and Niederreiter-Xing points, J. Complexity 14, 1998.

    Examples
    --------
    >>> import numpy as np, gpukoop as gk
    >>> X = np.random.default_rng(0).normal(size=(500, 2))
    >>> sampler = gk.KoopmanSampler(n_features=50, random_state=0).fit(X)
    >>> sampler.sample(100).shape
    (100, 2)
    """

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
        degree: Any = "auto",
        time_degree: Any = "auto",
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
        base: str = "sobol",
        backend: str | None = None,
        random_state: Any = None,
        verbose: int = 0,
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
        self.base = base
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
        teacher: Any = None,
        checkpoint: str | Path | None = None,
    ) -> KoopmanSampler:
        """Learn the flow from N(0, I) to the law of X.

        Parameters
        ----------
        X, y : arrays of shape (n, d) and (n,), y optional
            Samples and labels: then one operator is learned for each label beside that of all points.
        sample_weight : array of shape (n,), optional
            Weights >= 0: rows are repeated, whole multiples of a common unit exactly, others to the nearest of 10 n rows.
        teacher, checkpoint : object with velocity(x, t) or callable, and path, optional
            Takes the place of the parameter of this name. What was learned is written to the file, and the same call later
            reads it: a pickle, name only files that you trust.

        Returns
        -------
        KoopmanSampler
        """
        field = as_teacher(self.teacher if teacher is None else teacher)
        recipe, params = self._check_parameters(), self.get_params(deep=False)
        native, home = own_points(X, "X")
        remember_columns(self, X)
        native, y = repeated(sample_weight, native, y)
        # samples are kept for the verdict; the law of later points is the same
        self._home, self.n_features_in_, self.X_ = home, int(native.shape[1]), native
        with unchecked():  # X has been looked at
            return self._publish(FittedFlow(recipe, field, native, y, params))

    @whole
    def partial_fit(self, X: Any, y: Any = None) -> KoopmanSampler:
        """Learn from more points of the same law: frame, dictionary and ridge stay those of the first call.

        Memory does not grow with the number of calls; the result is that of one pass over all points.
        """
        if not hasattr(self, "_flow"):
            return self.fit(X, y)
        native, _ = check_points(self, X, "X")
        flow = self._flow.copy()  # a failure half-way must not spoil the moments of earlier calls
        flow.learn_more(native, y)
        return self._publish(flow)

    def _check_parameters(self) -> Recipe:
        """Return the recipe that the parameters ask for; raise if one is out of range."""
        check_shared(self)
        return Recipe.checked(self.get_params(deep=False))

    def _publish(self, flow: FittedFlow) -> KoopmanSampler:
        self._flow, learner = flow, flow.learner
        self.classes_, self.n_latent_ = flow.classes, flow.n_latent
        self.reg_, self.reg_path_ = learner.reg, learner.reg_path
        self.generator_ = flow.generator
        self.lift_, self.n_features_lifted_ = learner.lifts[0], learner.lifts[0].n_features
        self.energy_ratio_ = learner.evolutions[None].energy_ratio
        self.certificate_ = flow.certificate
        self.backend_ = flow.backend(self.backend)
        return self

    @property
    def eigenvalues_(self) -> np.ndarray:
        """Eigenvalues of the generator, the known 0 first, the others by descending real part."""
        check_is_fitted(self)
        return self._flow.eigenvalues()

    @framed
    def sample(self, n_samples: int = 1, random_state: Any = None, *, y: Any = None) -> Array:
        """Draw base points and return where the flow carries them.

        Parameters
        ----------
        n_samples : int
            At least 1; memory grows with n_samples times d only.
        random_state : optional
            None takes the estimator's.
        y : label or array of shape (n_samples,), optional
            Wanted labels; without it labels are drawn as often as in the data.

        Returns
        -------
        array of shape (n_samples, d)
            Library, device and dtype of X; a frame with its columns if ``fit`` was given one.
        """
        check_is_fitted(self)
        self._check_parameters()
        n = check_count(n_samples, "n_samples")
        seed = seed_from(self.random_state if random_state is None else random_state)
        return self._home.restore(self._flow.sample(n, seed, y, self.base))

    def transport(self, Z: Any, t: float = 1.0, *, y: Any = None, modes: Any = None) -> Array:
        """Return where the flow carries base points by time t, (n, d), in the library, device and dtype of Z.

        Parameters
        ----------
        Z : array of shape (n, d)
            Points of N(0, I); with ``latent``, of the latent space.
        t : float
            In [0, 1].
        y : label or array of shape (n,), optional
            Without it the operator of all classes together moves the points.
        modes : callable or sequence of int, optional
            Modes of the only slab to keep, by indices into ``eigenvalues_`` (0: constant and time), a mask, or a function of it.
        """
        native, home = check_points(self, Z, "Z", "n_latent_")
        return home.restore(self._flow.transport(native, t, y, modes))

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
        native, home = check_points(self, Z, "Z", "n_latent_")
        return home.restore(self._flow.trajectory(native, times, y))

    def invert(self, X: Any, *, y: Any = None) -> Array:
        """Return the base points that the flow carries to X, (n, d); with ``latent``, in the latent space.

        A solve of its own; exp(-A) where no feature depends on time. A ValueError where points of N(0, I) do not come back.
        """
        native, home = check_points(self, X, "X")
        return home.restore(self._flow.inverse(native, y))

    def spectral_report(self, *, n_seeds: int = 0, n_trajectories: int = 0) -> SpectralReport:
        """Return the spectrum of the generator with everything that says how far to trust it.

        Parameters
        ----------
        n_seeds, n_trajectories : int
            Refits with other seeds: the largest distance of each leading eigenvalue to the nearest of theirs. Base points whose
            exact flow (of the teacher, or of the data) is integrated, for the closure residual of the lift and the fidelity of
            trajectories at t = .25, .5, .75, 1; 500 cost a few seconds.

        Returns
        -------
        SpectralReport
            Of the quotient by constant and time; ``str()`` is a page of text.
        """
        check_is_fitted(self)
        check_count(n_seeds, "n_seeds", least=0)
        check_count(n_trajectories, "n_trajectories", least=0)
        return self._flow.report(n_seeds, n_trajectories)
