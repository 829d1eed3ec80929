"""Numbers at the door: what is no real finite number is refused in words, and what could leave the range is scaled first."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpukoop.arrays import (
    Array,
    namespace,
    native_array,
    require_finite,
    to_host,
    warn_of_rounding,
)
from gpukoop.draws import check_positive

LARGEST_LENGTH = 1e150
# Grey, colours, colours and transparency: no picture has so few pixels along a side.
COLOURS = (1, 3, 4)


def real_array(x: Any, name: str, shape: tuple[int | None, ...] | None = None) -> np.ndarray:
    """Return real finite numbers as a float64 array on the host, or raise with their name.

    Parameters
    ----------
    x : array_like
        Numbers, lists of numbers, or an array of any library; masked, complex, boolean, date and text arrays are refused.
    name : str
        What the user calls it.
    shape : tuple, optional
        The shape expected; None stands for any length, None in its place for any shape.
    """
    native, _ = native_array(x, name)
    native = to_host(native)
    if native.dtype.kind not in "fiu":
        raise TypeError(
            f"{name} has dtype {native.dtype} ({type(x).__name__}), expected real numbers"
        )
    warn_of_rounding(native, name, x)
    native = native.astype(float)
    if shape is not None and (
        native.ndim != len(shape)
        or any(size not in (None, own) for size, own in zip(shape, native.shape, strict=True))
    ):
        words = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has shape {native.shape}, expected ({words})")
    if native.size:
        require_finite(native, name)
    return native


def refuse_colours_first(shape: tuple[int, ...], name: str) -> None:
    """Raise if images seem to be (n, colours, height, width), as PyTorch has them: they would be read as a few rows of pixels."""
    if len(shape) == 4 and shape[1] in COLOURS and shape[3] not in COLOURS:
        raise ValueError(
            f"{name} has shape {shape}, expected (n, height, width, colours): colours come last, pass numpy.moveaxis({name}, 1, -1)"
        )


def check_length(value: Any, name: str, *, zero: bool = False) -> float:
    """Return a positive number that has, like its inverse, a square in the range of float64, or raise with its name."""
    length = check_positive(value, name, zero=zero)
    if length and not 1 / LARGEST_LENGTH <= length <= LARGEST_LENGTH:
        raise ValueError(
            f"{name} is {length}: pass a number between {1 / LARGEST_LENGTH:.0e} and {LARGEST_LENGTH:.0e}, in other units"
        )
    return length


def check_kind(value: Any, kind: type, name: str) -> None:
    """Raise with the name unless a value is of a kind, such as a part that another call returns."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is of type {type(value).__name__}, expected {kind.__name__}")


def covariance_roots(S: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues and eigenvectors of a covariance matrix, or of a stack of them; raise where it is none."""
    if np.abs(S - S.swapaxes(-1, -2)).max(initial=0.0) > 1e-9 * np.abs(S).max(initial=0.0):
        raise ValueError(f"{name} is not symmetric: pass a covariance matrix")
    try:
        values, vectors = np.linalg.eigh(S)
    except np.linalg.LinAlgError:
        values = np.full(S.shape[:-1], np.nan)
        vectors = S
    if not np.isfinite(values).all():
        raise ValueError(f"{name} has entries that leave the range of float64: rescale the data")
    if values.size and values.min() < 0:
        raise ValueError(f"{name} has a negative eigenvalue: pass a covariance matrix")
    return values, vectors


def masses(weights: Any, name: str, n: int) -> np.ndarray:
    """Return weights >= 0 as float64 of sum 1 on the host; a multiple of them gives the same, whatever their units.

    One number stands for equal weights. Raises where a weight is negative, no number, or all are zero.
    """
    w = real_array(weights, name)
    if w.ndim == 0:
        w = np.full(n, float(w))
    if w.shape != (n,):
        raise ValueError(f"{name} has shape {w.shape}, expected ({n},): one weight per sample")
    if (w < 0).any() or not (w > 0).any():
        raise ValueError(
            f"{name} must not be negative, and not all weights may be zero: pass {n} numbers >= 0"
        )
    w = w / w.max()  # first: the sum of large weights leaves the range
    return w / w.sum()


def root_of_square(squared: float, what: str) -> float:
    """Return the root of a square that rounding may have made negative; raise if it is no number.

    Differs from ``sqrt(max(0, squared))``, which is 0, a perfect match, where ``squared`` is NaN.
    """
    if not math.isfinite(squared):
        raise ValueError(
            f"{what} is not finite: the points or parameters are so large that squares leave the range of float64; "
            "rescale them"
        )
    return math.sqrt(squared) if squared > 0 else 0.0


# Of the largest coordinate; far below float64's 2^-52, far above the root of its smallest number.
NEGLIGIBLE = 2.0**-200


def unit_clouds(*clouds: Array) -> tuple[list[Array], int]:
    """Return clouds times 2^-e, no coordinate above 1, and e: no square of theirs leaves the range, and no digit is lost."""
    largest = max(float(namespace(A).abs(A).max()) for A in clouds)
    exponent = int(np.frexp(largest)[1]) if largest > 0 else 0
    scaled = [namespace(A).ldexp(A, -exponent) for A in clouds]
    # Beside the largest these change no digit of a distance, but their squares would leave the range.
    return [namespace(A).where(abs(A) > NEGLIGIBLE, A, 0.0) for A in scaled], exponent


def times_power(value: float, exponent: int, what: str) -> float:
    """Return value times 2^exponent; raise if it leaves the range of float64."""
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        raise ValueError(f"{what} is beyond the range of float64: rescale the points") from None


def check_tol(tol: float | None) -> float | None:
    """Return ``tol``; raise unless it is None or a number in (0, 1)."""
    if tol is None:
        return None
    if isinstance(tol, bool) or not isinstance(tol, int | float | np.floating) or not 0 < tol < 1:
        raise ValueError(
            f"tol must be None (rounding accuracy) or a number in (0, 1), got {tol!r}: it is relative to "
            "sum |v| k"
        )
    return float(tol)


def one_label_each(y: Any, n: int) -> np.ndarray | None:
    """Return n labels on the host, None for none; raise if they are not as many, or one is missing."""
    if y is None:
        return None
    labels = np.asarray(to_host(y))
    if labels.shape != (n,):
        raise ValueError(
            f"y has shape {labels.shape}, expected one label for each of {n} rows of X"
        )
    for row, label in enumerate(labels.tolist() if labels.dtype.kind in "fcO" else ()):
        # pandas' own missing value is neither equal to itself nor different
        if label is None or type(label).__name__ in ("NAType", "NaTType") or label != label:
            raise ValueError(
                f"y is missing ({label!r}) in row {row}: every row needs a label, drop those without"
            )
    return labels
