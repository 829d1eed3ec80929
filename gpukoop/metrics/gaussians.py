r"""Distances between Gaussian laws in closed form: what the sample metrics tend to, and their oracles.

==========  ================================================================
m1, S1      mean (d,) and covariance (d, d) of the first law; m2, S2 of the second
l           scale of a Gaussian kernel
==========  ================================================================
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from gpukoop.checks import real_array, root_of_square
from gpukoop.draws import check_positive


def gaussian_mmd(m1: ArrayLike, S1: ArrayLike, m2: ArrayLike, S2: ArrayLike, scale: float) -> float:
    r"""Return the MMD of two Gaussians under the Gaussian kernel of this scale.

    .. math:: MMD^2 = e(0, 2 S_1) + e(0, 2 S_2) - 2 e(m_1 - m_2, S_1 + S_2), \quad
              e(m, S) = \det(I + S/\ell^2)^{-1/2} e^{-m^T (S + \ell^2 I)^{-1} m / 2}

    Parameters
    ----------
    m1, S1, m2, S2 : array_like of shapes (d,) and (d, d)
        Means and covariances; a number is taken as a law on the line.
    scale : float
        l, in the units of the points.

    Returns
    -------
    float
        The MMD, not its square. Cost: O(d^3).
    """
    m1, S1, m2, S2 = _laws(m1, S1, m2, S2)
    scale = check_positive(scale, "scale")
    with np.errstate(over="ignore"):  # in units of the scale: its square may leave the range
        m1, S1, m2, S2 = (
            real_array(a, "a ratio to scale")
            for a in (m1 / scale, S1 / scale / scale, m2 / scale, S2 / scale / scale)
        )
    eye = np.eye(len(m1))

    def log_mean_kernel(m: np.ndarray, S: np.ndarray) -> float:
        with np.errstate(over="ignore"):
            exponent = m @ np.linalg.solve(S + eye, m)
        return -float(exponent + np.linalg.slogdet(eye + S)[1]) / 2

    zero = np.zeros(len(m1))
    logs = [log_mean_kernel(*law) for law in ((zero, 2 * S1), (zero, 2 * S2), (m1 - m2, S1 + S2))]
    # In units of the largest: determinants of some hundred features leave the range, and what then is 0 would be a perfect match.
    top = max(logs)
    first, second, cross = (math.exp(log - top) for log in logs)
    share = root_of_square(first + second - 2 * cross, "the squared MMD")
    distance = math.exp(top / 2) * share
    if share and not distance:
        raise ValueError(
            "the MMD is below the smallest number of float64, and the laws differ: pass a larger scale"
        )
    return distance


def gaussian_energy_distance(m1: float, s1: float, m2: float, s2: float) -> float:
    r"""Return the energy distance of two Gaussians on the line, standard deviations s1 and s2.

    .. math:: 2 E|X - Y| - E|X - X'| - E|Y - Y'|, \quad
              E|N(m, a^2)| = a \sqrt{2/\pi}\, e^{-m^2 / 2a^2} + m\, \mathrm{erf}(m / (a \sqrt 2))

    Parameters
    ----------
    m1, s1, m2, s2 : float
        Means and standard deviations.

    Returns
    -------
    float
        In the units of the means.
    """
    m1, m2 = (float(real_array(m, name, ())) for m, name in ((m1, "m1"), (m2, "m2")))
    s1, s2 = check_positive(s1, "s1", zero=True), check_positive(s2, "s2", zero=True)

    def mean_distance(m: float, a: float) -> float:
        if a == 0.0:
            return abs(m)
        distance = min(
            abs(m / a), 1e100
        )  # its square is a number, and its exponential 0 long before
        at_zero = a * math.sqrt(2 / math.pi) * math.exp(-(distance**2) / 2)
        return at_zero + m * math.erf(m / (a * math.sqrt(2)))

    own = mean_distance(0.0, s1 * math.sqrt(2)) + mean_distance(0.0, s2 * math.sqrt(2))
    value = 2 * mean_distance(m1 - m2, math.hypot(s1, s2)) - own
    if not math.isfinite(value):
        raise ValueError("the energy distance is beyond the range of float64: rescale the laws")
    return value


def gaussian_wasserstein(m1: ArrayLike, S1: ArrayLike, m2: ArrayLike, S2: ArrayLike) -> float:
    r"""Return W2, not its square, of two Gaussians: the Bures distance.

    .. math:: W_2^2 = |m_1 - m_2|^2 + \mathrm{tr}(S_1 + S_2 - 2 (S_1^{1/2} S_2 S_1^{1/2})^{1/2})

    Parameters
    ----------
    m1, m2 : arrays of shape (d,)
        Means.
    S1, S2 : arrays of shape (d, d)
        Covariances.

    Returns
    -------
    float
        In the units of the means.

    Notes
    -----
    Cost: O(d^3). Accuracy: about 1e-8 in W2 near 0, where the trace cancels.
    """
    m1, S1, m2, S2 = _laws(m1, S1, m2, S2)
    with np.errstate(over="ignore"):
        apart = m1 - m2
    # In units of the larger of distance and width: their squares may leave the range, above and below.
    size = max(float(abs(apart).max()), math.sqrt(max(abs(S1).max(), abs(S2).max())))
    if size == 0.0:
        return 0.0
    if not math.isfinite(size):
        raise ValueError(
            "m1 and m2 are so far apart that their distance leaves the range of float64"
        )
    apart, S1, S2 = apart / size, S1 / size / size, S2 / size / size
    values, vectors = np.linalg.eigh(S1)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ S2 @ root), 0, None)).sum()
    squared = float(np.trace(S1) + np.trace(S2) - 2 * cross)
    # Means that are close beside the widths have a square that leaves the range, and a distance that does not.
    far = float(abs(apart).max())
    means = far * float(np.linalg.norm(apart / far)) if far else 0.0
    return size * math.hypot(means, root_of_square(squared, "the squared distance"))


def _laws(*parameters: ArrayLike) -> list[np.ndarray]:
    """Return means as (d,) and covariances as (d, d), or raise if they do not fit together."""
    names = ("m1", "S1", "m2", "S2")
    arrays = [real_array(p, name) for p, name in zip(parameters, names, strict=True)]
    arrays = [np.atleast_2d(a) if i % 2 else np.atleast_1d(a) for i, a in enumerate(arrays)]
    d = len(arrays[0])
    for array, name in zip(arrays, names, strict=True):
        expected = (d, d) if name[0] == "S" else (d,)
        if array.shape != expected:
            raise ValueError(
                f"{name} has shape {array.shape}, expected {expected}: m1 has {d} features"
            )
        if name[0] == "S" and abs(array - array.T).max() > 1e-8 * abs(array).max():
            raise ValueError(f"{name} is not symmetric: pass a covariance matrix")
        if name[0] == "S" and np.linalg.eigvalsh(array)[0] < -1e-12 * abs(array).max():
            raise ValueError(f"{name} has a negative eigenvalue: pass a covariance matrix")
    return arrays
