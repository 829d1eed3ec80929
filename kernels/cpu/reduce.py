r"""Kernel sums on the CPU: compiled, vectorised, on every core, in O(n + m) memory.

========= ====================== ==========================================
letter    shape                  meaning
========= ====================== ==========================================
X         (n, d)                 targets
Y         (m, d)                 sources
V         (m, t)                 weights, t columns
b         (m,)                   logarithms of weights; -inf is weight zero
========= ====================== ==========================================

Arrays are C-contiguous, of one dtype, float32 or float64, and finite (``b`` may hold -inf); they are validated
by the caller and never changed. Results have their dtype. The same input gives the same bits, whatever
the number of threads.

Points are scaled by a power of two, which is exact; the rest of the scale multiplies the squared
distance. So x - y is as exact as the input allows, wherever the cloud lies: no centring, no cancellation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from gpukoop.kernels.arrays import Array
from gpukoop.kernels.cells import MIN_CELLS, MIN_TARGETS, Plan, make_plan
from gpukoop.kernels.cpu.loops import COLUMNS, LOG2_E
from gpukoop.kernels.cpu.module import load
from gpukoop.kernels.cpu.source import source
from gpukoop.kernels.cpu.threads import n_threads, share
from gpukoop.kernels.cpu.variant import LANES, Arguments, Variant, choose
from gpukoop.kernels.formula.profile import AbstractKernel, AbstractRadial, Trace, trace
from gpukoop.kernels.operation import Operation
from gpukoop.kernels.request import Request

BLOCK = 64  # targets that share a tile of sources while it is in the first-level cache
PAIRS_PER_TASK = 1 << 24  # about 2 ms: long against a hand-over, short against a busy neighbour
INTERRUPT = 1 << 29  # bytes of such pairs, a quarter of a second: how long Ctrl-C waits
SHORT_POLYNOMIAL_TOL = 5e-6  # the degree-4 exp2 is right to 2.9e-6

_EVERY_TILE, _NOTHING_LEFT = np.empty((0, 0), np.int32), np.empty((0, 0))

_trace = lru_cache(maxsize=512)(trace)
_runs: dict[tuple[str, Variant], Callable[..., None]] = {}


def _compiled(of: Trace, variant: Variant) -> Callable[..., None]:
    key = of.key, variant
    if key not in _runs:
        _runs[key] = load(source(of, variant))
    return _runs[key]


# -- layout ------------------------------------------------------------------------------------------


def _round_up(size: int, step: int) -> int:
    return -(-size // step) * step


def _pack_rows(X: Array, features: int, rows: int, power: float) -> Array:
    """Return X times a power of two, padded with zero features and repeated last rows."""
    n, d = X.shape
    out = np.zeros((_round_up(n, rows), features), X.dtype)
    np.multiply(X, X.dtype.type(power), out=out[:n, :d])
    # Copies of a real target in the last group: their sums are finite, and nobody reads them.
    out[n:] = out[n - 1]
    return out


def _pack_sources(Y: Array, V: Array, columns: int, tile: int, power: float, pad: float) -> Array:
    """Return tiles of [coordinates; weights], each row ``tile`` sources long: (n_tiles, rows * tile)."""
    (m, d), t = Y.shape, V.shape[1]
    n_tiles = -(-m // tile)
    S = np.zeros((n_tiles, d + columns, tile), Y.dtype)
    full, rest = divmod(m, tile)
    scale = Y.dtype.type(power)
    # A structure of arrays within every tile: vectors of sources are contiguous for each coordinate, and a tile is one stretch
    # of memory.
    np.multiply(Y[: full * tile].reshape(full, tile, d).transpose(0, 2, 1), scale, out=S[:full, :d])
    S[:full, d : d + t] = V[: full * tile].reshape(full, tile, t).transpose(0, 2, 1)
    if rest:
        np.multiply(Y[full * tile :].T, scale, out=S[full, :d, :rest])
        S[full, :d, rest:] = S[full, :d, rest - 1 : rest]  # finite, and as far away as a real point
        S[full, d : d + t, :rest] = V[full * tile :].T
        S[full, d:, rest:] = pad
    return S.reshape(n_tiles, -1)


# -- one reduction -----------------------------------------------------------------------------------


def _reduce(
    of: Trace,
    coefficient: float,
    X: Array,
    Y: Array,
    V: Array,
    variant: Variant,
    plan: Plan | None = None,
) -> tuple[Array, Array]:
    """Return (value, gradient) of one trace; the one that was not asked for is empty."""
    (n, d), m, t = X.shape, len(Y), V.shape[1]
    real = X.dtype.type
    out = np.empty((n if variant.value else 0, t), real)
    grad = np.empty((n if variant.slope else 0, t, d), real)
    # An empty sum is 0 and its logarithm -inf; compiled loops would read the last row of nothing.
    if n == 0 or m == 0 or t == 0:
        out.fill(-np.inf if variant.log else 0.0)
        grad.fill(0.0)
        return out, grad
    run = _compiled(of, variant)
    # A power of two scales without rounding; the bounds keep float32 coordinates far from overflow and from denormals.
    exponent = round(math.log2(of.prescale))
    power = math.ldexp(1.0, max(-100, min(exponent, 100)))
    ratio = of.prescale / power
    features = _round_up(d, variant.pad)
    columns = variant.columns or _round_up(t, COLUMNS)
    width = columns * variant.value + columns * features * variant.slope + variant.skip
    # In units of pairs of the cheapest sum: a task should last as long whatever d and t are.
    work = max(1, (d + t * (1 + d * variant.slope)) // 4) * m
    if plan:
        block = plan.block
        X, Y, V = X[plan.targets.order], Y[plan.sources.order], V[plan.sources.order]
    else:
        # The float64 sums of a block stay in the second-level cache; few targets occupy all cores, too.
        block = min(BLOCK, max(1, (1 << 17) // (8 * width)), -(-n // (2 * n_threads())))
        whole = INTERRUPT // (work * X.itemsize * variant.targets)  # rows of a block, in loops
        block = min(block, max(1, whole * variant.targets))
        block = _round_up(block, variant.targets)
    Xp = _pack_rows(X, features, variant.targets, power)
    Yp = _pack_rows(Y, features, LANES, power) if variant.wide else Xp[:0]
    Sp = _pack_sources(Y, V, columns, variant.tile, power, -np.inf if variant.log else 0.0)
    constants = np.array([ratio * ratio, *of.values], real)
    # To whole vectors, not whole tiles: a tail of one source would otherwise cost a tile.
    padded = min(_round_up(m, LANES), len(Sp) * variant.tile)
    arguments = Arguments(
        start=0, stop=n, block=block, width=width, n_features=d, n_columns=t, T=columns, m=padded,
        value_factor=coefficient, slope_factor=2.0 * of.prescale * ratio * coefficient,
        tol=plan.tol if plan else 0.0, X=Xp, S=Sp, Y=Yp, P=constants,
        visit=_EVERY_TILE, left=_NOTHING_LEFT, out=out, grad=grad,
    )  # fmt: skip

    def piece(start: int, stop: int) -> None:
        # Lists of tiles belong to a block of targets: they are made by the thread that will use them.
        these = arguments._replace(start=start, stop=stop)
        if plan:
            visit, left = plan.visits(start, stop)
            these = these._replace(visit=visit, left=left)
        run(*these)

    rows = PAIRS_PER_TASK // work if plan is None else plan.rows
    share(piece, n, _round_up(max(1, min(rows, n // (4 * n_threads()))), block), n * work)
    # Cells sorted the targets; results go back to the order in which they came.
    if plan:
        back = np.empty_like(plan.targets.order)
        back[plan.targets.order] = np.arange(n)
        out, grad = out[back], grad[back] if variant.slope else grad
    return out, grad


def _read(kernel: AbstractKernel) -> tuple[Trace, float]:
    """Return (trace, factor): the weight of a single term stays outside the compiled code."""
    if len(kernel.terms) == 1:
        coefficient, radial = kernel.terms[0]
        return _trace(radial), coefficient
    return _trace(kernel), 1.0


def _sums(
    kernel: AbstractKernel,
    operation: Operation,
    X: Array,
    Y: Array,
    V: Array,
    tol: float | None,
) -> tuple[Array, Array]:
    of, coefficient = _read(kernel)
    # The gradient weighs a distant pair by its distance: there the short exponential would exceed tol.
    degree = _degree(X.dtype, None if operation.slope else tol)
    variant = choose(operation, X.shape[1], V.shape[1], X.dtype.name, degree)
    if tol is None:
        return _reduce(of, coefficient, X, Y, V, variant)
    scale = max(radial.length for _, radial in kernel.terms)
    plan = None
    if _bounded(variant, operation):
        plan = make_plan(of, scale if operation.slope else None, X, Y, V, variant.tile, tol)
    return _reduce(of, coefficient, X, Y, V, replace(variant, skip=plan is not None), plan)


def way(request: Request) -> str:
    """Return in words how a request is summed, as far as its sizes decide; the points decide the rest."""
    r = request
    variant = choose(r.operation, r.d, r.t, r.dtype, _degree(np.dtype(r.dtype), r.tol))
    if r.tol is None or not _bounded(variant, r.operation):
        return "every pair"
    enough = r.n >= MIN_TARGETS and r.m >= MIN_CELLS * variant.tile
    return "every pair, or cells of sources without those too far away" if enough else "every pair"


def _bounded(variant: Variant, operation: Operation) -> bool:
    """Return whether tiles have bounds: those are of one column, and relative to the value."""
    return bool(variant.features) and variant.columns == 1 and operation.value and not operation.log


def _degree(dtype: np.dtype, tol: float | None) -> int:
    if dtype == np.float64:
        return 11
    return 4 if tol is not None and tol >= SHORT_POLYNOMIAL_TOL else 5


def _logsumexp(
    kernel: AbstractKernel, operation: Operation, X: Array, Y: Array, b: Array
) -> tuple[Array, Array]:
    """Return L and its gradient; terms of a sum of kernels are added in the logarithm."""
    # exponents in base two; multiplied in float64, so that b = 1e4 keeps its digits
    bias = (b.astype(np.float64) * LOG2_E).astype(b.dtype)[:, None]
    terms = [_log_term(radial, c, operation, X, Y, bias) for c, radial in kernel.terms]
    total, slope = terms[0]
    # A sum of kernels has no logarithm in closed form: each term runs alone, and slopes are weighed by their shares.
    for level, grad in terms[1:]:
        both = np.logaddexp(total, level)
        if operation.slope:
            base = np.where(np.isneginf(both), 0.0, both).astype(both.dtype)
            slope = np.exp(total - base)[:, None] * slope + np.exp(level - base)[:, None] * grad
        total = both
    return total, slope


def _log_term(
    radial: AbstractRadial,
    coefficient: float,
    operation: Operation,
    X: Array,
    Y: Array,
    bias: Array,
) -> tuple[Array, Array]:
    variant = choose(operation, X.shape[1], 1, X.dtype.name, _degree(X.dtype, None))
    value, grad = _reduce(_trace(radial), 1.0, X, Y, bias, variant)
    level = value[:, 0]
    if coefficient != 1.0:
        # The weight of a term is a number beside the logarithm, added where float32 has no digits to lose.
        level = (level.astype(np.float64) + math.log(coefficient)).astype(level.dtype)
    return level, grad[:, 0]


def code(kernel: AbstractKernel, operation: Operation, d: int, t: int, dtype: str) -> str:
    """Return the modules behind an exact reduction: one, or for log-sum-exps one a term."""
    traces = [_trace(k) for _, k in kernel.terms] if operation.log else [_read(kernel)[0]]
    variant = choose(operation, d, 1 if operation.log else t, dtype, _degree(np.dtype(dtype), None))
    return "\n\n".join(source(of, variant) for of in dict.fromkeys(traces))


# -- the backend's functions ---------------------------------------------------------------------------


def reduce(
    kernel: AbstractKernel,
    operation: Operation,
    X: Array,
    Y: Array,
    V: Array,
    *,
    tol: float | None = None,
) -> Any:
    r"""Return the reduction, q being the squared distance in pre-scaled coordinates.

    .. math:: p_{ic} = \sum_j \varphi(q_{ij}) V_{jc}, \qquad
              g_{ic} = 2 \sum_j \varphi'(q_{ij}) V_{jc} (x_i - y_j)

    .. math:: L_i = \log \sum_j \varphi(q_{ij}) e^{V_j}, \qquad
              \nabla L_i = \sum_j e^{V_j - L_i} \, 2 \varphi'(q_{ij}) (x_i - y_j)

    Parameters
    ----------
    kernel : AbstractKernel
        With numeric scales; for log-sum-exps positive, every coefficient > 0.
    operation : Operation
    X, Y : array of shape (n, d), (m, d)
        Targets and sources.
    V : array of shape (m, t), or (m,) for log-sum-exps
        Weights, or their logarithms: -inf is weight zero.
    tol : float or None
        Accuracy relative to sum_j abs(V_j) k of every target. None is rounding accuracy. A number lets
        distant cells of sources be left out, guaranteed (:mod:`gpukoop.kernels.cells`: one column, d <= 4),
        and from 5e-6 on float32 uses a shorter exponential. Log-sum-exps are always exact to rounding.

    Returns
    -------
    arrays of shape (n, t) and (n, t, d); of log-sum-exps (n,) and (n, d)
        What the operation asks for, of the dtype of the points. A pair x_i = y_j contributes zero to a slope, also where
        phi' is infinite. Where every weight is zero, L is -inf and its gradient zero.

    Notes
    -----
    Cost: n m (d + t) operations, one exponential a pair for all columns (for log-sum-exps one a pair and term: the maximum
    of a tile is found before its first exponential). Memory: copies of the points and weights, O(n d + m (d + t)); the
    (n, m) matrix is never formed.
    Accuracy: differences of coordinates are exact to rounding at any offset; partial sums of a tile in the
    dtype of the points, tiles in float64. The logarithm of a kernel is taken in the expression, not of a number that has
    underflowed.
    """
    if operation.log:
        return operation.result(*_logsumexp(kernel, operation, X, Y, V))
    return operation.result(*_sums(kernel, operation, X, Y, V, tol))
