r"""Kernels that are no function of the distance of x and y, but of that of points placed elsewhere.

.. math:: k(x, y) = \varphi\left(|e(x) - f(y)|^2\right)

A placed kernel says where points go, which radial kernel acts there, and how slopes come back by the chain rule. Every
backend then computes it as it computes the radial kernel: nothing is printed twice.
"""

from __future__ import annotations

import math
import numbers
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NoReturn

from gpukoop.kernels.arrays import Array, namespace
from gpukoop.kernels.formula.catalogue import Gaussian
from gpukoop.kernels.formula.lengths import Lengths, Scale
from gpukoop.kernels.formula.profile import AbstractKernel, AbstractRadial, KernelSum, Profile

LARGEST = 1e150  # of a number whose square, and that of its inverse, is in the range of float64


@dataclass(frozen=True)
class Placement:
    """Points where a kernel is radial.

    Attributes
    ----------
    kernel : kernel
        Radial, with numeric scales.
    X, Y : arrays
        The points there, of the dtype of those that came.
    back : callable or None
        ``back(G)``, the slope (n, ..., d) in the points themselves, given that in their places; None where both are one.
    lengths : tuple of float or None
        What points were divided by: kernels of one such tuple add in one pass.
    """

    kernel: AbstractKernel
    X: Array
    Y: Array
    back: Callable[[Array], Array] | None
    lengths: Lengths = None

    @property
    def adds(self) -> bool:
        """Whether kernels of these places add to one kernel."""
        return self.back is None or self.lengths is not None


class AbstractPlaced(AbstractKernel):
    """A kernel that is radial elsewhere. It multiplies with numbers; sums are sums of operators, ``k1(X, Y) + k2(X, Y)``."""

    weight: float

    def __post_init__(self) -> None:
        if not _real(self.weight) or not abs(self.weight) <= LARGEST:
            raise ValueError(f"weight must be a finite number, got {self.weight!r}")

    @abstractmethod
    def place(self, X: Array, Y: Array) -> Placement:
        """Return where points go, for one pair of clouds."""

    @property
    @abstractmethod
    def positive(self) -> bool:
        """Whether k > 0."""

    @property
    def terms(self) -> NoReturn:
        """None: raises TypeError."""
        raise TypeError(
            f"{self!r} is no function of the distance between points: k(X, Y) is an operator with products, gradients and "
            "eigenvalues; operators add, k1(X, Y) + k2(X, Y); flows, spectra and products of kernels need a radial kernel"
        )

    @property
    def resolved(self) -> bool:
        """True: no scale is named."""
        return True

    def resolve(self, rule: Callable[[str], float]) -> AbstractKernel:
        """Return itself."""
        return self

    def __mul__(self, factor: object) -> AbstractKernel:
        if isinstance(factor, bool) or not isinstance(factor, numbers.Real):
            return super().__mul__(factor)
        return replace(self, weight=self.weight * float(factor))  # type: ignore[type-var]

    __rmul__ = __mul__

    def _weighted(self, kernel: AbstractRadial) -> AbstractKernel:
        return kernel if self.weight == 1.0 else KernelSum(((self.weight, kernel),))


def _positive(value: Any, what: str, zero: bool = False) -> float:
    least = 0.0 if zero else 1 / LARGEST
    if not _real(value) or not least <= value <= LARGEST:
        raise ValueError(f"{what} must be a finite number {'>=' if zero else '>'} 0, got {value!r}")
    return float(value)


def _real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _squares(X: Array, unit: Any = 1.0) -> Array:
    """Return |x / unit|^2 in float64, (n, 1)."""
    return ((X.astype(float) / unit) ** 2).sum(axis=1, keepdims=True)


def _middle(a: Array, like: Array) -> Array:
    """Return an (n, d) array that broadcasts with slopes (n, t, d) too."""
    return a if like.ndim == 2 else a[:, None, :]


