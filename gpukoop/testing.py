"""For whoever adds a kernel, a backend or an estimator: the tolerance, the suite that a backend passes, and known failures.

The suite needs neither pytest nor the tests of gpukoop. Its sums are plain NumPy in long double, written here from the
definition of a kernel, so that they share no loop with any backend.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gpukoop.backends import BACKENDS, AbstractBackend, check_name
from gpukoop.checks import check_kind
from gpukoop.kernels.arrays import Array
from gpukoop.kernels.formula.catalogue import CATALOGUE, Gaussian, Matern32
from gpukoop.kernels.formula.expr import Expr
from gpukoop.kernels.formula.profile import AbstractKernel, KernelSum, trace
from gpukoop.kernels.operation import OPERATIONS, PRODUCT, Operation, as_operation
from gpukoop.kernels.reference import evaluate
from gpukoop.kernels.request import Clouds, Request
from gpukoop.rounding import tolerance

__all__ = ["Conformance", "check_backend", "expected_failed_checks", "tolerance"]

Shape = tuple[int, int, int, int]

# (n, m, d, t): what breaks loops is the single point, the ragged edge of a block, one feature, many, and columns.
SHAPES: tuple[Shape, ...] = (
    (1, 1, 1, 1),
    (1, 70, 3, 1),
    (70, 1, 3, 1),
    (33, 257, 3, 1),
    (257, 33, 2, 3),
    (40, 50, 17, 1),
)

# By name of the estimator; today all of them pass all checks.
_KNOWN_FAILURES: dict[str, dict[str, str]] = {
    "KSWGD": {
        "check_sample_weight_equivalence_on_dense_data": "the default number of modes, the default scale and who has no neighbours "
        "count rows, and a row of weight two is one; with both given and a scale that reaches all rows, the fits agree to rounding"
    }
}


def expected_failed_checks(estimator: object) -> dict[str, str]:
    """Return the checks of scikit-learn that an estimator of gpukoop fails on purpose, each with its reason.

    Parameters
    ----------
    estimator : estimator

    Returns
    -------
    dict of str to str
        For ``sklearn.utils.estimator_checks.check_estimator(estimator, expected_failed_checks=...)``.

    Examples
    --------
    >>> expected_failed_checks(object())
    {}
    """
    return dict(_KNOWN_FAILURES.get(type(estimator).__name__, {}))


@dataclass
class Conformance:
    """What :func:`check_backend` did.

    Attributes
    ----------
    checked : int
        Requests that ran and were right.
    refused : dict of str to int
        The backend's words for the requests it refused, and how many.
    worst : float
        Largest error in units of the tolerance; 1 is the limit.
    """

    checked: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    worst: float = 0.0


def check_backend(
    backend: str | AbstractBackend,
    *,
    kernels: Iterable[AbstractKernel] | None = None,
    ops: Iterable[str | Operation] = tuple(OPERATIONS),
    dtypes: Iterable[str] = ("float32", "float64"),
    shapes: Iterable[Shape] = SHAPES,
    tol: float | None = None,
) -> Conformance:
    """Run the conformance suite on a backend; it returns, or raises AssertionError in words.

    Every kernel, operation, dtype and shape on spread, shifted, coinciding and clustered points must stay within
    :func:`tolerance` of sums in long double, in the dtype and shape of the contract, leave its inputs alone and give the same
    bits twice. ``missing``, ``refuses`` and ``seconds`` must answer as :class:`~gpukoop.backends.AbstractBackend` says.

    Parameters
    ----------
    backend : str or AbstractBackend
        Name of a known backend, or the object itself; it need not be registered.
    kernels : iterable of kernels, optional
        The catalogue and a sum by default.
    ops, dtypes, shapes : iterables
        What to run; a shape is (n, m, d, t). Compiling backends may want fewer shapes.
    tol : float, optional
        Accuracy to ask for, for backends that refuse exact sums.

    Returns
    -------
    Conformance
        Counts, refusals and the worst error.

    Raises
    ------
    AssertionError
        At the first failure; the message says what was asked, what came and what was expected.

    Examples
    --------
    >>> check_backend("numpy", shapes=[(5, 4, 2, 1)]).refused
    {}
    """
    if isinstance(backend, str):
        backend = BACKENDS[check_name(backend, "check_backend")]
    check_kind(backend, AbstractBackend, "backend")
    _check_answers(backend, tol)
    report = Conformance()
    for request, X, Y, V in _requests(kernels, ops, dtypes, shapes, tol):
        words = backend.refuses(request)
        _require(
            words is None or (isinstance(words, str) and bool(words.strip())),
            f"refuses({request}) returned {words!r}, expected None or a reason in words",
        )
        if words is not None:
            report.refused[words] = report.refused.get(words, 0) + 1
            continue
        _check_request(backend, request, X, Y, V, report)
    _require(report.checked > 0, f"{backend.name} refused every request: {report.refused}")
    return report


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _check_answers(backend: AbstractBackend, tol: float | None) -> None:
    name = getattr(backend, "name", None)
    _require(isinstance(name, str) and bool(name), f"{backend!r}.name is {name!r}, expected a word")
    missing = backend.missing()
    _require(missing is None, f"{name} cannot be checked on this machine: {missing}")
    small, large = (
        Request(PRODUCT, Gaussian(), n, n, 3, 1, "float32", "numpy", "cpu", tol)
        for n in (100, 1_000_000)
    )
    costs = backend.seconds(small), backend.seconds(large)
    _require(
        all(math.isfinite(c) and c > 0 for c in costs) and costs[0] <= costs[1],
        f"{name}.seconds returned {costs} for 100 and a million points, expected finite, > 0 and ascending",
    )


def _requests(
    kernels: Iterable[AbstractKernel] | None,
    ops: Iterable[str | Operation],
    dtypes: Iterable[str],
    shapes: Iterable[Shape],
    tol: float | None,
) -> Iterator[tuple[Request, Array, Array, Array]]:
    if kernels is None:
        kernels = [*(make() for make in CATALOGUE.values()), Gaussian(0.5) + 0.25 * Matern32(2.0)]
    operations, dtypes, shapes = [as_operation(op) for op in ops], list(dtypes), list(shapes)
    for kernel in kernels:
        for operation in operations:
            if operation.log and not kernel.positive:
                continue
            for dtype in dtypes:
                for n, m, d, t in shapes:
                    columns = 1 if operation.log else t
                    for X, Y, V in _problems(n, m, d, columns, dtype):
                        sizes = n, m, d, columns, dtype
                        yield Request(operation, kernel, *sizes, "numpy", "cpu", tol), X, Y, V


def _problems(n: int, m: int, d: int, t: int, dtype: str) -> Iterator[tuple[Array, Array, Array]]:
    rng = np.random.default_rng(0)
    X, Y, V = rng.normal(size=(n, d)), rng.normal(size=(m, d)), rng.normal(size=(m, t))
    spread = 3.0 / math.sqrt(d)  # kernels of scale 1 see some points and miss others
    Y[: n // 2] = X[:m][: n // 2]  # some pairs coincide
    for A, B in (
        (spread * X, spread * Y),
        (spread * X + 100.0, spread * Y + 100.0),
        (np.ones_like(X), np.ones_like(Y)),
        (spread * X + 20.0 * (X[:, :1] > 0), spread * Y + 20.0 * (Y[:, :1] > 0)),
    ):
        yield A.astype(dtype), B.astype(dtype), V.astype(dtype)


def _check_request(
    backend: AbstractBackend, request: Request, X: Array, Y: Array, V: Array, report: Conformance
) -> None:
    what = f"{backend.name}: {request.kernel!r}: {request}"
    before = [a.copy() for a in (X, Y, V)]
    got, again = (_pair(backend.run(replace(request, clouds=Clouds(X, Y)), V)) for _ in range(2))
    _require(
        all(np.array_equal(a, b) for a, b in zip(before, (X, Y, V), strict=True)),
        f"{what} changed its inputs",
    )
    operation = request.operation
    weights = V[:, 0] if operation.log else V
    expected = _exact(request.kernel, X, Y, weights, operation)
    bounds = _pair(tolerance(request.kernel, X, Y, weights, operation, tol=request.tol))
    _require(len(got) == len(expected), f"{what} gave {len(got)} results, expected {len(expected)}")
    for result, twin, truth, bound in zip(got, again, expected, bounds, strict=True):
        shape, dtype = getattr(result, "shape", None), getattr(result, "dtype", None)
        _require(
            shape == truth.shape and dtype == X.dtype,
            f"{what} gave shape {shape} and dtype {dtype}, expected {truth.shape} and {X.dtype}",
        )
        _require(
            np.array_equal(result, twin, equal_nan=True), f"{what} gave other bits the second time"
        )
        error = np.abs(result - truth)
        excess = np.where(error == 0, 0.0, error / np.maximum(bound, np.finfo(float).tiny))
        worst = float(np.where(np.isfinite(excess), excess, np.inf).max())
        where = np.unravel_index(int(np.argmax(excess)), excess.shape)
        _require(
            worst <= 1.0,
            f"{what}: entry {tuple(map(int, where))} is {result[where]!r}, expected {truth[where]:.17g} within "
            f"{bound[where]:.3g}; the worst error is {worst:.3g} times the tolerance",
        )
        report.worst = max(report.worst, worst)
    report.checked += 1


def _pair(result: Any) -> tuple[Array, ...]:
    return result if isinstance(result, tuple) else (result,)


def _exact(
    kernel: AbstractKernel, X: Array, Y: Array, V: Array, operation: Operation
) -> tuple[Array, ...]:
    """Return the results of an operation by dense sums in long double."""
    D = X.astype(np.longdouble)[:, None, :] - Y.astype(np.longdouble)[None, :, :]  # (n, m, d)
    W = V.astype(np.longdouble)
    phi, slope, log_phi = (sum_of_terms for sum_of_terms in _matrices(kernel, (D**2).sum(axis=-1)))
    if operation.log:
        logits = log_phi + W
        top = logits.max(axis=1, keepdims=True)
        p = np.exp(logits - top)
        total = p.sum(axis=1, keepdims=True)
        # d log sum = sum p dphi / phi: the ratio is finite where phi has not underflowed in long double
        grad = np.einsum("nm,nmd->nd", p / total * slope / phi, D)
        results = ((top + np.log(total))[:, 0], grad)
    else:
        results = (phi @ W, np.einsum("nm,mt,nmd->ntd", slope, W, D))
    return _pair(operation.result(*results))


def _matrices(kernel: AbstractKernel, squared: Array) -> tuple[Array, Array, Array]:
    """Return phi, the factor of x - y in its gradient, and log phi (0 where there is none), (n, m)."""
    phi, slope = np.zeros_like(squared), np.zeros_like(squared)
    for term in kernel.terms:
        t = trace(KernelSum((term,)))
        q = squared * np.longdouble(t.prescale) ** 2

        def of(tree: Expr, skip: bool, q: Array = q, t: Any = t) -> Array:
            apart = q > 0
            at = np.where(apart, q, 1.0) if skip else q
            return np.where(apart | (not skip), evaluate(tree, at, t.symbols, t.values), 0.0)

        phi += of(t.phi, t.singular)
        slope += 2 * np.longdouble(t.prescale) ** 2 * of(t.dphi, t.kink)
    with np.errstate(divide="ignore", invalid="ignore"):
        return phi, slope, np.log(phi) if kernel.positive else np.zeros_like(phi)
