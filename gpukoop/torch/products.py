"""MMD of batches in many dimensions by products of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpukoop.flow import groups
from gpukoop.kernels.formula.catalogue import Gaussian
from gpukoop.kernels.formula.profile import AbstractKernel, KernelSum
from gpukoop.torch.sums import library

# From so many features on, distances by products of matrices are quicker than sums of differences ...
MANY_FEATURES = 64
# ... and exact to some 1e-5 of a kernel value where no point is farther from the centre than the root of so many scales squared.
FARTHEST = 100.0


def by_products(kernel: AbstractKernel, X: Any, Y: Any) -> tuple[float, Any, Any] | None:
    """Return value and gradient in X by products of matrices where these are the quicker way, else None.

    That is so for Gaussians between batches of one size on the host, in many dimensions, and in float32 exact enough where no
    point is many scales away from the centre.
    """
    n, d = X.shape
    terms = kernel.terms if isinstance(kernel, Gaussian | KernelSum) else ()
    scales = [k.scale for _, k in terms if isinstance(k.scale, float | int)]
    if (
        not terms
        or len(scales) < len(terms)
        or X.device.type != "cpu"
        or X.dtype != library().float32
        or len(Y) != n
        or d < MANY_FEATURES
        or n * n > groups.LARGEST
        or any(type(k) is not Gaussian for _, k in terms)
    ):
        return None
    x, y = X.detach().numpy(), Y.detach().numpy()
    centre = y.mean(axis=0)
    x, y = (x - centre)[None], (y - centre)[None]
    # In units of the smallest scale, to a power of two: no digit changes, and no square of float32 vanishes.
    exponent = int(np.frexp(min(scales))[1])
    x, y = np.ldexp(x, -exponent), np.ldexp(y, -exponent)
    scales = [float(np.ldexp(scale, -exponent)) for scale in scales]
    farthest = max(float((cloud**2).sum(axis=2).max()) for cloud in (x, y))
    if not farthest <= FARTHEST * min(scales) ** 2:
        return None
    a = np.full((1, n), 1 / n, np.float32)
    found = groups.mmd(x, y, a, scales, [float(weight) for weight, _ in terms])
    slope = library().from_numpy(np.ldexp(found.velocity[0], -exponent)).mul_(-2 / n)
    if not bool(slope.isfinite().all()):
        return None
    return 2 * float(found.energy[0]), slope, None
