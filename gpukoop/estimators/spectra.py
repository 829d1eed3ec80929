"""The spectra that KSWGD follows: the one asked for, and a wide one for particles outside the data."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from gpukoop.arrays import Array, like, to_host
from gpukoop.estimators.start import in_different_units
from gpukoop.estimators.weights import host_weight
from gpukoop.kernels.formula.catalogue import Gaussian
from gpukoop.kernels.formula.lengths import isotropic
from gpukoop.operator import median_scale
from gpukoop.spectrum import DiffusionMap, KernelEDMD
from gpukoop.spectrum.base import check_kernel
from gpukoop.spectrum.coordinates import is_auto
from gpukoop.spectrum.dictionary import DictionaryFunctions
from gpukoop.spectrum.modes import CARRIERS

# Coarse-to-fine: half of the time, a diffusion map of this factor the scale, or of the median rule's if that is larger. Left
# out for a diffusion map whose own kernel is at most this factor narrower than the median rule: it reaches particles far
# from the data by itself. EDMD keeps the modes that its pairs can tell from noise (18 to 51 on the quadruple well), too few to
# bring particles in: mean V ends at 1.35 without the first half, at .83 with it (exact .8345).
COARSE_RATIO = 1.5
COARSE_LANDMARKS = 1_000
# Samples that decide whether a mode is carried by many.
JUDGES = 20_000
# Enough that the end state on the quadruple well and the torus is at the iid floor.
DEFAULT_COMPONENTS = 64


@contextmanager
def _as_many_modes_as_resolved() -> Iterator[None]:
    """Leave out the warning that modes are missing: the user did not ask for their number."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\d+ of \d+ modes are resolved", ConvergenceWarning)
        yield


def _options(flow: Any) -> dict[str, Any]:
    return {"backend": flow.backend, "tol": flow.tol}


