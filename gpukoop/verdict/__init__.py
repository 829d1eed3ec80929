"""A verdict on particles that does not come from the flow that moved them.

``diagnose(Z, X)`` compares particles with data in nine ways and says in words what differs. Every line has a p-value that is
exact or conservative for fresh independent samples, and the verdict counts how many lines there are, so that good samples
are called bad at most as often as ``level`` says.
"""

from __future__ import annotations

from collections.abc import Callable

from gpukoop.arrays import Array
from gpukoop.draws import RandomState, check_count, check_function, random_generator
from gpukoop.verdict import axes, neighbours, shape
from gpukoop.verdict.clouds import prepared
from gpukoop.verdict.line import Line
from gpukoop.verdict.permutation import TwoSampleTest, distance_multiple, two_sample_test
from gpukoop.verdict.report import Report

__all__ = ["Line", "Report", "TwoSampleTest", "diagnose", "distance_multiple", "two_sample_test"]

LEVEL = 0.02


def diagnose(
    Z: Array,
    X: Array,
    law: Callable[..., Array] | None = None,
    *,
    held_out: Array | None = None,
    sample_weight: Array | None = None,
    particle_weight: Array | None = None,
    level: float = LEVEL,
    n_permutations: int = 999,
    n_points: int | None = None,
    random_state: RandomState = 0,
) -> Report:
    """Return what tells particles apart from samples of the law behind data.

    Parameters
    ----------
    Z : array of shape (n, d)
        Particles of any origin.
    X : array of shape (m, d)
        The data: samples of the law. If the particles were made from them, say so by nothing: copies are found.
    law : callable, optional
        ``law(n, random_state=generator)`` -> (n, d) exact draws, such as ``gk.datasets.banana``; the particles are then judged
        by the law itself, and X serves the search for copies only.
    held_out : array of shape (h, d), optional
        Samples that the particles were not made from, beside X.
    sample_weight : array of shape (m,), optional
        Weights of the rows of X, at least 0. Rows are kept with probability w / max w, which costs points if few
        weights are large.
    particle_weight : array of shape (n,), optional
        The same for Z.
    level : float, default=0.02
        At most this share of fresh independent samples fails.
    n_permutations : int, default=999
        Of the lines that permute labels.
    n_points : int, optional
        Compare at most so many particles, data and samples kept aside, taken at random: faster, and blind to what so few do
        not show. Copies are still looked for in all of X.
    random_state : int, Generator, RandomState or None, default=0
        Permutations, directions and halves; the default gives the same report at every call.

    Returns
    -------
    Report
        ``report.passed``, ``report.lines``, ``report.worst``; ``print(report)``; ``gk.plot.verdict(report)`` draws it.

    Raises
    ------
    ValueError, TypeError
        If the clouds do not fit together.

    Notes
    -----
    Lines: *distance* (energy distance, permutations), *held out*, *support* (distance to the nearest samples), *modes* (moments of
    eigenfunctions of one half of the data), *basins* (masses of clusters), *spread* (width, shape and tails along 64 columns and
    16 principal axes), *location* (shares below every point of every column and these axes: Kolmogorov and Smirnov),
    *memorisation* and *diversity* (distances to the training samples and to each other, called off below
    half of what unseen samples keep). A line is left out where fewer than 20 points speak. Columns are divided by their
    quartiles' distance, over both clouds. Cost: near-linear in n + m; 10^6 particles and samples in two dimensions take
    the time of 16 sorts and of 50,000 searches in a tree. Memory: O((n + m) d).

    The p-values suppose that data are independent. Consecutive states of a trajectory know less than their number says, and
    fresh samples may then fail.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X, Z = rng.normal(size=(500, 2)), rng.normal(size=(400, 2))
    >>> diagnose(Z, X).passed, diagnose(0.7 * Z, X).passed
    (True, False)
    """
    if not 0 < level < 1:
        raise ValueError(
            f"level is {level!r}: pass the share of false alarms to allow, between 0 and 1"
        )
    B = check_count(n_permutations, "n_permutations", least=99)
    rng = random_generator(random_state)
    drawn = None
    if law is not None:
        check_function(law, "law", "law(n, random_state=generator) -> (n, d)")
        drawn = law(max(len(Z), len(X)), random_state=rng.spawn(1)[0])
        drawn = drawn[0] if isinstance(drawn, tuple) else drawn
    if n_points is not None:
        check_count(n_points, "n_points")
    clouds = prepared(Z, X, held_out, drawn, sample_weight, particle_weight, n_points, rng)
    # a stream for each line: one more permutation of one of them leaves the others as they were
    streams = rng.spawn(9)
    found = [
        shape.distance(clouds, B, streams[0]),
        shape.held_out(clouds, B, streams[1]),
        neighbours.support(clouds, streams[2]),
        shape.modes(clouds, B, streams[3]),
        shape.basins(clouds, streams[4]),
        axes.spread(clouds, streams[5]),
        axes.location(clouds, streams[8]),
        neighbours.memorisation(clouds, streams[6]),
        neighbours.diversity(clouds, streams[7]),
    ]
    lines = tuple(line for line in found if line is not None)
    return Report(lines, float(level), (len(clouds.Z), len(clouds.R)), clouds.Z, clouds.R)
