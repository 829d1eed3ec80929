r"""Uniform points and Brownian motion on the circle and the torus, with their exact spectra and projections.

========  ======================================================================
t, f      angle around the axis of the torus (or of the circle), around its tube
R, rho    radius of the axis circle, of the tube
h         time step of the Euler-Maruyama scheme
========  ======================================================================
"""

from __future__ import annotations

import functools
import math
from typing import Any, overload

import numpy as np

from gpukoop.checks import check_length
from gpukoop.datasets.trajectories import Pairs, consecutive, langevin_pairs
from gpukoop.draws import RandomState, check_count, check_positive, random_generator, rejection
from gpukoop.maps.manifolds import rows_of


@overload
def circle(
    n_samples: int,
    lag_time: None = None,
    random_state: RandomState = None,
    *,
    arc: float = ...,
    inner_radius: float = ...,
    independent: bool = ...,
) -> np.ndarray: ...
@overload
def circle(
    n_samples: int,
    lag_time: float,
    random_state: RandomState = None,
    *,
    arc: float = ...,
    inner_radius: float = ...,
    independent: bool = ...,
) -> Pairs: ...
def circle(
    n_samples: int,
    lag_time: float | None = None,
    random_state: RandomState = None,
    *,
    arc: float = 2 * math.pi,
    inner_radius: float = 1.0,
    independent: bool = False,
) -> np.ndarray | Pairs:
    """Return points of the unit circle, or of an arc of it; with ``lag_time`` pairs of its Brownian motion.

    Parameters
    ----------
    n_samples, random_state, independent
        As in :func:`gpukoop.datasets.quadruple_well`.
    lag_time : float, optional
        None returns X alone, independent and uniform in angle. A number returns pairs (X, Y) of the diffusion
        with generator d^2/dt^2 in the angle t, reflected at the ends of an arc; the transition is exact.
    arc : float, default=2 pi
        Length of the arc, from the angle 0; pi is the upper half circle.
    inner_radius : float, default=1.0
        Below 1 the radii are drawn afresh, uniform in area between it and 1.

    Returns
    -------
    float64 array of shape (n_samples, 2), or two of them
    """
    n = check_count(n_samples)
    if check_positive(arc, "arc") > 2 * math.pi:
        raise ValueError(f"arc is {arc}: pass a length in (0, 2 pi]")
    if check_positive(inner_radius, "inner_radius", zero=True) > 1:
        raise ValueError(f"inner_radius is {inner_radius}: pass a number from 0 to 1")
    rng = random_generator(random_state)

    def points(angle: np.ndarray) -> np.ndarray:
        if arc < 2 * math.pi:  # unfold the reflections: the angle on a line, modulo there and back
            angle = arc - np.abs(np.mod(angle, 2 * arc) - arc)
        radius = np.sqrt(rng.uniform(inner_radius**2, 1.0, len(angle))) if inner_radius < 1 else 1.0
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)

    if lag_time is None:
        return points(arc * rng.random(n))
    start = arc * rng.random(n if independent else 1)
    kicks = math.sqrt(2 * check_length(lag_time, "lag_time")) * rng.standard_normal(n)
    if independent:
        return points(start), points(start + kicks)
    states = points(np.concatenate([start, start + np.cumsum(kicks)]))
    return consecutive(states[:1], states[1:])


