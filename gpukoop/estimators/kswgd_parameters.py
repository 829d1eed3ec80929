"""Which parameters of KSWGD are possible, one by one and together."""

from __future__ import annotations

from typing import Any

from gpukoop.draws import check_count, check_positive
from gpukoop.estimators.start import check_init
from gpukoop.estimators.verdict import check_fraction
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.operator import check_tol
from gpukoop.parameters import check_shared
from gpukoop.spectrum.coordinates import check_coordinates, is_auto

RULES = ("diffusion", "edmd")


def check_kswgd(flow: Any) -> None:
    """Raise if a parameter of a KSWGD is out of range, or of the wrong type."""
    check_shared(flow)
    if flow.n_components is not None:
        check_count(flow.n_components, "n_components")
    if not is_auto(flow.coordinates):
        check_coordinates(flow.coordinates)
    check_positive(flow.lag_time, "lag_time")
    check_positive(flow.step_size, "step_size")
    check_positive(flow.total_time, "total_time", zero=True)
    check_positive(flow.langevin, "langevin", zero=True)
    check_tol(flow.tol)
    if flow.n_landmarks is not None:
        check_count(flow.n_landmarks, "n_landmarks", least=2)
    if flow.project is not None and not callable(flow.project):
        raise TypeError(
            f"project is {flow.project!r}, expected a function (n, d) -> (n, d) to the nearest points of "
            "the manifold"
        )
    check_init(flow.init)
    if not isinstance(flow.units, str) or flow.units not in ("data", "absolute"):
        raise ValueError(f"units must be 'data' or 'absolute', got {flow.units!r}")
    if not (
        isinstance(flow.coarse, bool) or (isinstance(flow.coarse, str) and flow.coarse == "auto")
    ):
        raise ValueError(f"coarse must be 'auto', True or False, got {flow.coarse!r}")
    check_fraction(flow.validation_fraction)
    check_spectrum(flow.spectrum)
    if flow.kernel is not None and not isinstance(flow.kernel, AbstractKernel):
        raise TypeError(f"kernel is {flow.kernel!r}, expected a kernel such as Gaussian('auto')")


def check_spectrum(chosen: Any) -> None:
    """Raise unless it is a rule to make a spectrum by, or one that is fitted."""
    known = chosen in RULES if isinstance(chosen, str) else chosen is None
    if not known and not hasattr(chosen, "functions_"):
        raise ValueError(
            "spectrum must be None, 'diffusion', 'edmd' or a fitted DiffusionMap, KernelEDMD or GeneratorEDMD, got "
            f"{chosen!r}: fit it first"
        )


def langevin_rate(flow: Any) -> float:
    """Return kappa, the Langevin time in a unit of LAWGD time; raise if a step would amplify the last mode."""
    if not flow.langevin:
        return 0.0
    unit = 1.0 if flow.units == "absolute" else 1.0 / float(flow.eigenvalues_[-1])
    last = float(flow.eigenvalues_[-1])
    if flow.coarse_ is not None:
        last = max(last, float(flow.coarse_.eigenvalues_[-1]))
    kappa = flow.langevin * unit
    if flow.step_size * (1 + kappa * last) >= 2:
        most = max(0.0, (2 / flow.step_size - 1) / last) / unit
        raise ValueError(
            f"langevin is {flow.langevin:g}, with step_size = {flow.step_size:g} and the last eigenvalue {last:.3g} it must "
            f"be below {most:.3g}, or a step multiplies the last mode by less than -1"
        )
    return float(kappa)
