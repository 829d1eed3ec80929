"""What a model says about quantities of the user's: which features move with a mode, how rare a region is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpukoop.arrays import Array, native_array, points, to_host
from gpukoop.centring import centred
from gpukoop.draws import check_function
from gpukoop.kinetics.blocks import MANY_RUNS, MOST_BLOCKS, SPAN, band, resamples, standard
from gpukoop.kinetics.model import fitted
from gpukoop.kinetics.reweighted import Reweighted
from gpukoop.lagged import cut, frames, spread_rows
from gpukoop.spectrum.trajectory import CHUNK


@dataclass(frozen=True)
class ModeCorrelation:
    """Correlation of features with slow modes, (s, r), and its standard error from resampled blocks."""

    correlation: np.ndarray
    error: np.ndarray


@dataclass(frozen=True)
class Occupancy:
    """Weight of a region with its band, and how many visits it rests on.

    Attributes
    ----------
    weight, lower, upper : float
    n_visits : int
        Times that a run enters the region, or starts in it.
    n_frames : int
        Frames in it.
    """

    weight: float
    lower: float
    upper: float
    n_visits: int
    n_frames: int


def mode_correlation(model: Any, features: Any) -> ModeCorrelation:
    """Return which features move with which slow modes.

    Parameters
    ----------
    model : KineticModel
        Fitted.
    features : callable, or list of arrays of shape (n, s)
        Features of frames, (n, d) -> (n, s); or their values run by run, as long as the trajectories. Angles have no
        correlation: pass their cosines and sines.

    Returns
    -------
    ModeCorrelation
        Pearson's, over at most 50,000 frames. The sign is that of the mode, which is arbitrary.
    """
    learned = fitted(model)
    lengths = model._material.lengths
    F = values_of(model, features, "features")
    if F.ndim == 1:
        F = F[:, None]
    centre = centred(F)[1]
    width = centre.std(axis=0)
    centre = centre / np.where(width > 0, width, 1.0)
    phi, w = model.phi_, model.weights()
    n_blocks = len(learned.blocks)
    rows = np.concatenate(
        [
            np.arange(o, n, s) + b
            for (o, s), n, b in zip(
                spread_rows(lengths, len(phi)),
                lengths,
                np.cumsum([0, *lengths[:-1]]),
                strict=True,
            )
        ]
    )
    block = np.minimum(rows * n_blocks // sum(lengths), n_blocks - 1)
    member = (block[:, None] == np.arange(n_blocks)).astype(float) * w[:, None]  # (m, B)
    one = member.sum(axis=0)
    f, ff = member.T @ centre, member.T @ centre**2
    p, pp = member.T @ phi, member.T @ phi**2
    fp = np.einsum("mb,ms,mr->bsr", member, centre, phi, optimize=True)

    def correlation(c: np.ndarray) -> np.ndarray:
        m = c @ one
        mf, mp = c @ f / m, c @ p / m
        vf, vp = c @ ff / m - mf**2, c @ pp / m - mp**2
        cross = np.tensordot(c, fp, axes=1) / m - np.outer(mf, mp)
        return cross / np.sqrt(np.maximum(np.outer(vf, vp), np.finfo(float).tiny))

    drawn = np.array([correlation(c) for c in model._counts])
    error = drawn.std(axis=0, ddof=1) * standard(n_blocks, learned.c)
    return ModeCorrelation(correlation(np.ones(n_blocks)), error)


def occupancy(model: Any, region: Callable[[Array], Array]) -> Occupancy:
    r"""Return the weight of a region of states, also of one that was visited a few times only.

    Parameters
    ----------
    model : KineticModel
        Fitted; its trajectories are read again.
    region : callable
        (n, d) -> (n,) of True where a frame is inside.

    Returns
    -------
    Occupancy
        Of v visits of random lengths the total is known to a relative error of sqrt(2 / v) at best: that of a number of
        visits that is Poisson and of lengths that are exponential. The band is never narrower than that; without a visit
        the weight is 0, and ``upper`` is what one visit as long as a lag would weigh, times 3 (the rule of three).
    """
    learned = fitted(model)
    check_function(region, "region", "(n, d) -> (n,)")
    material = model._material
    slowest = SPAN * model.timescales_[0] / model.frame_time
    length = np.inf if len(material.runs) >= MANY_RUNS else max(model.lag, slowest)
    pieces = cut(material.lengths, 0, length, MOST_BLOCKS)
    basis = learned.basis
    q = 1 + basis.W.shape[1] if isinstance(basis, Reweighted) else 0
    # of each block: frames, their weights, and the functions that weights are combinations of
    inside, total = np.zeros((2, 1 + pieces[-1].block, 2 + q))
    visits = 0
    for i, run in enumerate(material.runs):
        parts = []
        for start in range(0, len(run), CHUNK):
            chunk = frames(run, start, start + CHUNK, f"trajectories[{i}]")
            values = to_host(native_array(region(chunk), "region(frames)")[0])
            if values.dtype.kind not in "biuf":
                raise TypeError(
                    f"region gives dtype {values.dtype}, expected True or False a frame"
                )
            if values.shape != (len(chunk),):
                raise ValueError(
                    f"region gives shape {values.shape} for {len(chunk)} frames, expected one value a frame"
                )
            F = _weighing(model, chunk, len(run) - start)
            parts.append(values.astype(bool))
            for piece in pieces:
                own = slice(max(piece.first - start, 0), max(piece.last - start, 0))
                if piece.run == i and len(F[own]):
                    inside[piece.block] += parts[-1][own] @ F[own]
                    total[piece.block] += F[own].sum(axis=0)
        mask = np.concatenate(parts)
        visits += int(mask[0]) + int((mask[1:] & ~mask[:-1]).sum())
    n_inside, n_frames = inside[:, 0].sum(), total[:, 0].sum()
    weight = inside[:, 1].sum() / total[:, 1].sum()
    if not visits:
        return Occupancy(0.0, 0.0, min(1.0, 3 * model.lag / n_frames), 0, 0)
    counts = resamples(len(inside), model.n_bootstrap, np.random.default_rng(len(learned.blocks)))
    if isinstance(basis, Reweighted) and len(inside) == model.n_blocks_:
        u = np.array([basis.combination(c) for c in counts])
        part, whole = ((counts @ a[:, 2:] * u).sum(axis=1) for a in (inside, total))
    else:
        part, whole = (counts @ a[:, 1] for a in (inside, total))
    half = 0.5 * weight * n_frames / n_inside  # of a frame: a resample without a visit
    drawn = np.maximum(part, half) / whole
    lower, upper = band(np.array(weight), drawn, len(inside), learned.c, model.confidence)
    from scipy import stats

    least = np.exp(stats.norm.ppf((1 + model.confidence) / 2) * np.sqrt(2 / visits))
    lower, upper = np.fmin(lower, weight / least), np.fmax(upper, weight * least)
    return Occupancy(float(weight), float(lower), min(1.0, float(upper)), visits, int(n_inside))


def _weighing(model: Any, chunk: Array, left: int) -> np.ndarray:
    """Return 1 and the weights of frames, (b, 2); of a reweighted model 1 and the functions of the weights, too.

    ``left`` frames of the run are left, these included. Weights are learned for first frames of pairs: the last ones of a
    run are none.
    """
    rows = np.ones((len(chunk), 2))
    if model._ratio is None:
        return rows
    P = model._material.functions.transform(chunk).astype(float)
    rows[:, 1] = to_host(model._ratio(P))
    W = model._learned.basis.W
    found = np.hstack([rows, rows[:, :1], to_host(P)[:, : len(W)] @ W])
    found[max(0, left - model.lag) :, 1:] = 0.0
    return found


def values_of(model: Any, observable: Any, name: str) -> np.ndarray:
    """Return an observable at the frames that the eigenfunctions are known at, (m,) or (m, s); ``name`` is the caller's for it."""
    material = model._material
    if callable(observable):
        values = to_host(points(columns_of(observable(material.seen)), f"{name}(frames)")[0])
        one = np.ndim(observable(material.seen[:1])) == 1
    elif not hasattr(observable, "shape") and not isinstance(observable, list | tuple):
        raise TypeError(
            f"{name} is of type {type(observable).__name__}, expected a function of frames, or its values run by run"
        )
    else:
        lists = (
            [observable]
            if hasattr(observable, "shape") and len(material.runs) == 1
            else list(observable)
        )
        if [len(f) for f in lists] != material.lengths:
            raise ValueError(
                f"{name} has {[len(f) for f in lists][:5]} rows, the trajectories {material.lengths[:5]}: pass one "
                "array a run, one row a frame"
            )
        rows = spread_rows(material.lengths, len(model.phi_))
        parts = [
            to_host(native_array(f, name)[0])[o::s] for f, (o, s) in zip(lists, rows, strict=True)
        ]
        one = parts[0].ndim == 1
        values = np.concatenate([columns_of(part) for part in parts])
        values = points(values, name)[0]
    if len(values) != len(model.phi_):
        raise ValueError(
            f"{name} gives {len(values)} rows for {len(model.phi_)} frames, expected one a frame"
        )
    values = values.astype(float)
    return values[:, 0] if one else values


def columns_of(values: Any) -> Any:
    """Return values of shape (m,) as a column, and whole numbers as floats."""
    values = np.asarray(values) if not hasattr(values, "ndim") else values
    if values.dtype.kind in "biu":
        values = values.astype(float)
    return values[:, None] if values.ndim == 1 else values
