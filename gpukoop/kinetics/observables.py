"""What a model says about quantities of the user's: which features move with a mode, how rare a region is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpukoop.arrays import Array, native_array, points, to_host
from gpukoop.centring import centred
from gpukoop.draws import check_function
from gpukoop.kinetics.blocks import MANY_RUNS, MOST_BLOCKS, SPAN, band, resamples, standard
from gpukoop.kinetics.model import fitted
from gpukoop.kinetics.reweighted import Reweighted
from gpukoop.lagged import Piece, cut, frames, spread_rows
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
        Of a reweighted model frames that start a pair count, and resamples learn the weights anew.
    """
    learned = fitted(model)
    material = model._material
    lengths = material.lengths
    F = values_of(model, features, "features")
    if F.ndim == 1:
        F = F[:, None]
    centre = centred(F)[1]
    width = centre.std(axis=0)
    centre = centre / np.where(width > 0, width, 1.0)
    phi, w = model.phi_, model.weights()
    n_blocks, basis = len(learned.blocks), learned.basis
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
    if isinstance(basis, Reweighted):
        block_of = np.full(sum(lengths), -1)
        starts = np.cumsum([0, *lengths[:-1]])
        for piece in _own_pieces(model):
            block_of[starts[piece.run] + piece.first : starts[piece.run] + piece.last] = piece.block
        block = block_of[rows]
        own = block >= 0
        centre, phi, w, block = centre[own], phi[own], w[own], block[own]
        R = _weighing(model, material.seen)[own, 1:]
    else:
        block = np.minimum(rows * n_blocks // sum(lengths), n_blocks - 1)
    squares = centre**2, phi**2

    def correlation(v: np.ndarray) -> np.ndarray:
        v = v / v.sum()
        mf, mp = v @ centre, v @ phi
        vf, vp = v @ squares[0] - mf**2, v @ squares[1] - mp**2
        cross = centre.T @ (phi * v[:, None]) - np.outer(mf, mp)
        return cross / np.sqrt(np.maximum(np.outer(vf, vp), np.finfo(float).tiny))

    def weighed(c: np.ndarray) -> np.ndarray:
        if isinstance(basis, Reweighted):  # weights of the resample's own
            return c[block] * np.maximum(R @ basis.combination(c), 0.0)
        return c[block] * w

    drawn = np.array([correlation(weighed(c)) for c in model._counts])
    error = drawn.std(axis=0, ddof=1) * standard(n_blocks, learned.c)
    return ModeCorrelation(correlation(w), error)


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
        the weight is 0, and ``upper`` is what one visit as long as a lag would weigh, times 3 (the rule of three); it is at
        least that where frames were visited to which a reweighted model gives no weight.
    """
    learned = fitted(model)
    check_function(region, "region", "(n, d) -> (n,)")
    material = model._material
    slowest = SPAN * model.timescales_[0] / model.frame_time
    length = np.inf if len(material.runs) >= MANY_RUNS else max(model.lag, slowest)
    basis = learned.basis
    if isinstance(basis, Reweighted):  # weights are learned anew in the blocks of the model's pairs
        pieces, q = _own_pieces(model), 1 + basis.W.shape[1]
        counts = model._counts
    else:
        pieces, q = cut(material.lengths, 0, length, MOST_BLOCKS), 0
        rng = np.random.default_rng(len(learned.blocks))
        counts = resamples(1 + pieces[-1].block, model.n_bootstrap, rng)
    # of each block: the weights of its frames, and the functions that weights are combinations of
    inside, total = np.zeros((2, counts.shape[1], 1 + q))
    visits, n_inside, n_frames = 0, 0, sum(material.lengths)
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
            F = _weighing(model, chunk)
            parts.append(values.astype(bool))
            for piece in pieces:
                own = slice(max(piece.first - start, 0), max(piece.last - start, 0))
                if piece.run == i and len(F[own]):
                    inside[piece.block] += parts[-1][own] @ F[own]
                    total[piece.block] += F[own].sum(axis=0)
        mask = np.concatenate(parts)
        visits += int(mask[0]) + int((mask[1:] & ~mask[:-1]).sum())
        n_inside += int(mask.sum())
    weight = inside[:, 0].sum() / total[:, 0].sum()
    unseen = min(1.0, 3 * model.lag / n_frames)
    if not visits:
        return Occupancy(0.0, 0.0, unseen, 0, 0)
    if isinstance(basis, Reweighted):
        u = np.array([basis.combination(c) for c in counts])
        part, whole = ((counts @ a[:, 1:] * u).sum(axis=1) for a in (inside, total))
    else:
        part, whole = (counts @ a[:, 0] for a in (inside, total))
    # of a frame of mean weight: a resample without a visit
    half = 0.5 * total[:, 0].sum() / n_frames
    drawn = np.maximum(part, half) / whole
    lower, upper = band(np.array(weight), drawn, len(inside), learned.c, model.confidence)
    if not weight:  # visited where the learned weights are 0: no factor makes a band of that
        unseen = max(unseen, float(np.quantile(drawn, (1 + model.confidence) / 2)))
        return Occupancy(0.0, 0.0, min(1.0, unseen), visits, n_inside)
    from scipy import stats

    least = np.exp(stats.norm.ppf((1 + model.confidence) / 2) * np.sqrt(2 / visits))
    lower, upper = np.fmin(lower, weight / least), np.fmax(upper, weight * least)
    return Occupancy(float(weight), float(lower), min(1.0, float(upper)), visits, n_inside)


def _own_pieces(model: Any) -> list[Piece]:
    """Return the first frames of the pairs of a model, in the blocks that it resamples.

    Weights are learned for first frames of pairs: the last ones of a run are none.
    """
    block_of = {i: b for b, group in enumerate(model._learned.groups) for i in group}
    return [
        replace(piece, block=block_of[piece.block]) for piece in model._material.pieces(model.lag)
    ]


def _weighing(model: Any, chunk: Array) -> np.ndarray:
    """Return the weights of frames, (b, 1); of a reweighted model 1 and the functions of the weights, too."""
    if model._ratio is None:
        return np.ones((len(chunk), 1))
    P = model._material.functions.transform(chunk).astype(float)
    W = model._learned.basis.W
    one = np.ones((len(chunk), 1))
    return np.hstack([to_host(model._ratio(P))[:, None], one, to_host(P)[:, : len(W)] @ W])


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