@overload
def torus(
    n_samples: int,
    lag_time: None = None,
    random_state: RandomState = None,
    *,
    R: float = ...,
    rho: float = ...,
    independent: bool = ...,
    n_substeps: int | None = ...,
) -> np.ndarray: ...
@overload
def torus(
    n_samples: int,
    lag_time: float,
    random_state: RandomState = None,
    *,
    R: float = ...,
    rho: float = ...,
    independent: bool = ...,
    n_substeps: int | None = ...,
) -> Pairs: ...
def torus(
    n_samples: int,
    lag_time: float | None = None,
    random_state: RandomState = None,
    *,
    R: float = 2.0,
    rho: float = 0.8,
    independent: bool = False,
    n_substeps: int | None = None,
) -> np.ndarray | Pairs:
    r"""Return points uniform on the surface of a torus; with ``lag_time`` pairs of its Brownian motion.

    .. math:: dt = \frac{\sqrt 2}{R + \rho\cos f} dW_1, \qquad
              df = -\frac{\sin f}{\rho (R + \rho\cos f)} ds + \frac{\sqrt 2}{\rho} dW_2

    with t the angle around the axis and f the angle around the tube, whose surface law is
    (R + rho cos f) / (2 pi R). Without the drift f would be uniform, which is not the surface.

    Parameters
    ----------
    n_samples, random_state, independent, n_substeps
        As in :func:`gpukoop.datasets.quadruple_well`.
    lag_time : float, optional
        None returns X alone, independent and uniform on the surface. A number returns pairs (X, Y) of the
        diffusion whose generator is the Laplace-Beltrami operator.
    R, rho : float
        Radii of the axis circle and of the tube, R > rho.

    Returns
    -------
    float64 array of shape (n_samples, 3), or two of them
    """
    R, rho = check_radii(R, rho)
    embed = functools.partial(_embed_torus, R=R, rho=rho)

    def law(rng: np.random.Generator, n: int) -> np.ndarray:
        around = rng.uniform(0, 2 * math.pi, n)
        tube = rejection(
            lambda k: rng.uniform(-math.pi, math.pi, k),
            lambda f: rng.random(len(f)) * (R + rho) < R + rho * np.cos(f),
            n,
        )
        return np.stack([around, tube], axis=1)

    if n_substeps is not None:
        check_count(n_substeps, "n_substeps")
    if lag_time is None:
        return embed(law(random_generator(random_state), check_count(n_samples)))
    X, Y = langevin_pairs(
        law, _walk_torus, n_samples, lag_time, random_state, independent, n_substeps, R, rho
    )
    return embed(X), embed(Y)


def check_radii(R: float, rho: float) -> tuple[float, float]:
    """Return the radii of a torus, or raise if the tube would meet itself."""
    R, rho = check_length(R, "R"), check_length(rho, "rho")
    if rho >= R:
        raise ValueError(f"rho = {rho} is not below R = {R}: the tube would cross the axis")
    return R, rho


def project_torus(Z: np.ndarray, *, R: float = 2.0, rho: float = 0.8) -> np.ndarray:
    """Return the nearest point of the torus for every row of Z, shape (n, 3), library and dtype of Z.

    Points on the axis go to the angle t = 0, points on the core of the tube to f = 0.

    Parameters
    ----------
    Z : array of shape (n, 3)
        Points of space.
    R, rho : float
        Radii of the core and of the tube.

    Returns
    -------
    array of shape (n, 3)
        Library and dtype of Z.
    """
    R, rho = check_radii(R, rho)
    native, home = rows_of(Z, 3)
    return home.restore(_embed_torus(torus_angles(native, R=R), R, rho))


def torus_angles(Z: np.ndarray, *, R: float = 2.0) -> np.ndarray:
    """Return the angles (t, f) of the rows of Z, each in (-pi, pi].

    Parameters
    ----------
    Z : array of shape (n, 3)
        Points of space; t is the angle around the axis, f that around the tube.
    R : float
        Radius of the core of the tube.

    Returns
    -------
    array of shape (n, 2)
        In radians.
    """
    (native, home), R = rows_of(Z, 3), check_length(R, "R")
    x, y, z = native.T
    angles = np.stack([np.arctan2(y, x), np.arctan2(z, np.hypot(x, y) - R)], axis=1)
    return home.restore(angles)


