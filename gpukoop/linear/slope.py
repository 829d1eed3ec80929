r"""How :math:`u^T K v` changes with the scales of the kernel: for likelihoods and for learning scales without autograd.

k depends on (x_c - y_c) / l_c alone, so shrinking a scale and moving all points apart along that feature are the same:

.. math:: l_c \frac{\partial}{\partial l_c} u^T K v
          = -\sum_i u_i x_{ic} \frac{\partial (K v)_i}{\partial x_{ic}} - \sum_j v_j y_{jc} \frac{\partial (K^T u)_j}{\partial y_{jc}}
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from gpukoop.arrays import Array, native_array, to_host, weights
from gpukoop.checks import check_kind
from gpukoop.kernels.formula.placed import AbstractPlaced
from gpukoop.kernels.formula.products import KernelProduct
from gpukoop.operator import KernelOperator


def scale_derivative(K: KernelOperator, u: Any, v: Any = None) -> np.ndarray:
    r"""Return the derivative of :math:`\sum_c u_c^T K v_c` in the scale of the kernel.

    Parameters
    ----------
    K : KernelOperator of shape (n, m)
        Of a radial kernel or a sum of them.
    u : array of shape (n,) or (n, t)
        Left vectors.
    v : array of shape (m,) or (m, t), optional
        Right vectors; None is ``u``, for a square K.

    Returns
    -------
    ndarray of shape (), (d,), (q,) or (q, d)
        On the host, float64: (d,) where the kernel has a scale for each feature; a first axis of q where it is a sum of q
        kernels.

    Raises
    ------
    TypeError, ValueError
        If K is no kernel operator, the kernel has no scale or is a product of kernels, or shapes do not fit.

    Notes
    -----
    Cost: two gradients, n m (d + t) operations each, for each term of a sum. ``gpukoop.torch.product`` has the same derivative
    under autograd.

    Examples
    --------
    >>> import numpy as np, gpukoop as gk
    >>> X = np.random.default_rng(0).normal(size=(100, 2))
    >>> u, h = np.ones(100), 1e-5
    >>> f = lambda scale: u @ (gk.Gaussian(scale)(X) @ u)
    >>> slope = gk.scale_derivative(gk.Gaussian(0.7)(X), u)
    >>> bool(abs(slope - (f(0.7 + h) - f(0.7 - h)) / (2 * h)) < 1e-5 * abs(slope))
    True
    """
    check_kind(K, KernelOperator, "K")
    if isinstance(K.kernel, AbstractPlaced):
        raise TypeError(
            f"{K.kernel!r} is no function of the distance between points, expected a radial kernel or a sum of them"
        )
    for _, radial in K.kernel.terms:
        own = any(f.name == "scale" and f.init for f in fields(radial))
        if isinstance(radial, KernelProduct) or not own:
            raise ValueError(
                f"{radial!r} has no single scale to differentiate in: pass a kernel such as Gaussian, or a sum of them"
            )
    n, m = K.shape
    if v is None and n != m:
        raise ValueError(f"K has shape {K.shape}: pass v of {m} rows too, for u has {n}")
    U = weights(u, "u", n, K.X)
    V = U if v is None else weights(v, "v", m, K.Y)
    if U.shape[1] != V.shape[1]:
        raise ValueError(f"u has {U.shape[1]} columns and v has {V.shape[1]}: they go in pairs")
    # Products of the largest numbers leave the range: sizes are taken out first.
    sizes = [float(abs(A).max()) or 1.0 for A in (U, V)]
    U, V = U / sizes[0], V / sizes[1]
    parts = [_derivative(K._with(kernel=c * radial), U, V) for c, radial in K.kernel.terms]
    with np.errstate(over="ignore"):
        out = (parts[0] if len(parts) == 1 else np.array(parts)) * sizes[0] * sizes[1]
    if not np.isfinite(out).all():
        raise ValueError("the derivative leaves the range of float64: scale u and v down")
    return np.asarray(out)


def _derivative(K: KernelOperator, U: Array, V: Array) -> np.ndarray:
    """Return that of a kernel of one term."""
    centre = K.X.mean(axis=0)  # a common shift of all points changes nothing, but would cost digits
    total: Any = 0.0
    for A, left, right in ((K, U, V), (K.T, V, U)):
        slopes = native_array(A.gradient(right), "gradient")[0]  # (n, t, d)
        moved = (slopes.astype(float) * left[:, :, None]).sum(axis=1) * (A.X - centre)
        total = total - to_host(moved.sum(axis=0))
    scale = K.kernel.terms[0][1].scale
    if isinstance(scale, tuple):
        return total / np.array(scale)
    return np.asarray(total.sum() / scale)
