"""The figure of a diagnosis: particles beside data, and how surprising each line is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpukoop.plot import panels
from gpukoop.plot.canvas import Where, new_figure, require_fields, written

SHOWN = 20_000  # points of a cloud, enough to fill a panel
LEAST_P = 1e-12  # smaller p-values are drawn as this


def verdict(report: Any, *, path: Where | None = None) -> Any:
    """Return a figure of a :class:`gpukoop.verdict.Report`: both clouds, and the p-value of every line.

    Parameters
    ----------
    report : Report
        Of :func:`gpukoop.diagnose`.
    path : path, optional
        Where to write the figure: .png, .pdf, .svg or .jpg.

    Returns
    -------
    matplotlib.figure.Figure
        The clouds in units of their pooled quartiles, the first two columns. Bars that cross the line fail.
    """
    require_fields(report, "report", "particles data sizes lines", "gpukoop.diagnose")
    figure = new_figure(10.5, 3.9)
    clouds = [report.particles[:SHOWN], report.data[:SHOWN]]
    columns = (0,) if clouds[0].shape[1] == 1 else (0, 1)
    view = panels.View(clouds, columns)
    titles = f"{report.sizes[0]:,} particles", f"{report.sizes[1]:,} samples"
    for i, (cloud, title) in enumerate(zip(clouds, titles, strict=True)):
        axes = panels.new_panel(figure, (1, 3, i + 1), view, title)
        panels.draw_cloud(axes, view, cloud, None if i == 0 else panels.FAINT)
    axes = figure.add_subplot(1, 3, 3)
    panels.quiet(axes)
    adjusted, failed = report.adjusted, {line.name for line in report.failures}
    names = [line.name for line in report.lines][::-1]
    height = [-math.log10(max(adjusted[name], LEAST_P)) for name in names]
    colours = [panels.START if name in failed else panels.INK for name in names]
    axes.barh(np.arange(len(names)), height, color=colours, height=0.6)
    axes.set_yticks(np.arange(len(names)), names)
    axes.axvline(-math.log10(report.level), color=panels.FAINT, linewidth=1, linestyle="--")
    axes.set_xlim(0, max(2.5, 1.1 * max(height)))
    axes.set_xlabel(r"$-\log_{10} p$, adjusted", fontsize=9)
    axes.set_title(
        "passed" if report.passed else "off the law", fontsize=11, color=panels.INK, loc="left"
    )
    return written(figure, path)
