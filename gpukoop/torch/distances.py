r"""Distances between clouds that PyTorch differentiates; values as in :mod:`gpukoop.metrics`.

Each is one ``torch.autograd.Function`` whose forward pass computes value and gradients together: the backward pass multiplies
numbers that are there. Gradients in a cloud that asks for none are not computed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from gpukoop.arrays import Array, namespace, points
from gpukoop.checks import times_power
from gpukoop.draws import RandomState, check_count, check_positive, random_generator
from gpukoop.flow.sinkhorn import problem, solve, solve_symmetric, transport_value
from gpukoop.kernels.formula.catalogue import Energy, Gaussian
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.metrics.transport import quantile_levels
from gpukoop.scales import median_scale
from gpukoop.torch.products import by_products
from gpukoop.torch.sums import check_tensor, library, once, operator
from gpukoop.torch.units import far_from_one, require_held, scaled

if TYPE_CHECKING:
    import torch


def mmd(
    X: torch.Tensor,
    Y: torch.Tensor,
    kernel: AbstractKernel | None = None,
    *,
    squared: bool = False,
    backend: str | None = None,
) -> torch.Tensor:
    r"""Return the maximum mean discrepancy of two clouds (V-statistic), differentiable in both.

    .. math:: MMD^2 = \frac{1}{n^2} \sum_{ii'} k(x_i, x_{i'}) + \frac{1}{m^2} \sum_{jj'} k(y_j, y_{j'})
                      - \frac{2}{n m} \sum_{ij} k(x_i, y_j)

    Parameters
    ----------
    X, Y : tensors of shape (n, d) and (m, d)
        Float32 or float64 on one device.
    kernel : kernel, optional
        None is the Gaussian whose scale is the median rule over Y; a sum of kernels gives a mixture of scales.
    squared : bool
        Whether MMD^2 is returned: smooth at 0, which is what one trains with. The gradient of the root at 0 is taken as 0.
    backend : str, optional
        Who computes the sums.

    Returns
    -------
    tensor without dimension

    Notes
    -----
    Cost: one pass with gradients over n^2 + n m pairs (X needs them), m^2 + n m (Y does); memory O(n + m).

    References
    ----------
    .. [1] A. Gretton et al., A Kernel Two-Sample Test, JMLR 13, 2012, eq. 5.
    """
    X, Y = _pair(X, Y)
    if kernel is None:
        kernel = Gaussian(median_scale(points(Y.detach(), "Y")[0]))
    kernel = kernel.resolve(lambda rule: median_scale(points(Y.detach(), "Y")[0]))
    value = _gap().apply(kernel, backend, X, Y).clamp_min(0.0)
    if squared:
        return value
    # The root of zero has no slope: one is chosen instead of inf, so that training does not end in NaN.
    positive = value > 0
    return value.where(positive, value.new_ones(())).sqrt().where(positive, value * 0.0)


def energy_distance(
    X: torch.Tensor, Y: torch.Tensor, *, backend: str | None = None
) -> torch.Tensor:
    r"""Return the energy distance :math:`2 E|x - y| - E|x - x'| - E|y - y'|`, differentiable in both clouds.

    Parameters
    ----------
    X, Y : tensors of shape (n, d) and (m, d)
    backend : str, optional
        Who computes the sums.

    Returns
    -------
    tensor without dimension
        In the units of the points. Coinciding points contribute the subgradient 0.
    """
    X, Y = _pair(X, Y)
    return _gap().apply(Energy(), backend, X, Y)


def sinkhorn_divergence(
    X: torch.Tensor,
    Y: torch.Tensor,
    *,
    blur: float,
    n_iter: int = 1_000,
    tol: float = 1e-4,
    backend: str | None = None,
) -> torch.Tensor:
    r"""Return the debiased Sinkhorn divergence of two clouds with equal weights, differentiable in both.

    .. math:: \nabla_{x_i} S = \tfrac{1}{n} (T_{xx} x_i - T_{xy} x_i)

    with the barycentric maps T of the plans (the envelope theorem: potentials are not differentiated).

    Parameters
    ----------
    X, Y : tensors of shape (n, d) and (m, d)
    blur : float
        Length of the entropy, in the units of the points; the cost is |x - y|^2 / 2.
    n_iter, tol : int and float
        Iterations at the last blur at most, and the marginal error they stop at.
    backend : str, optional
        Who computes the log-sum-exps.

    Returns
    -------
    tensor without dimension

    References
    ----------
    .. [1] J. Feydy et al., arXiv 1810.08278.
    """
    X, Y = _pair(X, Y)
    blur = check_positive(blur, "blur")
    if not 0 < blur * blur < math.inf:
        raise ValueError(
            f"blur is {blur}, and its square leaves the range of float64: rescale the points and it"
        )
    how = {"n_iter": check_count(n_iter, "n_iter"), "tol": check_positive(tol, "tol")}
    return _transport().apply(blur, how, backend, X, Y)


def sliced_wasserstein(
    X: torch.Tensor,
    Y: torch.Tensor,
    *,
    n_projections: int = 128,
    random_state: RandomState = 0,
) -> torch.Tensor:
    r"""Return the root of the mean squared W2 of projections on lines, differentiable in both clouds.

    .. math:: SW_2^2 = \frac{1}{P} \sum_\theta W_2^2(\theta \cdot X, \theta \cdot Y)

    Parameters
    ----------
    X, Y : tensors of shape (n, d) and (m, d)
    n_projections : int
        P; the directions are those of :func:`gpukoop.metrics.sliced_wasserstein` with the same ``random_state``.
    random_state : int, Generator, RandomState or None
        A new one at every step makes the gradient unbiased over steps.

    Returns
    -------
    tensor without dimension

    Notes
    -----
    Cost: P (n + m) numbers and a sort of each; PyTorch's own operations, so derivatives of any order exist.
    """
    torch = library()
    X, Y = _pair(X, Y)
    for cloud, name in ((X, "X"), (Y, "Y")):
        if not bool(torch.isfinite(cloud).all()):
            raise ValueError(f"{name} contains NaN or inf: drop or repair these rows first")
    rng = random_generator(random_state)
    directions = rng.standard_normal((check_count(n_projections, "n_projections"), X.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lines = torch.as_tensor(directions.T).to(X)
    exponent = far_from_one(max(float(cloud.detach().abs().max()) for cloud in (X, Y)))
    X, Y = scaled(X, -exponent), scaled(Y, -exponent)
    x, y = (X @ lines).sort(0).values, (Y @ lines).sort(0).values
    n, m = len(X), len(Y)
    if n != m:
        # Quantile functions are steps, constant between the merged levels i/n and j/m, kept as multiples of 1/(n m).
        level = quantile_levels(n, m)
        width = torch.as_tensor(np.diff(level, prepend=0) / (n * m)).to(X)
        at_x = torch.as_tensor((level - 1) // m, device=X.device)
        at_y = torch.as_tensor((level - 1) // n, device=X.device)
        total = (width[:, None] * (x[at_x] - y[at_y]) ** 2).sum(0).mean()
    else:
        total = ((x - y) ** 2).mean()
    positive = total > 0
    root = total.where(positive, total.new_ones(())).sqrt().where(positive, total * 0.0)
    distance = scaled(root, exponent)
    require_held(float(root.detach()), float(distance.detach()))
    return distance


def _pair(X: Any, Y: Any) -> tuple[torch.Tensor, torch.Tensor]:
    X, Y = check_tensor(X, "X"), check_tensor(Y, "Y")
    if X.shape[1] != Y.shape[1]:
        raise ValueError(
            f"X has {X.shape[1]} features and Y {Y.shape[1]}: both clouds need the same"
        )
    if X.device != Y.device or X.dtype != Y.dtype:
        raise ValueError(
            f"X is {X.dtype} on {X.device} and Y {Y.dtype} on {Y.device}: move one with Y.to(X)"
        )
    return X, Y


_functions: dict[str, Any] = {}


def _differentiable(name: str, evaluate: Any, n_constants: int) -> Any:
    """Return an autograd function of two clouds from ``evaluate(*constants, X, Y, need_x, need_y)``.

    ``evaluate`` returns the value and both gradients, None where one is not needed.
    """
    if name in _functions:
        return _functions[name]
    torch = library()

    class Distance(torch.autograd.Function):  # type: ignore[name-defined]
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            X = arguments[n_constants]
            value, *slopes = evaluate(*arguments, *ctx.needs_input_grad[n_constants:])
            ctx.slopes = slopes
            made = X.new_tensor(value)
            require_held(value, float(made))
            return made

        @staticmethod
        @once
        def backward(ctx: Any, G: Any) -> tuple[Any, ...]:
            return (
                *(None for _ in range(n_constants)),
                *(None if s is None else G * s for s in ctx.slopes),
            )

    _functions[name] = Distance
    return Distance


def _gap() -> Any:
    return _differentiable("gap", _mean_gap, 2)


def _mean_gap(
    kernel: AbstractKernel, backend: str | None, X: Any, Y: Any, need_x: bool, need_y: bool
) -> tuple[float, Any, Any]:
    """Return E k(x, x') + E k(y, y') - 2 E k(x, y), in float64 from the sums on, and its gradients."""
    if backend is None and not need_y and (at_once := by_products(kernel, X, Y)) is not None:
        return at_once
    points(Y.detach(), "Y")  # the sum between a cloud and itself would call it X
    exponent = 0
    if kernel == Energy():  # homogeneous in the points, and so are its slopes of degree 0
        exponent = far_from_one(max(float(cloud.detach().abs().max()) for cloud in (X, Y)))
        X, Y = (scaled(cloud.detach(), -exponent) for cloud in (X, Y))
    xx, own_x = _mean(kernel, backend, X, X, need_x)
    yy, own_y = _mean(kernel, backend, Y, Y, need_y)
    xy, cross_x = _mean(kernel, backend, X, Y, need_x)
    cross_y = _mean(kernel, backend, Y, X, True)[1] if need_y else None
    slope_x = 2 / len(X) * (own_x - cross_x) if need_x else None
    slope_y = 2 / len(Y) * (own_y - cross_y) if need_y else None
    return times_power(xx + yy - 2 * xy, exponent, "the distance"), slope_x, slope_y


def _mean(
    kernel: AbstractKernel, backend: str | None, A: Any, B: Any, slope: bool
) -> tuple[float, Any]:
    """Return the mean of k over both clouds, and the gradient of the mean over B in each point of A."""
    K = operator(kernel, A, B, backend)
    weights = A.new_full((len(B),), 1 / len(B))
    if not slope:
        return float((K @ weights).double().mean()), None
    value, gradient = K.value_and_gradient(weights)
    return float(value.double().mean()), gradient


def _transport() -> Any:
    return _differentiable("transport", _divergence, 3)


def _divergence(
    blur: float,
    how: dict[str, Any],
    backend: str | None,
    X: Any,
    Y: Any,
    need_x: bool,
    need_y: bool,
) -> tuple[float, Any, Any]:
    options: dict[str, Any] = {} if backend is None else {"backend": backend}
    (x, home), (y, _) = points(X.detach(), "X"), points(Y.detach(), "Y")
    exponent = far_from_one(blur)
    if exponent:
        x, y = (namespace(cloud).ldexp(cloud, -exponent) for cloud in (x, y))
        blur = math.ldexp(blur, -exponent)
    cross, own_x, own_y = (problem(a, b, **options) for a, b in ((x, y), (x, x), (y, y)))
    found = solve(cross, blur, **how)
    of_x, of_y = (solve_symmetric(own, blur, **how) for own in (own_x, own_y))
    value = transport_value(cross, found)
    value -= (transport_value(own_x, of_x) + transport_value(own_y, of_y)) / 2
    if not math.isfinite(value):
        raise ValueError(
            f"the divergence is not finite: the clouds are too far apart for blur={blur}; scale them down"
        )

    def slope(own: Array, other: Array) -> Any:
        return home.restore(namespace(own).ldexp((own - other) / len(own), exponent))

    slope_x = slope_y = None
    if need_x:
        slope_x = slope(own_x.feasible_map(of_x, blur), cross.feasible_map(found, blur))
    if need_y:
        # The same plan read from its columns: f starts the reversed problem where it ends.
        reversed_ = problem(y, x, **options)
        back = solve(reversed_, blur, start=found.f, **how)
        slope_y = slope(own_y.feasible_map(of_y, blur), reversed_.feasible_map(back, blur))
    found_value = times_power(value, 2 * exponent, "the divergence")
    require_held(value, found_value)
    return found_value, slope_x, slope_y
