"""Angles as points that a kernel can compare, and the nearest points of manifolds: ready for ``project=`` of a flow."""

from __future__ import annotations

import math
from typing import Any

from gpukoop.arrays import Array, Home, namespace, native_array, points
from gpukoop.checks import check_length


def torus(values: Any, period: float = 2 * math.pi) -> Array:
    r"""Return cosines and sines of angles, the coordinates in which -pi and pi are one point.

    .. math:: (a_1, ..., a_k) \mapsto (\cos a_1, \sin a_1, ..., \cos a_k, \sin a_k)

    A radial kernel of them is a periodic kernel of the angles: squared distances are :math:`\sum_c 4 \sin^2((a_c - b_c) / 2)`.

    Parameters
    ----------
    values : array of shape (n, k)
        Angles, such as the torsions of a molecule.
    period : float
        Of the angles: 2 pi, or 360 for degrees, or 24 for hours of the day.

    Returns
    -------
    array of shape (n, 2 k)
        Library and dtype of the angles.
    """
    native, home = points(values, "values")
    check_length(period, "period")
    xp = namespace(native)
    a = native * native.dtype.type(2 * math.pi / period)
    both = xp.stack([xp.cos(a), xp.sin(a)], axis=2)
    return home.restore(both.reshape(len(a), -1))


def angles(Z: Any, period: float = 2 * math.pi) -> Array:
    """Return the angles of points of :func:`torus` or near it.

    Parameters
    ----------
    Z : array of shape (n, 2 k)
        Cosines and sines, as :func:`torus` returns them; a pair need not have length 1.
    period : float
        Of the angles: 2 pi, or 360 for degrees.

    Returns
    -------
    array of shape (n, k)
        In [-period / 2, period / 2]; library and dtype of Z.
    """
    native, home = _in_pairs(Z)
    check_length(period, "period")
    scale = native.dtype.type(period / (2 * math.pi))
    return home.restore(namespace(native).arctan2(native[:, 1::2], native[:, ::2]) * scale)


def project_torus(Z: Array) -> Array:
    """Return the nearest points of :func:`torus` for every row: each pair of columns of length 1.

    A pair (0, 0), which has no nearest point, goes to (1, 0). Two columns are the circle.

    Parameters
    ----------
    Z : array of shape (n, 2 k)

    Returns
    -------
    array of shape (n, 2 k)
    """
    native, home = _in_pairs(Z)
    return home.restore(project_sphere(native.reshape(-1, 2)).reshape(native.shape))


def project_circle(Z: Array, *, arc: float = 2 * math.pi) -> Array:
    """Return the nearest point of the unit circle, or of an arc from the angle 0, for every row of Z.

    Parameters
    ----------
    Z : array of shape (n, 2)
        The origin, which has no nearest point, goes to (1, 0).
    arc : float, default=2 pi
        Length of the arc, as in :func:`gpukoop.datasets.circle`.

    Returns
    -------
    array of shape (n, 2)
        Library and dtype of Z. Fits ``KSWGD(project=...)``.
    """
    (native, home), arc = rows_of(Z, 2), check_length(arc, "arc")
    xp = namespace(native)
    angle = xp.arctan2(native[:, 1], native[:, 0])
    if arc < 2 * math.pi:
        # measured from the middle of the arc in (-pi, pi], the nearest point is the clipped angle
        from_middle = xp.mod(angle - arc / 2 + math.pi, 2 * math.pi) - math.pi
        angle = arc / 2 + xp.clip(from_middle, -arc / 2, arc / 2)
    return home.restore(xp.stack([xp.cos(angle), xp.sin(angle)], axis=1))


def project_sphere(Z: Array) -> Array:
    """Return the nearest point of the unit sphere for every row; the origin, which has none, goes to (1, 0, ...).

    Parameters
    ----------
    Z : array of shape (n, d)
        Points of space.

    Returns
    -------
    array of shape (n, d)
        Rows of length 1; library and dtype of Z.
    """
    native, home = rows_of(Z)
    xp = namespace(native)
    length = (native**2).sum(axis=1, keepdims=True) ** 0.5
    lost = length == 0
    first = (xp.arange(native.shape[1]) == 0).astype(native.dtype)
    return home.restore(xp.where(lost, first, native / xp.where(lost, 1, length)))


def project_simplex(Z: Array) -> Array:
    r"""Return the nearest point of the simplex for every row: entries >= 0 of sum 1.

    .. math:: x_c = \max(z_c - \theta, 0), \qquad \theta = \max_k \Big(\sum_{j \le k} z_{(j)} - 1\Big) / k

    Parameters
    ----------
    Z : array of shape (n, d)

    Returns
    -------
    array of shape (n, d)

    References
    ----------
    .. [1] M. Held, P. Wolfe, H. P. Crowder, Validation of subgradient optimization, Mathematical Programming 6, 1974.
    """
    native, home = rows_of(Z)
    xp = namespace(native)
    falling = xp.sort(native, axis=1)[:, ::-1]
    places = xp.arange(1, native.shape[1] + 1).astype(native.dtype)
    theta = (xp.cumsum(falling, axis=1) - 1) / places
    return home.restore(xp.maximum(native - theta.max(axis=1, keepdims=True), 0))


def rows_of(Z: Any, d: int | None = None) -> tuple[Array, Home]:
    """Return points (n, d) as an array of their own dtype and their home, or raise."""
    native, home = native_array(Z, "Z")
    native, _ = points(native.astype(float) if native.dtype.kind in "iu" else native, "Z")
    if d not in (None, native.shape[1]):
        raise ValueError(f"Z has shape {native.shape}: pass an array of shape (n, {d})")
    return native, home


def _in_pairs(Z: Any) -> tuple[Array, Home]:
    native, home = rows_of(Z)
    if native.shape[1] % 2:
        raise ValueError(
            f"Z has shape {native.shape}: pass an array of shape (n, 2 k), a cosine and a sine for each angle"
        )
    return native, home
