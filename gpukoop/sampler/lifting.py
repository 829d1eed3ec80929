r"""The lift g(x, t) = [1, t, x, phi(x, t)] and what it asks of features: values and exact derivatives along the flow.

===  =================================================  ==========
n    points                                             rows
d    coordinates of x
M    features phi of all blocks together
D    2 + d + M                                          columns
u    velocity of the points, (n, d)
===  =================================================  ==========

Row vectors everywhere: g is 1 x D and d/dt g = g A. Time is a number, or an (n,) array.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, final

import numpy as np

from gpukoop.arrays import Array, is_cupy, namespace
from gpukoop.checks import check_kind
from gpukoop.draws import check_count
from gpukoop.fusion import fused
from gpukoop.kernels.reference import squared_distances
from gpukoop.sampler.clock import Clock

# Numbers of one block of features: 2^17 float64 are 1 MB, so that the temporaries of a formula stay in cache. Larger
# blocks were measured four times slower.
BLOCK_ENTRIES = 2**17
# On a device: 128 MB, so that launches are few and each fills it.
DEVICE_ENTRIES = 2**24


class AbstractFeatures(ABC):
    """Functions phi of (x, t) with exact derivatives; to add a dictionary, implement these four names."""

    @property
    @abstractmethod
    def n_features(self) -> int:
        """M."""

    @abstractmethod
    def features(self, x: Array, t: Any) -> Array:
        """Return phi(x, t), (n, M)."""

    @abstractmethod
    def features_and_jvp(self, x: Array, t: Any, u: Array) -> tuple[Array, Array]:
        r"""Return phi and :math:`\partial_t \varphi + \nabla_x \varphi \cdot u`, both (n, M)."""

    @abstractmethod
    def product(self, x: Array, t: Any, P: Array) -> Array:
        """Return phi(x, t) @ P, (n, k), in O(n k) memory; :func:`blockwise_product` does for most."""


def row_blocks(n: int, width: int, x: Array) -> Iterator[slice]:
    """Yield slices of rows whose blocks of this width stay in cache, or where ``x`` is on a device fill it."""
    entries = DEVICE_ENTRIES if is_cupy(x) else BLOCK_ENTRIES
    size = max(1, entries // max(1, width))
    for start in range(0, n, size):
        yield slice(start, min(n, start + size))


def column(t: Any, x: Array) -> Array:
    """Return time as an (n, 1) array beside x."""
    xp = namespace(x)
    if np.ndim(t) == 0:
        return xp.full((len(x), 1), t, x.dtype)
    return xp.broadcast_to(t.astype(x.dtype, copy=False).reshape(-1, 1), (len(x), 1))


def pair_distances(z: Array, y: Array) -> Array:
    """Return |z_i - y_j|^2 from differences, (..., n, m), of float64 clouds (..., n, d) and (..., m, d)."""
    xp = namespace(z)
    if xp is np:
        if z.ndim == 2:
            return squared_distances(z, y)
        return np.stack([squared_distances(*pair) for pair in zip(z, y, strict=True)])
    q = xp.zeros((*z.shape[:-1], y.shape[-2]))
    for c in range(z.shape[-1]):
        q = _add_square(q, z[..., c, None], y[..., None, :, c])
    return q


@fused
def _add_square(xp: ModuleType, q: Array, z: Array, y: Array) -> Array:
    return q + (z - y) * (z - y)


@final
class Constant:
    """Numbers of a dictionary and their copies on devices, each made once."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)
        self._there: dict[tuple[int, np.dtype], Array] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"values": self.values, "_there": {}}

    def beside(self, x: Array, dtype: Any = None) -> Array:
        """Return them where x lives, in its dtype or in this one."""
        dtype = np.dtype(x.dtype if dtype is None else dtype)
        if not is_cupy(x):
            return self.values.astype(dtype, copy=False)
        key = (x.device.id, dtype)
        if key not in self._there:
            self._there[key] = namespace(x).asarray(self.values, dtype=dtype)
        return self._there[key]