@dataclass(frozen=True)
class _HalfSquare(AbstractRadial):
    """1 - s / 2: the product of two unit vectors."""

    scale: Scale = field(default=1.0, init=False, repr=False)
    profile: ClassVar[Profile] = Profile(lambda s: 1 - s / 2, lambda s: -0.5, positive=False)


@dataclass(frozen=True)
class Cosine(AbstractPlaced):
    r"""Cosine kernel :math:`x \cdot y / (|x| |y|)`: points act by their directions.

    On the sphere it is 1 - s / 2 with s the squared distance of x / |x| and y / |y|.

    Parameters
    ----------
    weight : float
        Multiplies the kernel.

    References
    ----------
    .. [1] J. Shawe-Taylor, N. Cristianini, Kernel Methods for Pattern Analysis, 2004, section 5.1 (normalisation).
    """

    weight: float = field(default=1.0, kw_only=True)

    @property
    def positive(self) -> bool:
        """False."""
        return False

    def place(self, X: Array, Y: Array) -> Placement:
        """Return the directions of the points."""
        places, largest, lengths = self._directions(X, "X")
        others = places if Y is X else self._directions(Y, "Y")[0]

        def back(G: Array) -> Array:
            u = _middle(places.astype(float), G)
            along = (u * G).sum(axis=-1, keepdims=True)
            return ((G - u * along) / _middle(largest, G) / _middle(lengths, G)).astype(G.dtype)

        return Placement(self._weighted(_HalfSquare()), places, others, back)

    @staticmethod
    def _directions(X: Array, name: str) -> tuple[Array, Array, Array]:
        # The largest coordinate goes first: squares of what is left are in the range.
        largest = abs(X.astype(float)).max(axis=1, keepdims=True)
        if not bool((largest > 0).all()):
            raise ValueError(
                f"{name} holds a point at 0, which has no direction: drop it, or centre the points otherwise"
            )
        lengths = namespace(X).sqrt(_squares(X, largest))
        return (X / largest / lengths).astype(X.dtype), largest, lengths


@dataclass(frozen=True)
class _PowerOfProduct(AbstractRadial):
    """(offset + size (1 - s / 2))^degree."""

    scale: Scale = field(default=1.0, init=False, repr=False)
    degree: int = 2
    offset: float = 1.0
    size: float = 1.0

    def __post_init__(self) -> None:
        pass  # checked by Polynomial; an offset may be 0

    @property
    def profile(self) -> Profile:  # type: ignore[override]
        """The profile; the degree is part of the formula."""
        p = self.degree
        return Profile(
            phi=lambda s, offset, size: (offset + size - size * s / 2) ** p,
            dphi=lambda s, offset, size: -p * size / 2 * (offset + size - size * s / 2) ** (p - 1),
            parameters=("offset", "size"),
            positive=False,
        )


