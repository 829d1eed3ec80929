r"""``K @ v`` as a function that PyTorch differentiates in points, weights and scale.

With :math:`p_{ic} = \sum_j k(x_i, y_j) v_{jc}` and the upstream gradient G (n, t) every derivative is a kernel sum:

============ ================================================================================
in v         :math:`K^T G`
in x_i       :math:`\sum_c G_{ic} \nabla_{x_i} p_{ic}`
in y_j       :math:`\sum_c v_{jc} \nabla_{y_j} (K^T G)_{jc}`
in the scale :math:`-\frac{1}{\ell} \big( \sum_i x_i \cdot g_{x_i} + \sum_j y_j \cdot g_{y_j} \big)`
============ ================================================================================

The last line is Euler's: k depends on (x - y) / scale alone, so moving all points apart and shrinking the scale are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.operator import KernelOperator

if TYPE_CHECKING:
    import torch


def library() -> Any:
    """Return the torch module, or say how to install it."""
    try:
        return import_module("torch")
    except ImportError as error:
        raise ImportError(
            "gpukoop.torch needs PyTorch, which is not installed: pip install gpukoop[torch]"
        ) from error


def check_tensor(x: Any, name: str) -> torch.Tensor:
    """Return ``x``; raise unless it is a floating tensor of two dimensions."""
    torch = library()
    if not isinstance(x, torch.Tensor):
        raise TypeError(
            f"{name} is a {type(x).__name__}, expected a torch.Tensor: gpukoop.metrics has the same "
            "functions for arrays"
        )
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} has dtype {x.dtype}, expected float32 or float64: {name}.float()")
    if x.layout is not torch.strided or x.device.type not in ("cpu", "cuda"):
        raise TypeError(
            f"{name} is a {x.layout} tensor on {x.device}, expected a dense one on the CPU or a CUDA device"
        )
    if x.ndim != 2:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}, expected (n, d): one row a point, a column a feature"
        )
    if 0 in x.shape:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}, expected at least one point and one feature"
        )
    return x


def product(
    kernel: AbstractKernel,
    X: torch.Tensor,
    Y: torch.Tensor,
    v: torch.Tensor,
    *,
    scale: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    r"""Return ``kernel(X, Y) @ v``, differentiable in X, Y, v and the scale.

    .. math:: p_{ic} = \sum_j k(x_i, y_j)\, v_{jc}

    Parameters
    ----------
    kernel : kernel
        With a scale that is a number; its own scale is replaced where ``scale`` is given.
    X, Y : tensors of shape (n, d) and (m, d)
        Float32 or float64, on one device.
    v : tensor of shape (m,) or (m, t)
        Weights of the sources.
    scale : tensor with one element, optional
        Length of a kernel of one term, in the units of the points.
    backend : str, optional
        Who computes, as for ``kernel(X, Y)``.

    Returns
    -------
    tensor of shape (n,) or (n, t)

    Raises
    ------
    TypeError, ValueError
        If an argument is no tensor, shapes do not fit, or ``scale`` is given for a sum of kernels.
    ImportError
        If PyTorch is not installed.

    Notes
    -----
    Cost: one sum forward; backward one sum for each of v, X and Y that needs it (the scale needs both X's and Y's). No
    n x m tensor is formed. Second derivatives are refused.

    Examples
    --------
    >>> import gpukoop as gk, torch  # doctest: +SKIP
    >>> X = torch.randn(1000, 3, requires_grad=True)  # doctest: +SKIP
    >>> gk.torch.product(gk.Gaussian(0.5), X, X.detach(), torch.ones(1000)).sum().backward()  # doctest: +SKIP
    """
    torch = library()
    X, Y = check_tensor(X, "X"), check_tensor(Y, "Y")
    if not isinstance(v, torch.Tensor) or v.ndim not in (1, 2):
        raise TypeError(f"v is {type(v).__name__}, expected a tensor of shape (m,) or (m, t)")
    if scale is not None:
        _check_scale(kernel, scale)
    columns = v if v.ndim == 2 else v[:, None]
    result = _product().apply(kernel, backend, X, Y, columns, scale)
    return result if v.ndim == 2 else result[:, 0]


def _check_scale(kernel: AbstractKernel, scale: Any) -> None:
    if not isinstance(scale, library().Tensor) or scale.numel() != 1:
        raise TypeError(f"scale is {scale!r}, expected a tensor with one element")
    if len(kernel.terms) > 1:
        raise ValueError(f"{kernel!r} has {len(kernel.terms)} scales: pass a kernel of one term")
    if not any(f.name == "scale" and f.init for f in fields(kernel.terms[0][1])):
        raise ValueError(f"{kernel!r} has no scale: leave out scale=")


def operator(
    kernel: AbstractKernel, X: torch.Tensor, Y: torch.Tensor, backend: str | None
) -> KernelOperator:
    """Return the lazy operator between detached tensors; one cloud stays one, its pairs may be visited once."""
    same = X.data_ptr() == Y.data_ptr() and X.shape == Y.shape and X.stride() == Y.stride()
    return KernelOperator(kernel, X.detach(), None if same else Y.detach(), backend=backend)


def _with_scale(kernel: AbstractKernel, scale: torch.Tensor | None) -> AbstractKernel:
    if scale is None:
        return kernel
    weight, term = kernel.terms[0]
    return weight * replace(term, scale=float(scale.detach()))


_functions: dict[str, Any] = {}


def once(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """Return a backward pass whose results, where PyTorch asks for a graph of them, say that they have none once it is used.

    PyTorch's own mark of this kind lets a gradient whose upstream is constant pass as a constant: a penalty on gradients would
    do nothing, without a word.
    """

    def only(ctx: Any, G: Any) -> tuple[Any, ...]:
        torch = library()
        if not torch.is_grad_enabled():
            return backward(ctx, G)
        with torch.no_grad():
            slopes = backward(ctx, G)
        refuse = _refused()
        return tuple(None if s is None else refuse(s) for s in slopes)

    return only


def _refused() -> Any:
    if "refused" in _functions:
        return _functions["refused"]
    torch = library()

    class Refused(torch.autograd.Function):  # type: ignore[name-defined]
        @staticmethod
        def forward(ctx: Any, slope: Any) -> Any:
            return slope.clone()

        @staticmethod
        def backward(ctx: Any, G: Any) -> Any:
            raise RuntimeError(
                "gpukoop.torch has first derivatives only: leave gradients of its sums out of what is differentiated, or take "
                "plain PyTorch for a penalty on gradients"
            )

    made = lambda slope: Refused.apply(slope.detach().requires_grad_())
    _functions["refused"] = made
    return made


def _product() -> Any:
    """Return the autograd function, made when torch is first needed."""
    if "product" in _functions:
        return _functions["product"]
    torch = library()

    class Product(torch.autograd.Function):  # type: ignore[name-defined]
        @staticmethod
        def forward(
            ctx: Any,
            kernel: AbstractKernel,
            backend: str | None,
            X: Any,
            Y: Any,
            v: Any,
            scale: Any,
        ) -> Any:
            ctx.kernel, ctx.backend = _with_scale(kernel, scale), backend
            ctx.save_for_backward(X, Y, v, scale)
            return operator(ctx.kernel, X, Y, backend) @ v.detach()

        @staticmethod
        @once
        def backward(ctx: Any, G: Any) -> tuple[Any, ...]:
            X, Y, v, scale = ctx.saved_tensors
            _, _, need_x, need_y, need_v, need_scale = ctx.needs_input_grad
            G = G.contiguous()
            slope_x = slope_y = slope_v = slope_scale = None
            if need_x or need_scale:
                slopes = operator(ctx.kernel, X, Y, ctx.backend).gradient(v.detach())  # (n, t, d)
                slope_x = (slopes * G[:, :, None]).sum(1)
            back = operator(ctx.kernel, Y, X, ctx.backend)
            if (need_y or need_scale) and need_v:
                slope_v, slopes = back.value_and_gradient(G)
                slope_y = (slopes * v[:, :, None]).sum(1)
            elif need_y or need_scale:
                slope_y = (back.gradient(G) * v[:, :, None]).sum(1)
            elif need_v:
                slope_v = back @ G
            if need_scale:
                # Centred: a common shift of all points changes nothing, but would cost digits.
                centre = X.mean(0)
                total = ((X - centre) * slope_x).sum() + ((Y - centre) * slope_y).sum()
                slope_scale = (-total / scale).reshape(scale.shape).to(scale.dtype)
            return (
                None,
                None,
                slope_x if need_x else None,
                slope_y if need_y else None,
                slope_v,
                slope_scale,
            )

    _functions["product"] = Product
    return Product


__all__ = ["check_tensor", "library", "once", "operator", "product"]
