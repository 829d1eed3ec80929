"""The parameters of a fit, checked, and the dictionary that they and the data make."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, final

import numpy as np
from scipy.spatial.distance import pdist

from gpukoop.arrays import Array, like, namespace, to_host
from gpukoop.draws import BASES, check_count, check_flag, check_positive
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.sampler.clock import Clock
from gpukoop.sampler.evolution import Options
from gpukoop.sampler.fourier import FourierFeatures
from gpukoop.sampler.latent import Latent
from gpukoop.sampler.lifting import AbstractFeatures, Lift, UserFeatures, is_features
from gpukoop.sampler.nystroem import NystroemFeatures
from gpukoop.sampler.polynomial import EndpointFeatures, PolynomialFeatures, quantile_box
from gpukoop.sampler.teacher import as_teacher

# Beyond this many coordinates the products of x with Chebyshev polynomials in t outnumber the kernel features.
MAX_AFFINE = 32
MEDIAN_SAMPLE = 1_000
MIN_FEATURES = 20
# Fewer points than this are few: half as many features then do as well (see ``learning``).
FEW_POINTS = 1_000
# Length of the features over the median distance of landmarks: 0.1 d within these bounds. Two dimensions want short lengths (0.2
# was best of 0.13, 0.2, 0.35, 0.5 on eight Gaussians and on a checkerboard); in ten, neighbours are as far as anyone.
SCALE_FACTORS = (0.2, 1.0)
# When "auto" distills: where the gain was measured, in the plane, and where a chain costs seconds.
DISTILL_SLABS, DISTILL_POINTS, DISTILL_COORDINATES = 8, 1_000, 4
SAT_TIME_DEGREE = 6
# More takes trajectories of the exponential off the data, fewer cannot follow them (mixture at t = 1: 2.5 off with 1, .36 with
# 2, 1.5 with 6).
EXPONENTIAL_TIME_DEGREE = 2
# Of polynomials in x. The exponential tries several: 4 is best on eight laws of eleven, and .44 off where 3 is .07 off on a narrow
# Gaussian, 1.3 where 2 is .32 off on exponential variates in three dimensions.
SAT_DEGREE, EXPONENTIAL_DEGREES = 4, (4, 3, 2)
DICTIONARIES = ("nystroem", "fourier", "polynomial")


@final
@dataclass(frozen=True)
class Recipe:
    """The parameters of a fit that are not data; see ``KoopmanSampler`` for their meaning."""

    dictionary: Any = "nystroem"
    n_features: int = 1000
    solver: str = "sat"
    clock: Clock = field(default_factory=Clock)
    n_slabs: int = 1
    jump: float | None = None
    degree: int = SAT_DEGREE
    any_degree: bool = False
    time_degree: int = 6
    scale: float | None = None
    time_scale: float = 1.0
    kernel: AbstractKernel | None = None
    gaussian_part: bool = True
    n_triples: int | None = None
    n_bins: int = 8
    symmetrize: bool = False
    backend: str | None = None
    distill: int = 0
    verbose: int = 0

    @classmethod
    def checked(cls, params: dict[str, Any]) -> Recipe:
        """Return the recipe of an estimator's parameters, or raise in words."""
        given = params.__getitem__
        dictionary, solver, jump, kernel = (
            given(k) for k in ("dictionary", "solver", "jump", "kernel")
        )
        known = (
            dictionary in DICTIONARIES if isinstance(dictionary, str) else is_features(dictionary)
        )
        if not known:
            raise (ValueError if isinstance(dictionary, str) else TypeError)(
                f"dictionary must be one of {', '.join(map(repr, DICTIONARIES))} or an object with features(x, t) and "
                f"features_and_jvp(x, t, u), got {dictionary!r}"
            )
        if not isinstance(solver, str) or solver not in ("sat", "exponential"):
            raise ValueError(f"solver must be 'sat' or 'exponential', got {solver!r}")
        clock = Clock.named(given("clock"))
        if not isinstance(given("base"), str) or given("base") not in BASES:
            raise ValueError(
                f"base must be one of {', '.join(map(repr, BASES))}, got {given('base')!r}"
            )
        Latent(given("latent"))
        as_teacher(given("teacher"))
        if not _is_auto(given("distill")):
            check_count(given("distill"), "distill", least=0)
        if not _is_auto(given("reg")):
            check_positive(given("reg"), "reg", zero=True)
        if jump is not None:
            check_positive(jump, "jump")
            if jump >= 1 or clock.log or given("n_slabs") != 1:
                raise ValueError(
                    f"jump={jump!r} needs a number in (0, 1), clock='linear' and n_slabs=1"
                )
        if kernel is not None and not isinstance(kernel, AbstractKernel):
            raise TypeError(f"kernel is {kernel!r}, expected a kernel such as Gaussian(1.0)")
        n_triples = given("n_triples")
        return cls(
            dictionary=dictionary,
            n_features=check_count(given("n_features"), "n_features"),
            solver=solver,
            clock=clock,
            n_slabs=check_count(given("n_slabs"), "n_slabs"),
            jump=jump,
            degree=SAT_DEGREE
            if _is_auto(given("degree"))
            else check_count(given("degree"), "degree"),
            any_degree=_is_auto(given("degree")),
            time_degree=_time_degree(given("time_degree"), solver),
            scale=None if _is_auto(given("scale")) else check_positive(given("scale"), "scale"),
            time_scale=check_positive(given("time_scale"), "time_scale"),
            kernel=kernel,
            gaussian_part=check_flag(given("gaussian_part"), "gaussian_part"),
            n_triples=None if n_triples is None else check_count(n_triples, "n_triples"),
            n_bins=check_count(given("n_bins"), "n_bins"),
            symmetrize=check_flag(given("symmetrize"), "symmetrize"),
            backend=given("backend"),
            verbose=int(given("verbose")),
        )

    def distillation(self, requested: Any, data: Array, *, free: bool) -> int:
        """Return the number of slabs to distill the one-step map from.

        Parameters
        ----------
        requested : int or "auto"
        data : array of shape (n, d)
        free : bool
            Whether there is neither a teacher nor labels.
        """
        possible = self.solver == "sat" and not self.clock.log and self.n_slabs == 1
        possible = possible and self.jump is None
        n, d = data.shape
        if _is_auto(requested):
            kernels = isinstance(self.dictionary, str) and self.dictionary != "polynomial"
            small = n < DISTILL_POINTS or d > DISTILL_COORDINATES
            return DISTILL_SLABS if possible and free and kernels and not small else 0
        slabs = check_count(requested, "distill", least=0)
        if slabs and not (possible and free):
            raise ValueError(
                f"distill={slabs} needs solver='sat', clock='linear', n_slabs=1, no jump, no teacher and no labels: pass "
                "distill=0"
            )
        return slabs

    @property
    def slabs(self) -> list[tuple[float, float]]:
        """Slabs in clock time: equal parts, or two that meet at the jump."""
        if self.jump is not None:
            return [(0.0, self.jump), (self.jump, 1.0)]
        edges = np.linspace(0.0, self.clock.horizon, self.n_slabs + 1)
        return [(float(a), float(b)) for a, b in pairwise(edges)]

    @property
    def candidates(self) -> list[Recipe]:
        """Recipes to choose from by trajectories: one, but for the exponential of polynomials whose degree nobody gave."""
        polynomials = isinstance(self.dictionary, str) and self.dictionary == "polynomial"
        if self.any_degree and polynomials and self.solver == "exponential":
            return [replace(self, degree=p) for p in EXPONENTIAL_DEGREES]
        return [self]

    def options(self, j: int) -> Options:
        """Return how slab j becomes a stage."""
        final_call = "none"
        if j == len(self.slabs) - 1:
            final_call = "jump" if self.jump is not None else "finish" if self.clock.log else "none"
        return Options(self.solver, self.symmetrize, final_call)

    def ends(self, j: int) -> tuple[bool, bool]:
        """Return whether the denoiser is wanted at the ends of slab j."""
        final_call = self.options(j).final
        return final_call == "jump", final_call == "finish"


