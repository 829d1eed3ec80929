r"""Products and powers of radial kernels: :math:`k(x, y) = \prod_a k_a(x, y)^{p_a}`, one kernel with one profile.

The profile of a product is made of those of its factors, with the chain rule for phi'; the ratios of their scales travel as
scalars, so that code compiled once serves all scales. Exponents are part of the formula: another one is compiled anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from gpukoop.kernels.formula.catalogue import Constant
from gpukoop.kernels.formula.expr import (
    Expr,
    Operand,
    Symbol,
    add,
    expression,
    mul,
    power,
    substitute,
)
from gpukoop.kernels.formula.lengths import Scale
from gpukoop.kernels.formula.profile import (
    AbstractKernel,
    AbstractRadial,
    KernelSum,
    Profile,
    S,
)

Factor = tuple[AbstractRadial, float]


@dataclass(frozen=True)
class KernelProduct(AbstractRadial):
    """Product of powers of radial kernels; made by ``k1 * k2`` and ``k ** p``.

    Parameters
    ----------
    factors : tuple of (kernel, float)
        Radial kernels and their exponents > 0.
    """

    scale: Scale = field(default=1.0, init=False, repr=False)
    factors: tuple[Factor, ...] = ()

    def __post_init__(self) -> None:
        scales = self.scales
        # A product with one named scale is unresolved as a whole, so the name must be what is seen from outside.
        named = [scale for scale in scales if isinstance(scale, str)]
        object.__setattr__(self, "scale", (named or scales)[0])

    def __repr__(self) -> str:
        return " * ".join(f"{k!r}" if p == 1 else f"{k!r} ** {p:g}" for k, p in self.factors)

    @property
    def scales(self) -> tuple[Scale, ...]:
        """Those of the factors."""
        return tuple(scale for k, _ in self.factors for scale in k.scales)

    @property
    def profile(self) -> Profile:  # type: ignore[override]
        """The profile of the product."""
        return _profile(tuple((k.profile, p) for k, p in self.factors))

    @property
    def values(self) -> dict[str, float]:
        """The parameters of the factors, and the squared ratios of their scales to the first."""
        found: dict[str, float] = {}
        for i, (kernel, _) in enumerate(self.factors):
            found[_ratio(i)] = (_number(self.scale) / _number(kernel.scale)) ** 2
            found |= {_named(name, i): value for name, value in kernel.values.items()}
        # The first factor's ratio is 1 by construction; as a scalar it would cost a multiplication a pair.
        return {name: value for name, value in found.items() if name != _ratio(0)}

    def rescaled(self, change: Callable[[Scale], Scale]) -> KernelProduct:
        """Return the product with the scale of every factor changed."""
        return KernelProduct(tuple((k.rescaled(change), p) for k, p in self.factors))


def product(*factors: Factor) -> AbstractRadial:
    """Return the product of powers, nested ones opened."""
    flat: list[Factor] = []
    for kernel, p in factors:
        inner = kernel.factors if isinstance(kernel, KernelProduct) else ((kernel, 1.0),)
        # (k^q)^p = k^(q p) needs k > 0, which `raised` has checked before it comes here with a broken exponent.
        flat += [(k, q * p) for k, q in inner]
    # Constants last: the first factor decides the scale.
    flat.sort(key=lambda factor: factor[0].profile.constant)
    return flat[0][0] if len(flat) == 1 and flat[0][1] == 1 else KernelProduct(tuple(flat))


def times(first: AbstractKernel, second: AbstractKernel) -> AbstractKernel:
    """Return the product of two kernels, sums multiplied out."""
    terms = tuple(
        (a * b, product((k, 1.0), (other, 1.0)))
        for a, k in first.terms
        for b, other in second.terms
    )
    return terms[0][1] if len(terms) == 1 and terms[0][0] == 1.0 else KernelSum(terms)


def raised(kernel: AbstractKernel, p: float) -> AbstractKernel:
    """Return a kernel to a power > 0; of a sum, or of a kernel that is not positive, a whole one."""
    if not 0 < p < math.inf:
        raise ValueError(f"a kernel is raised to a finite power > 0, got {p:g}")
    # Of a positive kernel any power is one profile; positive definite only for whole powers and infinitely divisible kernels.
    if len(kernel.terms) == 1 and kernel.positive:
        ((c, k),) = kernel.terms
        power_of_k = product((k, p))
        return power_of_k if c == 1.0 else KernelSum(((c**p, power_of_k),))
    if not p.is_integer():
        raise ValueError(
            f"{kernel!r} is a sum or not positive: raise it to a whole power, got {p:g}"
        )
    whole = kernel
    for _ in range(int(p) - 1):
        # (a + b)^3 is eight terms over one squared distance; like ones stay apart, for their scales are scalars of their own.
        whole = whole * kernel
    return whole


def constant(value: float) -> AbstractKernel:
    """Return the kernel that is ``value`` everywhere."""
    return Constant(value) if value > 0 or not value else -1.0 * Constant(-value)


def _number(scale: Scale) -> float:
    if not isinstance(scale, float):
        raise ValueError(f"a product of kernels has the scale {scale!r}: call it on points first")
    return scale


def _ratio(i: int) -> str:
    return f"ratio_{i}_"


def _named(name: str, i: int) -> str:
    return f"{name}_{i}_"


@lru_cache(maxsize=256)
def _profile(factors: tuple[tuple[Profile, float], ...]) -> Profile:
    names: list[str] = []
    phis: list[Expr] = []
    slopes: list[Expr] = []
    for i, (profile, _) in enumerate(factors):
        ratio: Operand = 1.0
        if i:
            names.append(_ratio(i))
            ratio = Symbol(_ratio(i))
        # Every factor reads the first one's s: one squared distance a pair, whatever the number of scales.
        swap: dict[Expr, Operand] = {S: mul(ratio, S)}
        for name in profile.parameters:
            names.append(_named(name, i))
            # Two factors may have a parameter of one name, such as two alphas: the index keeps them apart.
            swap[Symbol(name)] = Symbol(_named(name, i))
        phi, dphi = (substitute(tree, swap) for tree in profile.symbolic)
        phis.append(phi)
        slopes.append(mul(ratio, dphi))
    exponents = [p for _, p in factors]
    whole = mul(*(power(phi, p) for phi, p in zip(phis, exponents, strict=True)))
    # d(prod phi_a^p_a) = sum_a p_a phi_a^(p_a - 1) phi_a' prod_(b != a) phi_b^p_b: no division, for phi may be 0.
    terms = [
        mul(
            p,
            slope,
            *(
                power(phi, q - (b == a))
                for b, (phi, q) in enumerate(zip(phis, exponents, strict=True))
            ),
        )
        for a, (p, slope) in enumerate(zip(exponents, slopes, strict=True))
    ]
    slope = expression(add(*terms))
    parameters = tuple(names)

    def at(tree: Expr) -> Callable[..., Any]:
        symbols = [S, *map(Symbol, parameters)]
        # Substitution, not evaluation: symbols or numbers may come, and both give a canonical tree.
        return lambda *given: substitute(tree, dict(zip(symbols, given, strict=True)))

    profiles = [profile for profile, _ in factors]
    return Profile(
        phi=at(whole),
        dphi=at(slope),
        parameters=parameters,
        kink=any(profile.kink for profile in profiles),
        singular=any(profile.singular for profile in profiles),
        positive=all(profile.positive for profile in profiles),
    )
