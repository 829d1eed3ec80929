r"""New rows of a data frame: columns of any type become normal scores, a law is learned there, and draws of it go back.

A column becomes :math:`z = \Phi^{-1}(u)`, u its rank in (0, 1) with ties in random order; so do whole numbers, flags and categories,
whose values are then intervals of u. Back go the quantiles of the column: every new column has the law of the old one, and what is
learned is how columns hang together.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from gpukoop.arrays import to_host, warn_of_rounding
from gpukoop.draws import RandomState, check_count, random_generator
from gpukoop.fitted import FRAMES
from gpukoop.verdict import diagnose

logger = logging.getLogger("gpukoop")

# A column whose values have so few digits after the point keeps their number: 13.2 has one.
_DECIMALS = 6
# A column of text with a different one in each of so many rows is a name, not a category.
_NAMES = 20
# Widths of at least so many new values are compared, and may be off by so much.
_WIDTHS, _OFF = 50, 0.1


@dataclass(frozen=True)
class _Column:
    """One column as sorted numbers, and the way back to its values.

    ``decimals`` is None where digits do not end; ``values`` are those of categories in the order of their numbers. Dates,
    times and whole numbers have a clock: the first tick, ticks a step, and steps from the first to the last.
    """

    name: Any
    numbers: np.ndarray
    decimals: int | None
    values: np.ndarray | None
    clock: tuple[int, int, int] | None
    has_width: bool

    def restored(self, z: np.ndarray) -> np.ndarray:
        from scipy.stats import norm

        n = len(self.numbers)
        places = (np.arange(n) + 0.5) / n
        x = np.interp(norm.cdf(z), places, np.sort(self.numbers))
        if self.decimals is not None:
            x = np.round(x, self.decimals)
        if self.clock is not None:
            origin, step, last = self.clock
            # Floats of 2^53 and more are rounded, at the far end past the last of all.
            steps = np.minimum(x, np.nextafter(2.0**64, 0)).astype(np.uint64)
            ticks = np.uint64(step) * np.minimum(steps, np.uint64(last))
            return (
                ticks + np.uint64(origin)
                if origin >= 2**63 or origin + step * last >= 2**63
                else ticks.view(np.int64) + origin
            )
        return x if self.values is None else self.values[x.astype(int)]

    def warn_of_width(self, new: np.ndarray) -> None:
        """Warn where new numbers of a column are a tenth wider or narrower than the old ones."""
        old = _width(self.numbers) if self.has_width and len(new) >= _WIDTHS else 0.0
        if self.clock is not None:  # from the first tick on: large ones are no floats
            new = (new - new.dtype.type(self.clock[0])).view(np.uint64)
        if old > 0 and abs(ratio := _width(new) / old - 1) > _OFF:
            warnings.warn(
                f"column {self.name!r}: new values are {1 + ratio:.2f} times as wide as the old ones, whose width may hang on a few rows; "
                "draw more, or take the logarithm of such a column first",
                UserWarning,
                stacklevel=3,
            )


def _width(x: np.ndarray) -> float:
    unit = float(np.abs(x).max()) or 1.0  # in which no square leaves the range
    return unit * float((x / unit).std())


def synthesize(
    frame: Any,
    n_samples: int | None = None,
    *,
    estimator: Any = None,
    random_state: RandomState = 0,
    return_report: bool = False,
) -> Any:
    """Return new rows like those of a data frame, with its columns, their types and ranges.

    Parameters
    ----------
    frame : pandas or polars DataFrame
        Columns of numbers, whole numbers, flags, text, categories, dates or times, without missing values. A target is a column like others.
    n_samples : int, optional
        New rows; as many as there are by default.
    estimator : object with ``fit(X)`` and ``sample(n, random_state=)``, optional
        Learns the law of the normal scores, such as :class:`KoopmanSampler`, :class:`KSWGD`, or a pipeline of your own. None is
        the normal law with their covariance, shrunk as Ledoit and Wolf do (a Gaussian copula): margins and monotone dependence
        of pairs. It cannot copy rows; flows follow bent and split clouds, and on a few hundred rows of many columns may copy
        them, which the report says.
    random_state : int, Generator, RandomState or None
        Ties and draws; an estimator has its own for its fit.
    return_report : bool
        Return ``(frame, Report)``: the verdict of :func:`diagnose` between the normal scores of new and old rows.

    Returns
    -------
    DataFrame
        Of the library that came, with the same names and dtypes.

    Raises
    ------
    TypeError
        If it is no frame, or a column holds objects of several types.
    ValueError
        If values are missing or not finite, or a column of text has a different one in every row; the message names the column.

    Warns
    -----
    UserWarning
        If 50 and more new numbers of a column, categories and times aside, are a tenth wider or narrower than the old ones; it names the column.

    Notes
    -----
    Recipe: ranks become normal scores. Categories are numbered by the mean of the first principal component of the other
    columns, so that neighbours are alike. Dates and times are counted in the largest step that all of a column are multiples of:
    days stay days. Whole numbers are counted from the smallest, exactly as far as a column spans 2^53. New values lie between the smallest and the largest of the column, with no more
    digits than those. This keeps no secret: rare rows may be recognised; it gives no guarantee of privacy.

    References
    ----------
    .. [1] R. B. Nelsen, An Introduction to Copulas, 2006, section 2.9.
    .. [2] O. Ledoit, M. Wolf, A well-conditioned estimator for large-dimensional covariance matrices, J. Multivariate Anal. 88, 2004.

    Examples
    --------
    >>> import gpukoop as gk
    >>> from sklearn.datasets import load_wine
    >>> wine = load_wine(as_frame=True).frame
    >>> new = gk.synthesize(wine, 50)
    >>> new.shape, list(new.columns) == list(wine.columns), (new.dtypes == wine.dtypes).all().item()
    ((50, 14), True, True)
    """
    library = type(frame).__module__.partition(".")[0]
    if library not in FRAMES or not hasattr(frame, "columns"):
        raise TypeError(
            f"frame is of type {type(frame).__name__}, expected a pandas or polars DataFrame; estimators take arrays"
        )
    n = len(frame) if n_samples is None else check_count(n_samples, "n_samples")
    if len(frame) < 2 or not len(frame.columns):
        raise ValueError(f"frame has shape {frame.shape}, expected at least 2 rows and a column")
    names = list(frame.columns)
    if len(set(names)) < len(names):
        raise ValueError("frame has two columns of one name: rename one")
    if estimator is not None and not (hasattr(estimator, "fit") and hasattr(estimator, "sample")):
        raise TypeError(f"estimator is {estimator!r}, expected an object with fit and sample")
    rng = random_generator(random_state)
    columns, S = _scores(frame, names, rng)
    if estimator is None:
        Z = _normal(S, n, rng)
    else:
        drawn = estimator.fit(S).sample(n, random_state=int(rng.integers(2**31)))
        Z = np.asarray(to_host(drawn), float)
    made = {c.name: c.restored(Z[:, j]) for j, c in enumerate(columns)}
    for c in columns:
        c.warn_of_width(made[c.name])
    new = _frame(made, frame, library)
    if not return_report:
        return new
    report = diagnose(Z, S)
    logger.info("%s", report)
    return new, report


def _scores(frame: Any, names: list[Any], rng: np.random.Generator) -> tuple[list[_Column], Any]:
    """Return the columns as numbers and their normal scores, (n, d)."""
    raw = {name: _values(frame, name) for name in names}
    times = {name for name in names if _is_time(frame[name])}
    clocks = {name: _clock(raw[name]) for name in times}
    for name, x in raw.items():
        if name not in times and x.dtype.kind in "iu":
            raw[name] = x = x.astype(np.int64 if x.dtype.kind == "i" else np.uint64)
            clocks[name] = int(x.min()), 1, int(x.max()) - int(x.min())
    for name, (origin, step, _) in clocks.items():
        # Unsigned: the years from 1677 to 2262 in nanoseconds do not fit into a signed difference.
        since = (raw[name] - raw[name].dtype.type(origin)).view(np.uint64) // np.uint64(step)
        if name not in times:
            warn_of_rounding(since, f"column {name!r}")
        raw[name] = since
    numeric = [name for name in names if raw[name].dtype.kind in "fiub"]
    S = np.empty((len(frame), len(names)))
    for name in numeric:
        S[:, names.index(name)] = _normal_scores(raw[name], rng)
    main = np.zeros(len(frame))
    if numeric:
        known = S[:, [names.index(name) for name in numeric]]
        main = np.linalg.svd(known - known.mean(axis=0), full_matrices=False)[0][:, 0]
    columns = []
    for j, name in enumerate(names):
        x, values = raw[name], None
        if x.dtype.kind == "O":
            x, values = _numbered(name, x, main)
            S[:, j] = _normal_scores(x, rng)
        x = x.astype(float)
        ends = (k for k in range(_DECIMALS + 1) if np.array_equal(np.round(x, k), x))
        has_width = values is None and name not in times
        columns.append(_Column(name, x, next(ends, None), values, clocks.get(name), has_width))
    return columns, S


def _values(frame: Any, name: Any) -> np.ndarray:
    """Return a column as numbers, or as objects where it holds categories; raise in words where it holds anything else."""
    column = frame[name]
    polars = hasattr(column, "is_null")
    missing = int((column.is_null() if polars else column.isna()).sum())
    if missing:
        raise ValueError(
            f"column {name!r} has {missing} missing value(s): fill them or drop these rows first"
        )
    if _is_time(column):
        ticks = column.to_physical().to_numpy() if polars else column.astype("int64").to_numpy()
        return np.array(ticks, dtype=np.int64)
    x = np.asarray(column)
    text = str(frame.schema[name] if polars else column.dtype).lower()
    if x.dtype.kind in "fiub" and "categor" not in text and "enum" not in text:
        if not np.isfinite(x).all():
            raise ValueError(f"column {name!r} contains NaN or inf: repair these rows first")
        return x
    return x.astype(object)


def _is_time(column: Any) -> bool:
    """Tell whether a column holds dates, times or durations, which both libraries keep as whole numbers of ticks."""
    if hasattr(column, "to_physical"):
        return bool(column.dtype.is_temporal())
    return getattr(column.dtype, "kind", "") in "mM"


def _clock(ticks: np.ndarray) -> tuple[int, int, int]:
    """Return the earliest tick, the largest step that leads from it to all others, and the steps to the last."""
    since = (ticks - ticks.min()).view(np.uint64)
    step = max(1, int(np.gcd.reduce(since)))
    return int(ticks.min()), step, int(since.max()) // step


def _numbered(name: Any, x: np.ndarray, main: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return categories as whole numbers, and their values in that order."""
    try:
        values, index = np.unique(x, return_inverse=True)
    except TypeError:
        raise TypeError(
            f"column {name!r} holds values of several types: turn them into text first"
        ) from None
    if len(values) == len(x) > _NAMES:
        raise ValueError(
            f"column {name!r} has a different text in every row, a name and no category: drop it"
        )
    count = np.bincount(index)
    order = np.lexsort((-count, np.bincount(index, main) / count))
    return np.argsort(order)[index].astype(float), values[order]


