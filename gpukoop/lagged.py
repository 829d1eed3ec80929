"""Trajectories as people have them: lists of runs of different lengths, and the pairs of frames one lag apart in each.

A run is an array (n, d), one row a frame, frames at equal distances in time. Runs may be memory-mapped files: they are
read, checked and copied a chunk at a time. No pair ever joins two runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from gpukoop.arrays import Array, like, namespace, native_array, points
from gpukoop.draws import check_count, check_positive


def runs_of(trajectories: Any, name: str = "trajectories") -> list[Any]:
    """Return the runs as a list of (n, d) arrays, nothing read or copied yet.

    Parameters
    ----------
    trajectories : array of shape (n, d), or list of such arrays of different lengths, or array of shape (runs, n, d)
        Memory-mapped files count as arrays.
    name : str
        What the user calls them.

    Raises
    ------
    ValueError, TypeError
        If there is no run, or one of them has another number of features than the first.
    """
    _refuse_molecule(trajectories, name)
    if isinstance(trajectories, dict):
        raise TypeError(f"{name} is a dict, expected a list of arrays: pass list({name}.values())")
    if isinstance(trajectories, str | bytes) or not hasattr(trajectories, "__len__"):
        raise TypeError(
            f"{name} is of type {type(trajectories).__name__}, expected an array (n, d) or a list of them: a file is read "
            "by numpy.load(path, mmap_mode='r')"
        )
    shape = getattr(trajectories, "shape", None)
    whole = shape is not None and len(shape) != 3
    runs = [trajectories] if whole else list(trajectories)
    if not runs:
        raise ValueError(f"{name} is empty: pass at least one array of shape (n, d)")
    if all(isinstance(row, list | tuple) and row and np.ndim(row[0]) == 0 for row in runs):
        if len({len(row) for row in runs}) > 1:
            raise ValueError(
                f"{name} has frames of different lengths: pass one row a frame, (n, d)"
            )
        runs = [np.asarray(runs, dtype=float)]  # one run, written as a list of frames
    d = None
    for i, run in enumerate(runs):
        _refuse_molecule(run, f"{name}[{i}]")
        shape = getattr(run, "shape", None)
        if shape is None or len(shape) != 2:
            raise ValueError(
                f"{name}[{i}] has shape {np.shape(run)}, expected (n, d): one row a frame; a run of one feature is "
                "run.reshape(-1, 1)"
            )
        if not shape[0]:
            raise ValueError(f"{name}[{i}] is empty: drop runs without a frame")
        d = shape[1] if d is None else d
        if shape[1] != d:
            raise ValueError(
                f"{name}[{i}] has {shape[1]} features, {name}[0] has {d}: all runs need the same columns"
            )
    return runs


def _refuse_molecule(run: Any, name: str) -> None:
    if type(run).__module__.partition(".")[0] in ("mdtraj", "MDAnalysis"):
        raise TypeError(
            f"{name} is a molecular trajectory ({type(run).__name__}), expected an array of features: pass "
            'gk.interop.featurize(trajectory, "phi psi")'
        )


def frames(run: Any, first: int, last: int, name: str, reference: Array | None = None) -> Array:
    """Return frames first to last of a run as checked points, in the library and dtype of ``reference`` if given."""
    rows = run.iloc[first:last] if hasattr(run, "iloc") else run[first:last]
    native, _ = points(rows, name)
    return native if reference is None else like(native, reference)


def spread_rows(lengths: list[int], most: int) -> list[tuple[int, int]]:
    """Return, for each run, the first row and the step of at most ``most`` rows spread evenly over all runs."""
    step = -(-sum(lengths) // most)
    offsets = np.cumsum([0, *lengths[:-1]])
    return [(int(-offset % step), step) for offset in offsets]


def thinned(runs: list[Any], most: int, name: str = "trajectories") -> Array:
    """Return at most ``most`` frames, evenly spread over all runs, as one array of its own."""
    kept: list[Array] = []
    for i, (run, (start, step)) in enumerate(
        zip(runs, spread_rows([len(run) for run in runs], most), strict=True)
    ):
        if start >= len(run):
            continue
        rows = run.iloc[start::step] if hasattr(run, "iloc") else run[start::step]
        native, _ = points(rows, f"{name}[{i}]")
        kept.append(native if not kept else like(native, kept[0]))
    return namespace(kept[0]).concatenate(kept)


def pairs(trajectories: Any, lag: int, *, stride: int = 1) -> tuple[Array, Array]:
    """Return the pairs (X, Y) of a list of trajectories, Y ``lag`` frames after X in the same run.

    Parameters
    ----------
    trajectories : array of shape (n, d), or list of such arrays of different lengths
        Frames at equal distances in time. A run of at most ``lag`` frames has no pair.
    lag : int
        In frames, at least 1.
    stride : int, default=1
        Frames between the starts of two pairs; ``lag`` gives pairs that share no frame.

    Returns
    -------
    X, Y : arrays of shape (m, d)
        Run after run; library, device and dtype of the first run. They fit ``fit(X, successors=Y)``.

    Raises
    ------
    ValueError, TypeError
        If the runs do not fit together, or all are too short.

    Examples
    --------
    >>> runs = [np.arange(4.0)[:, None], 10 + np.arange(3.0)[:, None]]
    >>> X, Y = pairs(runs, lag=2)
    >>> X[:, 0], Y[:, 0]
    (array([ 0.,  1., 10.]), array([ 2.,  3., 12.]))
    """
    runs = runs_of(trajectories)
    X, Y = _pairs(runs, lag, check_count(stride, "stride"))
    first = runs[0].iloc[:1] if hasattr(runs[0], "iloc") else runs[0][:1]
    home = native_array(first, "trajectories[0]")[1]
    return home.restore(X), home.restore(Y)


def _pairs(runs: list[Any], lag: int, step: int) -> tuple[Array, Array]:
    """Return the pairs of runs, NumPy's or CuPy's."""
    check_lag(runs, lag)
    parts: list[tuple[Array, Array]] = []
    for i, run in enumerate(runs):
        if len(run) <= lag:
            continue
        reference = parts[0][0] if parts else None
        whole = frames(run, 0, len(run), f"trajectories[{i}]", reference)
        parts.append((whole[: len(run) - lag : step], whole[lag::step]))
    xp = namespace(parts[0][0])
    return xp.concatenate([x for x, _ in parts]), xp.concatenate([y for _, y in parts])


def pairs_of_runs(
    trajectories: Any, successors: Any, lag: int, frame_time: float
) -> tuple[Array, Array, float]:
    """Return X, Y and the time between them, for a ``fit`` that was given ``lag``; raise if it was given Y too."""
    if successors is not None:
        raise ValueError("successors= and lag= both say what follows X: pass one of them")
    X, Y = _pairs(runs_of(trajectories), lag, 1)
    return X, Y, lag * check_positive(frame_time, "frame_time")


def check_lag(runs: list[Any], lag: Any) -> int:
    """Return the lag in frames; raise unless some run is longer."""
    lag = check_count(lag, "lag")
    longest = max(len(run) for run in runs)
    if longest <= lag:
        raise ValueError(
            f"lag is {lag} frames, the longest run has {longest}: there is no pair; use a shorter lag"
        )
    return lag


@dataclass(frozen=True)
class Piece:
    """Pairs of one run that start in frames first to last, and the block they belong to."""

    run: int
    first: int
    last: int
    block: int


def cut(lengths: Sequence[int], lag: int, length: float, most: int) -> list[Piece]:
    """Return contiguous pieces of runs, each of at least ``length`` pairs where its run has so many, in blocks.

    Parameters
    ----------
    lengths : sequence of int
        Frames of each run.
    lag : int
    length : float
        Pairs of a piece at least; a run with fewer is one piece.
    most : int
        Blocks at most: neighbouring pieces are joined beyond it.

    Returns
    -------
    list of Piece
        In order; blocks are numbered from 0.
    """
    pieces: list[tuple[int, int, int]] = []
    for i, n in enumerate(lengths):
        if n <= lag:
            continue
        count = max(1, int((n - lag) / length + 1e-9))
        edges = np.linspace(0, n - lag, count + 1).astype(int)
        pieces += [(i, int(a), int(b)) for a, b in pairwise(edges)]
    size = np.array([last - first for _, first, last in pieces])
    blocks = np.arange(len(pieces))
    if len(pieces) > most:
        middle = np.cumsum(size) - size / 2
        blocks = np.unique((middle * most / size.sum()).astype(int), return_inverse=True)[1]
    return [Piece(*piece, int(block)) for piece, block in zip(pieces, blocks, strict=True)]