@dataclass(frozen=True)
class Polynomial(AbstractPlaced):
    r"""Polynomial kernel :math:`(x \cdot y / \ell^2 + c)^p`; degree 1 is the linear kernel.

    With R beyond all |x| and |y|, the points :math:`(x, \sqrt{R^2 - |x|^2}, 0)` and :math:`(y, 0, \sqrt{R^2 - |y|^2})` have
    squared distance 2 R^2 - 2 x.y: inner products are radial two dimensions higher.

    Parameters
    ----------
    degree : int
        p >= 1; another one is compiled anew.
    offset : float
        c >= 0.
    scale : float
        l in the units of x.
    weight : float
        Multiplies the kernel.

    Notes
    -----
    Accuracy: an inner product is known to rounding of R^2, so that k is known to rounding of (R^2 / l^2 + c)^p.

    References
    ----------
    .. [1] Y. Bachrach et al., Speeding Up the Xbox Recommender System Using a Euclidean Transformation for Inner-Product
       Spaces, RecSys 2014 (inner products as distances).
    """

    degree: int = 2
    offset: float = 1.0
    scale: float = 1.0
    weight: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        whole = isinstance(self.degree, numbers.Integral) and not isinstance(self.degree, bool)
        if not whole or self.degree < 1:
            raise ValueError(f"Polynomial: degree must be a whole number >= 1, got {self.degree!r}")
        super().__post_init__()
        object.__setattr__(self, "offset", _positive(self.offset, "Polynomial: offset", zero=True))
        object.__setattr__(self, "scale", _positive(self.scale, "Polynomial: scale"))

    @property
    def positive(self) -> bool:
        """False."""
        return False

    def place(self, X: Array, Y: Array) -> Placement:
        """Return the points over R in two more dimensions."""
        xp, d = namespace(X), X.shape[1]
        unit = max(float(abs(X).max()), float(abs(Y).max())) or 1.0
        # Twice the largest square, so that no root is near its kink at 0.
        radius = unit * math.sqrt(2 * max(float(_squares(A, unit).max()) for A in (X, Y))) or 1.0
        size = 2 * math.log(max(1.0, radius / self.scale)) + math.log(1 + self.offset)
        largest = self.degree * size + math.log(max(1.0, abs(self.weight)))
        if not largest < math.log(float(xp.finfo(X.dtype).max)):
            raise ValueError(
                f"{self!r} of points of size {radius:.1e} leaves the range of {X.dtype}: rescale the points, or pass a larger scale"
            )

        def lifted(A: Array, slot: int) -> tuple[Array, Array]:
            A = A.astype(float) / radius
            height = xp.sqrt(1 - _squares(A))
            columns = [height, xp.zeros_like(height)]
            return xp.concatenate([A, *(columns if slot == 0 else columns[::-1])], axis=1), height

        places, height = lifted(X, 0)

        def back(G: Array) -> Array:
            flat, up = G[..., :d], G[..., d : d + 1]
            moved = flat - _middle(places[:, :d] / height, G) * up
            return (moved / radius).astype(G.dtype)

        kernel = _PowerOfProduct(
            degree=int(self.degree), offset=self.offset, size=(radius / self.scale) ** 2
        )
        return Placement(
            self._weighted(kernel), places.astype(X.dtype), lifted(Y, 1)[0].astype(Y.dtype), back
        )


@dataclass(frozen=True)
class Periodic(AbstractPlaced):
    r"""Periodic kernel :math:`\exp(-2 \sum_c \sin^2(\pi (x_c - y_c) / p) / \ell^2)`: positive definite.

    It is the Gaussian of scale l between the points :math:`(\cos 2 \pi x_c / p, \sin 2 \pi x_c / p)` on circles.

    Parameters
    ----------
    period : float
        p in the units of x, of every feature.
    scale : float
        l, a length on the unit circle.
    weight : float
        Multiplies the kernel.

    References
    ----------
    .. [1] C. E. Rasmussen, C. K. I. Williams, Gaussian Processes for Machine Learning, 2006, eq. 4.31.
    """

    period: float = 1.0
    scale: float = 1.0
    weight: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "period", _positive(self.period, "Periodic: period"))
        object.__setattr__(self, "scale", _positive(self.scale, "Periodic: scale"))

    @property
    def positive(self) -> bool:
        """Whether the weight is."""
        return self.weight > 0

    def place(self, X: Array, Y: Array) -> Placement:
        """Return the points on a circle for each feature."""
        xp, turn, d = namespace(X), 2 * math.pi / self.period, X.shape[1]

        def circles(A: Array) -> Array:
            angle = turn * xp.fmod(A.astype(float), self.period)  # exact, however many periods off
            return xp.concatenate([xp.cos(angle), xp.sin(angle)], axis=1)

        exact = circles(X)
        places = exact.astype(X.dtype)
        others = places if Y is X else circles(Y).astype(Y.dtype)

        def back(G: Array) -> Array:
            cosine, sine = _middle(exact[:, :d], G), _middle(exact[:, d:], G)
            return (turn * (cosine * G[..., d:] - sine * G[..., :d])).astype(G.dtype)

        return Placement(self._weighted(Gaussian(self.scale)), places, others, back)
