"""Estimators as the command line asks for them: sensible settings from the size of the task."""

from __future__ import annotations

from typing import Any

from gpukoop import estimators
from gpukoop.kernels.formula.catalogue import Gaussian

# Above this many samples kernel sums run over landmarks: end states are as good, steps cost n * 1,000 pairs.
ALL_SAMPLES = 5_000
LANDMARKS = 1_000
# Options of the command line that not every method has, and who takes them.
TAKERS = {
    "successors": ("kswgd",),
    "lag": ("kswgd",),
    "components": ("kswgd",),
    "landmarks": ("kswgd",),
    "lag_time": ("kswgd",),
    "scale": ("kswgd", "mmd", "jko"),
    "steps": ("kswgd", "mmd", "wasserstein", "jko"),
    "tol": ("kswgd", "mmd", "jko"),
    "checkpoint": ("kswgd", "mmd", "wasserstein", "jko"),
}
# Options that decide a fit: none of them goes with a model that is fitted.
FITTING = (*(name for name in TAKERS if name != "checkpoint"), "backend")


def estimator(method: str, options: Any) -> Any:
    """Return an unfitted estimator for ``gpukoop sample METHOD``.

    Parameters
    ----------
    method : str
        "kswgd", "mmd", "wasserstein", "jko" or "koopman".
    options : namespace
        The parsed command line.
    """
    check_taken(method, options)
    if options.lag_time is not None and options.successors is None and options.lag is None:
        raise ValueError("--lag-time is the time between pairs: pass --successors or --lag too")
    verbose = 0 if options.quiet else 1
    common: dict[str, Any] = {
        "backend": options.backend,
        "random_state": options.seed,
        "verbose": verbose,
    }
    return _RECIPES[method](options, common)


def check_taken(method: str, options: Any) -> None:
    """Raise if an option is given that the method does not take."""
    for name, takers in TAKERS.items():
        if getattr(options, name) is not None and method not in takers:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} belongs to {', '.join(takers)}; {method} does not take it")


def method_of(flow: Any) -> str:
    """Return the name on the command line of a fitted estimator."""
    names = {getattr(estimators, kind): name for name, kind in _KINDS.items()}
    if type(flow) not in names:
        raise ValueError(
            f"the model is a {type(flow).__name__}, expected one that `gpukoop fit` wrote"
        )
    return names[type(flow)]


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _kernel(options: Any) -> Any:
    return None if options.scale is None else Gaussian(options.scale)


def _kswgd(options: Any, common: dict[str, Any]) -> Any:
    step_size = 0.05 if options.steps is None else 8.0 / options.steps
    return estimators.KSWGD(
        step_size=step_size,
        **_given(
            lag_time=options.lag_time,
            kernel=_kernel(options),
            n_components=options.components,
            n_landmarks=options.landmarks,
            tol=options.tol,
        ),
        **common,
    )


def _mmd(options: Any, common: dict[str, Any]) -> Any:
    # A smooth kernel when a scale is given; otherwise the energy distance, sliced: it has no scale to choose.
    kernel = _kernel(options)
    n_iter = options.steps or 100
    if kernel is None:
        if options.tol is not None or options.backend is not None:
            option = "--tol" if options.tol is not None else "--backend"
            raise ValueError(
                f"{option} belongs to kernel sums, and mmd without --scale sorts: pass --scale too, or drop it"
            )
        return estimators.MMDFlow(
            n_projections=64, step_size=1.0, momentum=0.7, n_iter=n_iter, **common
        )
    # Descent is certain up to 2/3 of the square of the scale, whatever it is.
    return estimators.MMDFlow(
        kernel, step_size=0.5, n_iter=n_iter, **_given(tol=options.tol), **common
    )


def _wasserstein(options: Any, common: dict[str, Any]) -> Any:
    if options.backend is not None:
        raise ValueError("--backend belongs to kernel sums, and wasserstein sorts: drop it")
    return estimators.WassersteinFlow(
        coupling="sliced", n_projections=64, step_size=1.0, n_iter=options.steps or 80, **common
    )


def _jko(options: Any, common: dict[str, Any]) -> Any:
    return estimators.JKOFlow(
        n_steps=options.steps or 20,
        **_given(kernel=_kernel(options), tol=options.tol),
        **common,
    )


def _koopman(options: Any, common: dict[str, Any]) -> Any:
    return estimators.KoopmanSampler(n_features=500, n_slabs=4, **common)


_KINDS = {
    "kswgd": "KSWGD",
    "mmd": "MMDFlow",
    "wasserstein": "WassersteinFlow",
    "jko": "JKOFlow",
    "koopman": "KoopmanSampler",
}
_RECIPES = {
    "kswgd": _kswgd,
    "mmd": _mmd,
    "wasserstein": _wasserstein,
    "jko": _jko,
    "koopman": _koopman,
}