def rows_of(t: Any, rows: slice) -> Any:
    """Return the entries of time that belong to these rows; a number belongs to all."""
    return t if np.ndim(t) == 0 else t[rows]


def blockwise_product(block: AbstractFeatures, x: Array, t: Any, P: Array) -> Array:
    """Return ``block.features(x, t) @ P`` without the n x M matrix."""
    xp = namespace(x)
    out = xp.empty((len(x), P.shape[1]), dtype=x.dtype)
    for rows in row_blocks(len(x), block.n_features, x):
        out[rows] = block.features(x[rows], rows_of(t, rows)) @ P
    return out


def is_features(source: Any) -> bool:
    """Whether an object has the methods of features; their answers are looked at when they are first asked."""
    return all(callable(getattr(source, name, None)) for name in ("features", "features_and_jvp"))


@final
class UserFeatures(AbstractFeatures):
    """Features of the user: any object with ``features(x, t)`` and ``features_and_jvp(x, t, u)``.

    They must be fixed functions of (x, t). A lift that is still being trained does not belong here: learning from
    triples without a teacher is exact in the mean for fixed features only.

    Parameters
    ----------
    source : object
        Its two methods return (n, M) arrays; t comes as an (n,) array.
    n_coordinates : int
        d, to ask once how many features there are.
    """

    def __init__(self, source: Any, n_coordinates: int) -> None:
        for name in ("features", "features_and_jvp"):
            if not callable(getattr(source, name, None)):
                raise TypeError(
                    f"{type(source).__name__} has no method {name}: features need features(x, t) and "
                    "features_and_jvp(x, t, u), u the velocity"
                )
        self.source = source
        n_coordinates = check_count(n_coordinates, "n_coordinates")
        probe = np.asarray(source.features(np.zeros((1, n_coordinates)), np.zeros(1)))
        if probe.ndim != 2 or len(probe) != 1:
            raise ValueError(
                f"features(x, t) of one point has shape {probe.shape}, expected (1, M)"
            )
        self._n_features = int(probe.shape[1])

    @property
    def n_features(self) -> int:
        """M."""
        return self._n_features

    def features(self, x: Array, t: Any) -> Array:
        """Return phi(x, t)."""
        xp = namespace(x)
        phi = self.source.features(x, column(t, x)[:, 0])
        return self._checked(xp.asarray(phi, dtype=x.dtype), x)

    def features_and_jvp(self, x: Array, t: Any, u: Array) -> tuple[Array, Array]:
        """Return phi and its derivative along (u, 1)."""
        xp = namespace(x)
        pair = self.source.features_and_jvp(x, column(t, x)[:, 0], u)
        phi, rate = (self._checked(xp.asarray(a, dtype=x.dtype), x) for a in pair)
        return phi, rate

    def product(self, x: Array, t: Any, P: Array) -> Array:
        """Return phi(x, t) @ P."""
        return blockwise_product(self, x, t, P)

    def _checked(self, phi: Array, x: Array) -> Array:
        if phi.shape != (len(x), self.n_features):
            raise ValueError(
                f"user features of {len(x)} points have shape {phi.shape}, expected "
                f"({len(x)}, {self.n_features})"
            )
        return phi