def _embed_torus(angles: np.ndarray, R: float, rho: float) -> np.ndarray:
    t, f = angles.T
    return np.stack(
        [(R + rho * np.cos(f)) * np.cos(t), (R + rho * np.cos(f)) * np.sin(t), rho * np.sin(f)],
        axis=1,
    )


def _walk_torus(
    starts: np.ndarray, noise: np.ndarray, h: float, chained: bool, R: float, rho: float
) -> np.ndarray:
    n, n_substeps, _ = noise.shape
    ends = np.empty((n, 2))
    kick = math.sqrt(2 * h)
    for i in range(n):
        t = ends[i - 1, 0] if chained and i > 0 else starts[i, 0]
        f = ends[i - 1, 1] if chained and i > 0 else starts[i, 1]
        for j in range(n_substeps):
            w = R + rho * math.cos(f)
            t += kick * noise[i, j, 0] / w
            f += -math.sin(f) * h / (rho * w) + kick * noise[i, j, 1] / rho
        ends[i, 0], ends[i, 1] = t, f
    return ends


def exact_circle(
    n_eigenvalues: int, arc: float = 2 * math.pi, inner_radius: float = 1.0
) -> dict[str, Any]:
    """Return the exact values: k^2 twice on the circle, (k pi / arc)^2 on an arc."""
    closed = arc == 2 * math.pi
    k = np.arange(1, n_eigenvalues + 1)
    t, w = np.polynomial.legendre.leggauss(200)
    angle, w = arc * (t + 1) / 2, w / 2
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    # radii are uniform in area between inner_radius and 1
    r1 = 2 * (1 + inner_radius + inner_radius**2) / (3 * (1 + inner_radius))
    r2 = (1 + inner_radius**2) / 2
    mean = r1 * (w @ points)
    covariance = r2 * (points.T * w) @ points - np.outer(mean, mean)
    eigenvalues = np.repeat(k, 2) ** 2.0 if closed else (k * math.pi / arc) ** 2
    return {"mean": mean, "covariance": covariance, "eigenvalues": eigenvalues}


def exact_torus(n_eigenvalues: int, R: float = 2.0, rho: float = 0.8) -> dict[str, Any]:
    """Return the exact values; Laplace-Beltrami by separation, u = exp(i k t) g(f), Fourier-Galerkin for g."""
    n = 128
    f = np.arange(n) * (2 * math.pi / n)
    w = (R + rho * np.cos(f)) / (2 * math.pi * R) * (2 * math.pi / n)  # the surface law of f
    j = np.arange(1, 25)
    basis = np.hstack([np.ones((n, 1)), np.cos(np.outer(f, j)), np.sin(np.outer(f, j))])
    slope = np.hstack([np.zeros((n, 1)), -j * np.sin(np.outer(f, j)), j * np.cos(np.outer(f, j))])
    whiten = np.linalg.inv(np.linalg.cholesky((basis.T * w) @ basis))
    values: list[float] = []
    for k in range(n_eigenvalues + 1):
        form = (slope.T * (w / rho**2)) @ slope + (
            basis.T * (w * k**2 / (R + rho * np.cos(f)) ** 2)
        ) @ basis
        lowest = np.linalg.eigvalsh(whiten @ form @ whiten.T)[: n_eigenvalues + 1]
        values += [
            float(v) for v in lowest for _ in range(1 if k == 0 else 2)
        ]  # cos and sin of k t
        if len(values) > n_eigenvalues and lowest[0] > np.sort(values)[n_eigenvalues]:
            break  # larger k only lie higher
    plane = np.sum(w * (R + rho * np.cos(f)) ** 2) / 2
    return {
        "mean": np.zeros(3),
        "covariance": np.diag([plane, plane, np.sum(w * (rho * np.sin(f)) ** 2)]),
        "eigenvalues": np.sort(values)[1:],
        "area": 4 * math.pi**2 * R * rho,
        "tube_angle_density": lambda angle: (R + rho * np.cos(angle)) / (2 * math.pi * R),
    }