def build_lift(
    recipe: Recipe,
    data: Array,
    slab: tuple[float, float],
    rng: np.random.Generator,
    n_classes: int = 1,
) -> Lift:
    """Return the dictionary of one slab, from points of the path in it.

    Parameters
    ----------
    recipe : Recipe
    data : array of shape (n, d)
        In the frame.
    slab : (float, float)
        In clock time.
    rng : numpy Generator
        Draws landmarks or frequencies, on the host.
    n_classes : int
        Classes that share the dictionary.
    """
    n, d = data.shape
    xp = namespace(data)
    # No more features than points of a class: more would only memorise.
    enough = n // 2 if n < FEW_POINTS else n
    M = min(recipe.n_features, n, max(MIN_FEATURES, enough // n_classes))
    rows = max(M, min(MEDIAN_SAMPLE, n))
    chosen = rng.permutation(n)[:rows] if rows <= n else rng.integers(n, size=rows)
    noise = like(rng.standard_normal((rows, d)), data)
    s = slab[0] + (slab[1] - slab[0]) * rng.random(rows)
    t = xp.asarray(recipe.clock.time(s))
    x = (1 - t)[:, None] * noise + t[:, None] * data[xp.asarray(chosen)]
    host = to_host(x)
    dictionary = recipe.dictionary
    blocks: list[AbstractFeatures] = []
    if isinstance(dictionary, str) and dictionary == "polynomial":
        centre, half = quantile_box(host)
        blocks.append(
            PolynomialFeatures(d, recipe.degree, recipe.time_degree, centre=centre, half_width=half)
        )
        return Lift(d, blocks, recipe.clock)
    if recipe.gaussian_part:
        blocks += _gaussian_part(recipe, data)
    if not isinstance(dictionary, str):
        blocks.append(UserFeatures(dictionary, d))
        return Lift(d, blocks, recipe.clock)
    scale = recipe.scale
    if scale is None:
        distances = pdist(host[:MEDIAN_SAMPLE])
        median = float(np.median(distances)) if len(distances) else 0.0
        low, high = SCALE_FACTORS
        scale = min(high, max(low, 0.1 * d)) * median if median > 0 else 1.0
    if dictionary == "fourier":
        blocks.append(FourierFeatures(d, M, scale=2 * scale, time_scale=recipe.time_scale, rng=rng))
    else:
        blocks.append(
            NystroemFeatures(
                x[:M],
                t[:M],
                scale=scale,
                time_scale=recipe.time_scale,
                kernel=recipe.kernel,
                backend=recipe.backend,
            )
        )
    return Lift(d, blocks, recipe.clock)


def _gaussian_part(recipe: Recipe, data: Array) -> list[AbstractFeatures]:
    """Return features in which Gaussian data are exact, whatever their class: the endpoint map, and x times T_k(t)."""
    d = data.shape[1]
    rows = to_host(data[: 100 * MEDIAN_SAMPLE])
    mean = rows.mean(axis=0)
    covariance = np.atleast_2d(np.cov(rows.T, bias=True))
    blocks: list[AbstractFeatures] = []
    if np.trace(covariance) > 0:
        blocks.append(EndpointFeatures(mean, covariance))
    if recipe.time_degree > 0 and d <= MAX_AFFINE:
        blocks.append(PolynomialFeatures(d, 1, recipe.time_degree))
    return blocks


def _time_degree(value: Any, solver: str) -> int:
    """Return the degree in time, the default by the solver; see ``KoopmanSampler``."""
    if not _is_auto(value):
        return check_count(value, "time_degree", least=0)
    return SAT_TIME_DEGREE if solver == "sat" else EXPONENTIAL_TIME_DEGREE


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == "auto"