def _normal_scores(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    from scipy.stats import norm

    rank = np.argsort(np.lexsort((rng.random(len(x)), x)))
    return norm.ppf((rank + 0.5) / len(x))


def _normal(S: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return draws of the normal law with the shrunk correlation of scores."""
    from scipy.stats import norm
    from sklearn.covariance import ledoit_wolf

    covariance = ledoit_wolf(S)[0]
    width = np.sqrt(np.diag(covariance))
    values, vectors = np.linalg.eigh(covariance / np.outer(width, width))
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    Z = rng.normal(size=(n, S.shape[1])) @ root.T
    # One draw in each n-th of every margin: columns keep their widths, as far as n quantiles tell them.
    rank = np.argsort(np.argsort(Z, axis=0), axis=0)
    return norm.ppf((rank + rng.random(Z.shape)) / n)


def _frame(made: dict[Any, np.ndarray], frame: Any, library: str) -> Any:
    """Return new columns as a frame of the dtypes of the old one."""
    module = import_module(library)
    if library == "pandas":
        new = module.DataFrame(made, columns=list(frame.columns))
        new.columns = frame.columns
        return new.astype({name: frame[name].dtype for name in frame.columns})
    series = [
        module.Series(name, x if x.dtype.kind in "iu" else x.tolist()).cast(frame.schema[name])
        for name, x in made.items()
    ]
    return module.DataFrame(series)