def _modes(flow: Any, X: Array) -> int:
    """Return how many modes are looked for."""
    if flow.n_components is not None:
        return int(flow.n_components)
    sources = len(X) if flow.n_landmarks is None else min(len(X), flow.n_landmarks)
    return max(1, min(DEFAULT_COMPONENTS, sources // 2))


def spectrum_of(flow: Any, X: Array, Y: Array | None, lag_time: float) -> Any:
    """Return the spectrum that the parameters of a flow ask for, fitted to samples or pairs."""
    chosen = flow.spectrum
    if chosen is not None and not isinstance(chosen, str):
        if of_a_dictionary(chosen) and (flow.langevin or flow.coarse is True):
            raise ValueError(
                "langevin and coarse=True follow a kernel estimate of the law: with a spectrum of a dictionary, whose modes are "
                "no kernel sums, leave them out"
            )
        if np.iscomplexobj(chosen.eigenvalues_):
            raise ValueError(
                f"{chosen!r} has complex eigenvalues, those of a process that is not reversible: KSWGD follows the gradient "
                "flow of a reversible one. Fit it with reversible=True, whose law is the same, or to samples of X alone"
            )
        if chosen.n_features_in_ != X.shape[1]:
            raise ValueError(
                f"X has {X.shape[1]} features, the fitted spectrum has {chosen.n_features_in_}"
            )
        if flow.coordinates is not None and not is_auto(flow.coordinates):
            raise ValueError(
                "coordinates= would be ignored: a fitted spectrum has its own; give them to the spectrum, or drop them"
            )
        if Y is not None:
            raise ValueError(
                "successors= would be ignored: a fitted spectrum learns nothing from pairs; drop them, or pass spectrum='edmd'"
            )
        # a refit of the user's spectrum gives it new arrays, and changes no flow
        return copy.copy(chosen)
    if chosen is None:
        chosen = "diffusion" if Y is None else "edmd"
    kernel = Gaussian("auto") if flow.kernel is None else flow.kernel
    common: dict[str, Any] = {
        "n_components": _modes(flow, X),
        "n_landmarks": flow.n_landmarks,
        "random_state": flow.random_state,
        "coordinates": coordinates_of(flow, kernel, X),
        **_options(flow),
    }
    if chosen == "diffusion":
        if Y is not None:
            raise ValueError(
                "successors= would be ignored: spectrum='diffusion' learns from samples alone; drop them, or pass "
                "spectrum='edmd'"
            )
        spectrum, weight = DiffusionMap(kernel, **common), flow.sample_weight_
        if flow.n_components is not None:
            return recentred(spectrum.fit(X, sample_weight=weight), X, weight)
        with _as_many_modes_as_resolved():
            return recentred(spectrum.fit(X, sample_weight=weight), X, weight)
    if chosen == "edmd":
        if Y is None:
            raise ValueError(
                "spectrum='edmd' learns from pairs: call fit(X, successors=Y), Y being X one lag later, or fit(trajectories, lag=...)"
            )
        return KernelEDMD(kernel, lag_time=lag_time, **common).fit(X, successors=Y)
    raise ValueError(
        f"spectrum must be None, 'diffusion', 'edmd' or a fitted spectrum, got {chosen!r}"
    )


def coordinates_of(flow: Any, kernel: Any, X: Array) -> Any:
    """Return the coordinates that the parameters of a flow ask for: "auto" standardises columns of different units.

    Columns whose widths differ more than five times are taken to have different units; a manifold (``project``) and a kernel
    with a scale for each feature say themselves what a distance is.
    """
    if not is_auto(flow.coordinates):
        return flow.coordinates
    check_kernel(kernel)
    given = isotropic(kernel)[1] is not None
    if flow.project is not None or given:
        return None
    return "standardize" if in_different_units(X, flow.sample_weight_) else None


def of_a_dictionary(spectrum: Any) -> bool:
    """Return whether the modes are combinations of a user's functions, and no kernel sums."""
    return isinstance(spectrum.functions_, DictionaryFunctions)


def coarse_spectrum_of(flow: Any, X: Array, fine: Any) -> Any:
    """Return the wide spectrum for particles outside the data, or None where the fine one reaches them.

    It is learned in the coordinates of the fine one, which both then see.
    """
    if flow.coarse is False or of_a_dictionary(fine):
        return None
    X = fine.seen(X)
    reaches = isinstance(fine, DiffusionMap)
    reaches = reaches and float(fine.scale_) * COARSE_RATIO >= median_scale(X)
    if flow.coarse == "auto" and reaches:
        return None
    landmarks = min(len(X) - 1, flow.n_landmarks or COARSE_LANDMARKS)
    spectrum = DiffusionMap(
        Gaussian(max(COARSE_RATIO * float(fine.scale_), median_scale(X))),
        n_components=max(1, min(_modes(flow, X), landmarks // 2)),
        n_landmarks=None if len(X) <= 2 * COARSE_LANDMARKS else landmarks,
        random_state=flow.random_state,
        **_options(flow),
    )
    with _as_many_modes_as_resolved():
        weight = flow.sample_weight_
        return recentred(spectrum.fit(X, sample_weight=weight), X, weight)


def backend_of(spectrum: Any, X: Array, options: dict[str, Any]) -> str:
    """Return who computes the sums of a step, or "dictionary"."""
    if of_a_dictionary(spectrum):
        return "dictionary"
    K = spectrum.kernel_(spectrum.seen(X), spectrum.sources_, **options)
    return str(K.explain("value_and_gradient", t=2).backend)


def recentred(spectrum: DiffusionMap, X: Array, weight: Array | None = None) -> DiffusionMap:
    """Return the map with modes of mean 0 and variance 1 over all samples, those it left out as isolated too.

    Without them the tails of a law would count as an error of the particles: on Student's t, seven samples of 1,000 move
    the means of some modes from 0 to 3.
    """
    if (
        spectrum.n_isolated_ and weight is None
    ):  # a map of weighted samples has the moments of all of them
        functions, X = spectrum.functions_, spectrum.seen(X)
        mean = functions.moments(X)
        rows = X[:: max(1, len(X) // JUDGES)]
        square = ((functions.transform(rows).astype(float) - like(mean, rows)) ** 2).mean(axis=0)
        raw = replace(functions, offset=functions.offset * 0)
        mean = mean + to_host(functions.offset).astype(float)
        spectrum._store(raw.normalised(mean, to_host(square)), spectrum.eigenvalues_)
    return spectrum


def carried(spectrum: Any, X: Array, weight: Array | None = None) -> np.ndarray:
    r"""Return which modes are carried by at least 30 samples, (r,), by a fiftieth of them if they are few.

    .. math:: \frac{(\sum_l p_l \varphi_k(x_l)^2)^2}{\sum_l p_l^2 \varphi_k(x_l)^4}

    samples of weights p carry a mode. One carried by a handful says where those were, not what the law is.
    """
    square = to_host(spectrum.transform(X[:: max(1, len(X) // JUDGES)])).astype(float) ** 2
    w = host_weight(weight)
    if w is not None:
        square *= w[:: max(1, len(X) // JUDGES), None] * len(X)
    second, fourth = square.mean(axis=0), (square**2).mean(axis=0)
    carriers = len(X) * second**2 / np.where(fourth > 0, fourth, 1.0)
    return carriers >= min(CARRIERS, len(X) / 50)
