"""Data sets and their exact answers, by one name each.

Pairs (X, Y), Y one lag after X: ``quadruple_well``, ``double_well``, ``slow_well``, ``ornstein_uhlenbeck``,
``heat_equation``, ``allen_cahn``, and ``circle`` and ``torus`` when given a ``lag_time``. Points X: ``circle``, ``torus``,
``eight_gaussians``, ``three_rings``, ``checkerboard``, ``moons``, ``banana``, ``unequal_mixture``, ``student_t``,
``mises_fisher``, ``digits``. Images of your own are read by ``images``. Trajectories of your own become pairs by ``pairs``. What is known about a law is asked by name:
``exact``, ``density``, ``potential``. No number of these is typed in: they come from quadratures and
eigenproblems accurate to about ten digits, so that a fit is compared with the truth and not with another run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gpukoop.arrays import like, native_array
from gpukoop.checks import check_length, real_array
from gpukoop.datasets import diffusions, fields, manifolds, shapes, uneven
from gpukoop.datasets.diffusions import double_well, ornstein_uhlenbeck, quadruple_well
from gpukoop.datasets.fields import allen_cahn, heat_equation
from gpukoop.datasets.handwriting import digits
from gpukoop.datasets.manifolds import circle, project_torus, torus, torus_angles
from gpukoop.datasets.readers import images
from gpukoop.datasets.shapes import checkerboard, eight_gaussians, moons, three_rings
from gpukoop.datasets.uneven import (
    banana,
    mises_fisher,
    slow_well,
    student_t,
    unequal_mixture,
)
from gpukoop.draws import check_count
from gpukoop.lagged import pairs
from gpukoop.maps.manifolds import project_circle, project_sphere

__all__ = [
    "allen_cahn",
    "banana",
    "checkerboard",
    "circle",
    "density",
    "digits",
    "double_well",
    "eight_gaussians",
    "exact",
    "heat_equation",
    "images",
    "mises_fisher",
    "moons",
    "ornstein_uhlenbeck",
    "pairs",
    "potential",
    "project_circle",
    "project_sphere",
    "project_torus",
    "quadruple_well",
    "slow_well",
    "student_t",
    "three_rings",
    "torus",
    "torus_angles",
    "unequal_mixture",
]

EXACT: dict[str, Callable[..., dict[str, Any]]] = {
    "quadruple_well": lambda barrier=1.0: diffusions.exact_wells(2, barrier),
    "double_well": lambda barrier=1.0: diffusions.exact_wells(1, barrier),
    "ornstein_uhlenbeck": diffusions.exact_ornstein_uhlenbeck,
    "heat_equation": fields.exact_heat_equation,
    "circle": manifolds.exact_circle,
    "torus": manifolds.exact_torus,
    "eight_gaussians": shapes.exact_eight_gaussians,
    "three_rings": shapes.exact_three_rings,
    "checkerboard": shapes.exact_checkerboard,
    "moons": shapes.exact_moons,
    "banana": uneven.exact_banana,
    "unequal_mixture": uneven.exact_unequal_mixture,
    "student_t": uneven.exact_student_t,
    "mises_fisher": uneven.exact_mises_fisher,
    "slow_well": uneven.exact_slow_well,
}
DENSITY: dict[str, Callable[..., np.ndarray]] = {
    "quadruple_well": diffusions.well_density,
    "double_well": diffusions.well_density,
    "ornstein_uhlenbeck": diffusions.ornstein_uhlenbeck_density,
    "eight_gaussians": shapes.eight_gaussians_density,
    "three_rings": shapes.three_rings_density,
    "checkerboard": shapes.checkerboard_density,
    "moons": shapes.moons_density,
    "banana": uneven.banana_density,
    "unequal_mixture": uneven.unequal_mixture_density,
    "student_t": uneven.student_t_density,
    "mises_fisher": uneven.mises_fisher_density,
    "slow_well": uneven.slow_well_density,
}
POTENTIAL: dict[str, Callable[..., np.ndarray]] = {
    "quadruple_well": diffusions.well_potential,
    "double_well": diffusions.well_potential,
    "ornstein_uhlenbeck": diffusions.ornstein_uhlenbeck_potential,
}

# Columns of the laws that are not of the plane; None is any number.
FEATURES = {
    "double_well": 1,
    "ornstein_uhlenbeck": None,
    "student_t": None,
    "slow_well": None,
    "mises_fisher": 3,
    "unequal_mixture": 5,
}


def exact(name: str, n_eigenvalues: int = 12, **parameters: Any) -> dict[str, Any]:
    """Return what is known exactly about a law, by name.

    Parameters
    ----------
    name : str
        A function of :mod:`gpukoop.datasets`, such as ``"quadruple_well"``.
    n_eigenvalues : int, default=12
        How many eigenvalues to return, ascending, repeated by multiplicity, the constant left out.
    **parameters
        The keywords of that function which shape the law, such as ``R`` and ``rho`` of ``"torus"``.

    Returns
    -------
    dict
        Always ``mean`` (d,) and ``covariance`` (d, d). Diffusions add ``eigenvalues`` (n_eigenvalues,) of the
        positive generator; laws with wells or modes add ``centres`` (k, d). The wells add ``radius``,
        ``coverage`` (per cent of the mass within ``radius`` of a centre), ``mean_potential`` and
        ``normalization`` (the integral of exp(-V)); the torus ``area`` and ``tube_angle_density``, a function.

    Raises
    ------
    ValueError
        If the name is unknown, or nothing is known exactly; the message lists the names.

    Notes
    -----
    Accuracy: 1e-8 relative, by trapezoid sums of periodic or rapidly decaying integrands and by sinc or
    Fourier collocation of the eigenproblems. Cost: below 0.1 s; the eigenproblem of the wells is kept.

    Examples
    --------
    >>> answer = exact("quadruple_well", n_eigenvalues=3)
    >>> print(answer["eigenvalues"].round(3), round(answer["coverage"], 2))
    [0.749 0.749 1.497] 38.07
    """
    check_count(n_eigenvalues, "n_eigenvalues")
    function = _known(EXACT, name, "exact answer", parameters)
    if "n_eigenvalues" in inspect.signature(function).parameters:
        parameters = {"n_eigenvalues": n_eigenvalues, **parameters}
    answer = function(**parameters)
    if "eigenvalues" in answer:
        answer["eigenvalues"] = answer["eigenvalues"][:n_eigenvalues]
    return answer


def potential(name: str, Z: ArrayLike, **parameters: Any) -> Any:
    """Return the potential V of a law at the rows of Z, shape (n,); the law is exp(-V) / Z.

    Parameters
    ----------
    name : {"quadruple_well", "double_well", "ornstein_uhlenbeck"}
        The law.
    Z : array of shape (n, d)
        Points.
    **parameters
        Those of the function of this name, such as ``barrier=2.0``.

    Returns
    -------
    float64 array of shape (n,)
        V, without the constant that normalises the law; in the library and on the device of Z.
    """
    function = _known(POTENTIAL, name, "potential", parameters)
    with np.errstate(over="ignore"):
        V = function(_rows(Z, name), **parameters)
    if not np.isfinite(V).all():
        raise ValueError("Z has points so far out that their potential leaves the range of float64")
    return _beside(Z, V)


def density(name: str, Z: ArrayLike, **parameters: Any) -> Any:
    """Return the normalised density of a law at the rows of Z, shape (n,); on the sphere by unit of area.

    Parameters
    ----------
    name : str
        A function of :mod:`gpukoop.datasets` whose law has a density.
    Z : array of shape (n, d)
        Where to evaluate it.
    **parameters
        The keywords of that function which shape the law. ``"three_rings"`` needs its ``noise``: without
        noise the law lives on curves and has no density.

    Returns
    -------
    float64 array of shape (n,)
        In the library and on the device of Z.

    Examples
    --------
    >>> print(density("checkerboard", [[0.5, 0.5], [0.5, -0.5]]))
    [0.125 0.   ]
    """
    p = _known(DENSITY, name, "density", parameters)(_rows(Z, name), **parameters)
    return _beside(Z, p)


def _known(
    table: dict[str, Any], name: str, what: str, parameters: dict[str, Any]
) -> Callable[..., Any]:
    """Return the function of a law, or raise and list the laws, or the parameters, that it knows."""
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"no {what} is known for {name!r}: choose one of {', '.join(table)}")
    function: Callable[..., Any] = table[name]
    allowed = [
        key for key in inspect.signature(function).parameters if key not in ("Z", "n_eigenvalues")
    ]
    for key, value in parameters.items():
        if key in allowed:
            _check_parameter(key, value)
    unknown = ", ".join(key for key in parameters if key not in allowed)
    if unknown:
        raise TypeError(
            f"{name!r} has no parameter {unknown}: its law is shaped by {', '.join(allowed) or 'none'}"
        )
    return function


def _check_parameter(name: str, value: Any) -> None:
    if name.startswith("n_"):
        check_count(value, name)
    elif name == "barrier":
        diffusions.check_barrier(value)
    else:
        check_length(value, name, zero=name in ("noise", "gap"))


def _beside(Z: ArrayLike, values: np.ndarray) -> Any:
    """Return float64 numbers in the library and on the device of Z; they are computed on the host."""
    native, home = native_array(Z, "Z")
    return home.restore(like(values, native.astype(float, copy=False)))


def _rows(Z: ArrayLike, name: str) -> np.ndarray:
    Z = real_array(Z, "Z")
    d = FEATURES.get(name, 2)
    if Z.ndim != 2 or d not in (None, Z.shape[1]):
        raise ValueError(f"Z has shape {Z.shape}: {name!r} takes an array of shape (n, {d or 'd'})")
    return Z
