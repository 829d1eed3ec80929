"""Figures of kinetics: timescales against the lag, the Chapman-Kolmogorov test."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpukoop.plot.canvas import Where, new_figure, require_fields, written
from gpukoop.plot.curves import RULE, plain_axes
from gpukoop.plot.panels import INK, START

BAND = 0.2  # opacity


def implied_timescales(result: Any, *, unit: str = "", path: Where | None = None) -> Any:
    """Return a figure of timescales against the lag, with bands; below the line t = lag nothing can be known.

    Parameters
    ----------
    result : ImpliedTimescales
        Of :func:`gpukoop.kinetics.implied_timescales`.
    unit : str, optional
        Of time, for the labels, such as ``"ps"``.
    path : path, optional
        Where to write the figure.

    Returns
    -------
    matplotlib.figure.Figure
    """
    require_fields(result, "result", "lag_times timescales lower upper", "implied_timescales")
    import matplotlib

    figure = new_figure(5.2, 3.8)
    label = f" ({unit})" if unit else ""
    axes = plain_axes(figure, f"lag{label}", f"timescale{label}")
    t = result.lag_times
    k = result.timescales.shape[1]
    for i, shade in enumerate(matplotlib.colormaps["viridis"](np.linspace(0, 0.8, k))):
        axes.plot(t, result.timescales[:, i], "o-", color=shade, markersize=3, linewidth=1.2)
        axes.fill_between(
            t, result.lower[:, i], result.upper[:, i], color=shade, alpha=BAND, linewidth=0
        )
    axes.plot(t, t, "--", color=START, linewidth=1, label="timescale = lag")
    axes.fill_between(t, 0, t, color=RULE, alpha=0.6, linewidth=0)
    axes.set_yscale("log")
    if len(t) > 1:
        axes.set_xlim(t[0], t[-1])
    axes.legend(frameon=False, fontsize=9)
    return written(figure, path)


def chapman_kolmogorov(result: Any, *, unit: str = "", path: Where | None = None) -> Any:
    """Return a figure of predicted (line) and estimated (points, bands) probabilities, a panel for each pair of states.

    Parameters
    ----------
    result : ChapmanKolmogorov
        Of :func:`gpukoop.kinetics.chapman_kolmogorov`.
    unit : str, optional
        Of time.
    path : path, optional
        Where to write the figure.

    Returns
    -------
    matplotlib.figure.Figure
    """
    require_fields(result, "result", "lag_times predicted estimated", "chapman_kolmogorov")
    n = result.predicted.shape[1]
    figure = new_figure(2.4 * n + 0.6, 2.0 * n + 0.4)
    t = result.lag_times
    for i in range(n):
        for j in range(n):
            last = i == n - 1
            axes = plain_axes(
                figure,
                f"time{f' ({unit})' if unit and last else ''}" if last else "",
                "" if j else "probability",
                (n, n, i * n + j + 1),
            )
            axes.set_title(f"{i} to {j}", fontsize=9, color=INK, loc="left")
            axes.plot(t, result.predicted[:, i, j], color=START, linewidth=1.2, label="predicted")
            low, high = (
                result.estimated[:, i, j] + s * result.estimated_error[:, i, j] for s in (-1, 1)
            )
            axes.fill_between(t, low, high, color=INK, alpha=BAND, linewidth=0)
            axes.plot(t, result.estimated[:, i, j], "o", color=INK, markersize=3, label="estimated")
            axes.set_ylim(0, 1)
    figure.axes[0].legend(frameon=False, fontsize=8)
    return written(figure, path)
