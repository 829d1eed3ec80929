"""Where figures come from and how they are written: no pyplot, no display, files whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gpukoop.draws import check_count

FORMATS = (".png", ".pdf", ".svg", ".jpg", ".jpeg")
LEAST_DOTS, MOST_DOTS = 10, 2400  # below, letters have no pixel; above, a figure has a billion
DOTS = 150  # an inch
Where = str | Path


def require_matplotlib() -> None:
    """Raise ImportError, saying what to install, if there is no matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "figures need matplotlib, which is not installed: pip install gpukoop[plot]"
        ) from error


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure, sides in inches, that knows how to draw itself without a window."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Any, dots: int = DOTS) -> bytes:
    """Return a figure as the bytes of a PNG file.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Such as the functions of this room return.
    dots : int
        Dots an inch.

    Returns
    -------
    bytes
        The content of the file.
    """
    dots = check_count(dots, "dots", least=LEAST_DOTS)
    return _encoded(figure, ".png", min(dots, MOST_DOTS))


def _encoded(figure: Any, suffix: str, dots: int = DOTS) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format=suffix[1:], dpi=dots, facecolor="white")
    return stream.getvalue()


def require_fields(result: Any, name: str, fields: str, origin: str) -> None:
    """Raise unless a result has these fields, or say where such a one comes from."""
    if not all(hasattr(result, field) for field in fields.split()):
        raise TypeError(
            f"{name} is of type {type(result).__name__}, expected what {origin} returns"
        )


def written(figure: Any, path: Where | None) -> Any:
    """Return the figure, written to ``path`` if there is one."""
    if path is not None:
        path = Path(path)
        save(path, lambda: _encoded(figure, path.suffix.lower()), FORMATS)
    return figure


def save(path: Path, encode: Callable[[], bytes], formats: Sequence[str]) -> None:
    """Write what ``encode`` makes, whole or not at all; refuse a wrong name before the work is done."""
    from gpukoop.files import write_atomically

    if path.suffix.lower() not in formats:
        raise ValueError(f"path is {str(path)!r}: its ending must be one of {', '.join(formats)}")
    if not path.parent.is_dir():
        raise ValueError(
            f"path is {str(path)!r}: the folder {str(path.parent)!r} does not exist, make it first"
        )
    write_atomically(path, encode())