@final
class Lift:
    r"""The dictionary of a sampler: constant, time, the coordinates, then blocks of features.

    .. math:: g = [1, \theta, x, \varphi(x, t)], \qquad L g = \rho\, [0, \dot\theta, u, J_\varphi (u, 1)]

    with time row theta = t and rho = 1 in the linear clock, theta = 1 - t and rho = 1 - t in the log clock. The
    coordinates make "take columns 2 .. 2 + d" a decoder without parameters; the constant makes theta linear.

    Parameters
    ----------
    n_coordinates : int
        d.
    blocks : sequence of features
    clock : Clock
    """

    def __init__(
        self, n_coordinates: int, blocks: Sequence[AbstractFeatures], clock: Clock | None = None
    ) -> None:
        self.n_coordinates = check_count(n_coordinates, "n_coordinates")
        if not isinstance(blocks, Sequence) or not all(
            isinstance(b, AbstractFeatures) for b in blocks
        ):
            raise TypeError(
                f"blocks is {blocks!r}, expected a list of features such as [PolynomialFeatures(d, 2, 1)]"
            )
        self.blocks = tuple(blocks)
        self.clock = Clock() if clock is None else clock
        check_kind(self.clock, Clock, "clock")
        self.n_features = 2 + n_coordinates + sum(block.n_features for block in self.blocks)

    @property
    def coordinates(self) -> slice:
        """Columns of g that are x."""
        return slice(2, 2 + self.n_coordinates)

    @property
    def decoder(self) -> np.ndarray:
        """The columns of the identity that read x off g, (D, d)."""
        return np.eye(self.n_features)[:, self.coordinates]

    @property
    def time_column(self) -> np.ndarray:
        """Column 1 of the generator, known exactly: L t = 1, or L r = -r."""
        known = np.zeros(self.n_features)
        known[1 if self.clock.log else 0] = -1.0 if self.clock.log else 1.0
        return known

    @property
    def autonomous(self) -> bool:
        """Whether no feature but the row of time depends on it, seen at a few points and times."""
        x = np.random.default_rng(0).standard_normal((4, self.n_coordinates))
        first, *others = (self.lift(x, t)[:, 2:] for t in (0.0, 0.3, 1.0))
        return all(np.array_equal(first, other) for other in others)

    def _head(self, g: Array, x: Array, t: Any) -> None:
        g[:, 0] = 1.0
        t = column(t, x)[:, 0]
        g[:, 1] = 1.0 - t if self.clock.log else t
        g[:, self.coordinates] = x

    def lift(self, x: Array, t: Any) -> Array:
        """Return g(x, t), (n, D)."""
        xp = namespace(x)
        g = xp.empty((len(x), self.n_features), dtype=x.dtype)
        self._head(g, x, t)
        at = self.coordinates.stop
        for block in self.blocks:
            g[:, at : at + block.n_features] = block.features(x, t)
            at += block.n_features
        return g

    def lift_and_generate(self, x: Array, t: Any, u: Array) -> tuple[Array, Array]:
        """Return g and L g along the velocity u = dx/dt, both (n, D), in units of the clock."""
        xp = namespace(x)
        g = xp.empty((len(x), self.n_features), dtype=x.dtype)
        rate = xp.empty_like(g)
        self._head(g, x, t)
        rate[:, 0] = 0.0
        rate[:, 1] = -1.0 if self.clock.log else 1.0
        rate[:, self.coordinates] = u
        at = self.coordinates.stop
        for block in self.blocks:
            into = slice(at, at + block.n_features)
            g[:, into], rate[:, into] = block.features_and_jvp(x, t, u)
            at += block.n_features
        if self.clock.log:
            rate *= 1.0 - column(t, x)
        return g, rate

    def product(self, x: Array, t: Any, P: Array) -> Array:
        """Return g(x, t) @ P, (n, k), without the n x D matrix: one evaluation of the features, one GEMM."""
        xp = namespace(x)
        P = xp.asarray(P, dtype=x.dtype)
        time = t if np.ndim(t) == 0 else column(t, x)
        out = _affine(x @ P[self.coordinates], P[0], P[1], 1.0 - time if self.clock.log else time)
        at = self.coordinates.stop
        for block in self.blocks:
            out += block.product(x, t, P[at : at + block.n_features])
            at += block.n_features
        return out


@fused
def _affine(xp: ModuleType, linear: Array, constant: Array, slope: Array, head: Any) -> Array:
    return constant + head * slope + linear
