r"""What the spectrum of a generator says, what it cannot say, and projections on its modes.

**Not intrinsic.** On a finite window of a flow that depends on time every number is an eigenvalue: for any function h,
f = e^(lambda t) h(Phi_{t->0}(x)) satisfies L f = lambda f. In the linear clock the spectrum reflects dictionary and ridge
as much as the flow. Compare it with the dictionary fixed, across seeds, and with an autonomous control (an affine field),
where it is intrinsic.

**Not normal.** Eigenvectors may be so ill-conditioned that sums over modes mean nothing. Modal claims are refused where
cond(V) > 1e8. Sampling never uses them: it uses the SAT solve, the action of the exponential or a Schur form.

**The time row.** Constant and time span an invariant subspace with A = [[0, 1], [0, 0]], a Jordan block, so the full matrix
is always defective. Reports of a sampler are those of the quotient A[2:, 2:], plus the known 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from scipy.linalg import schur, solve_sylvester

from gpukoop.arrays import to_host
from gpukoop.sampler.expm import ExponentialOverflow, dense_exponential, square_matrix

# Half of the digits of float64: beyond it coefficients of modes have fewer than eight correct digits.
MODAL_GATE = 1e8
N_SHOWN = 8
_FLAGS = (bool, np.bool_)


@final
@dataclass(frozen=True)
class SpectralReport:
    """Spectrum of a generator with the numbers that say how far to trust it; ``str(report)`` is a page of text.

    Attributes
    ----------
    eigenvalues : complex array of shape (D,)
        By descending real part.
    condition : float
        cond(V) of the unit eigenvectors; inf if they are dependent.
    residual : float
        ||A V - V Lambda|| / ||A||, Frobenius.
    spectral_abscissa, numerical_abscissa : float
        Largest real part of an eigenvalue, and the largest eigenvalue of (A + A^T)/2: growth in the long and in the
        short run. Far apart means strongly non-normal.
    exponential_norm : float or None
        ||exp(A)||_2; None if it overflows.
    modal : bool
        Whether modes may be read: cond(V) <= 1e8.
    reason : str
        Why, in words.
    context : dict
        What the caller adds: growth bound, closure residuals, stability across seeds.
    """

    eigenvalues: np.ndarray
    condition: float
    residual: float
    spectral_abscissa: float
    numerical_abscissa: float
    exponential_norm: float | None
    modal: bool
    reason: str
    context: dict[str, Any] = field(default_factory=dict)
    _vectors: np.ndarray | None = field(default=None, repr=False)

    @property
    def modes(self) -> np.ndarray:
        """Eigenvectors as columns, (D, D); g V are the eigenfunctions. A ValueError with the reason if not modal."""
        if not self.modal or self._vectors is None:
            raise ValueError(f"no modes: {self.reason}")
        return self._vectors

    def __str__(self) -> str:
        norm = "overflows" if self.exponential_norm is None else f"{self.exponential_norm:.3g}"
        shown = ", ".join(_number(v) for v in self.eigenvalues[:N_SHOWN])
        more = len(self.eigenvalues) - N_SHOWN
        lines = [
            f"generator of size {len(self.eigenvalues)}",
            f"  eigenvalues          {shown}{f', ... {more} more' if more > 0 else ''}",
            f"  spectral abscissa    {self.spectral_abscissa:.4g}",
            f"  numerical abscissa   {self.numerical_abscissa:.4g}",
            f"  norm of exp(A)       {norm}",
            f"  cond(V)              {self.condition:.3g}   residual of the eigenpairs {self.residual:.2g}",
            f"  modes                {'accepted' if self.modal else 'refused'}: {self.reason}",
        ]
        for name, value in self.context.items():
            lines.append(f"  {name:<20} {_text(value)}")
        lines.append(
            "  On a finite window of a flow that depends on time every number is an eigenvalue: these values reflect dictionary "
            "and ridge as much as the flow, unless the field is autonomous."
        )
        return "\n".join(lines)


def _number(v: complex) -> str:
    return f"{v.real:.4g}" if abs(v.imag) < 1e-12 * max(1.0, abs(v)) else f"{v:.4g}"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_text(v)}" for k, v in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def spectral_report(A: Any, **context: Any) -> SpectralReport:
    """Return the spectrum of a matrix with its condition, abscissas and the modal gate.

    Parameters
    ----------
    A : array of shape (D, D)
        Real, finite; on a device it is copied to the host. Of a sampler's generator pass ``A[2:, 2:]``.
    **context
        Kept in the report and printed with it.

    Returns
    -------
    SpectralReport

    Notes
    -----
    Cost: one nonsymmetric eigenproblem (5 to 14 s at D = 1024 on two cores) and a dense exponential.

    References
    ----------
    .. [1] L. N. Trefethen, M. Embree, Spectra and Pseudospectra, 2005, sections 7 (Grcar) and 17 (numerical range).

    Examples
    --------
    >>> import numpy as np
    >>> spectral_report(np.array([[0.0, 1.0], [0.0, 0.0]])).modal
    False
    """
    A = to_host(square_matrix(A, "A")).astype(float)
    values, vectors = np.linalg.eig(A)
    order = np.lexsort((-values.imag, -values.real.round(12)))
    values, vectors = values[order], vectors[:, order]
    condition = float(np.linalg.cond(vectors))
    if not condition < 1 / np.finfo(float).tiny:
        condition = math.inf
    scale = max(float(np.linalg.norm(A)), np.finfo(float).tiny)
    residual = float(np.linalg.norm(A @ vectors - vectors * values)) / scale
    try:
        norm: float | None = float(np.linalg.norm(dense_exponential(A), 2))
    except ExponentialOverflow:
        norm = None
    modal = condition <= MODAL_GATE
    if modal:
        reason = f"cond(V) = {condition:.3g} is below {MODAL_GATE:g}"
    else:
        reason = (
            f"cond(V) = {condition:.3g} exceeds {MODAL_GATE:g}: the eigenvectors are nearly dependent (a Jordan block, or a "
            "strongly non-normal matrix), so coefficients of modes would have no correct digits. Samples do not depend on them"
        )
    return SpectralReport(
        eigenvalues=values,
        condition=condition,
        residual=residual,
        spectral_abscissa=float(values.real.max()),
        numerical_abscissa=float(np.linalg.eigvalsh((A + A.T) / 2)[-1]),
        exponential_norm=norm,
        modal=modal,
        reason=reason,
        context=dict(context),
        _vectors=vectors if modal else None,
    )


def mode_projector(
    A: Any, select: Callable[[np.ndarray], Any] | Sequence[int], eigenvalues: Any = None
) -> np.ndarray:
    r"""Return the spectral projector on the modes that are selected, by an ordered Schur form.

    .. math:: A = Z \begin{pmatrix} T_{11} & T_{12} \\ 0 & T_{22} \end{pmatrix} Z^*, \quad
              T_{11} Y - Y T_{22} = T_{12}, \quad \Pi = Z \begin{pmatrix} I & Y \\ 0 & 0 \end{pmatrix} Z^*

    Differs from the pseudo-inverse of some eigenvectors, which is the orthogonal projector and does not commute with A.

    Parameters
    ----------
    A : array of shape (D, D)
    select : callable or sequence of int
        ``select(eigenvalues) -> mask`` of booleans (D,), or indices into the eigenvalues by descending real part. Both of
        a conjugate pair, or neither.
    eigenvalues : array, optional
        Those the indices refer to.

    Returns
    -------
    array of shape (D, D)
        Idempotent and commuting with A to about 1e-14 times the condition of the splitting.
    """
    A = to_host(square_matrix(A, "A")).astype(float)
    if eigenvalues is None:
        values = np.linalg.eigvals(A)
        values = values[np.lexsort((-values.imag, -values.real.round(12)))]
    else:
        values = np.asarray(eigenvalues)
    mask = selection(select, values, "select")
    for value in values[mask]:
        twin = int(np.argmin(np.abs(values - np.conj(value))))
        if not mask[twin]:
            raise ValueError(
                f"the selection holds {value:.4g} and not its conjugate: select both, the projector is real only then"
            )
    D, r = len(A), int(mask.sum())
    if r in (0, D):
        return np.eye(D) if r else np.zeros((D, D))

    def chosen(z: complex) -> bool:
        return bool(mask[int(np.argmin(np.abs(values - z)))])

    T, Z, found = schur(A, output="complex", sort=chosen)
    if found != r:
        raise ValueError(
            f"the selection splits a cluster of nearly equal eigenvalues ({found} found, {r} selected): select all of it"
        )
    Y = solve_sylvester(T[:r, :r], -T[r:, r:], T[:r, r:])
    top = np.concatenate([np.eye(r), Y], axis=1)
    return (Z[:, :r] @ top @ Z.conj().T).real


def selection(select: Any, values: np.ndarray, name: str = "modes") -> np.ndarray:
    """Return which eigenvalues are selected, booleans (D,); raise on anything that would be cast to a mask or to indices.

    ``name`` is what the caller's parameter is called.
    """
    if callable(select):
        select = select(values.copy())
    size = len(values)
    mask = np.zeros(size, dtype=bool)
    try:
        chosen = np.asarray(select)
    except ValueError:  # rows of unequal lengths
        chosen = np.array(None)
    mixed = isinstance(select, list | tuple) and len({isinstance(k, _FLAGS) for k in select}) > 1
    if (
        isinstance(select, np.ma.MaskedArray)
        or mixed
        or (chosen.size and chosen.dtype.kind not in "biu")
    ):
        kind = "flags and numbers" if mixed else f"a {type(select).__name__} of {chosen.dtype}"
        raise TypeError(
            f"{name} is {kind}, expected whole numbers (indices), a boolean mask or a function of eigenvalues"
        )
    if chosen.dtype.kind == "b":
        if chosen.shape != (size,):
            raise ValueError(
                f"{name} is a mask of shape {chosen.shape}, expected ({size},): one entry per eigenvalue"
            )
    elif chosen.ndim != 1 or (chosen.size and not (-size <= chosen.min() <= chosen.max() < size)):
        raise ValueError(
            f"{name} is {select!r}, expected a list of indices below {size}, the number of eigenvalues"
        )
    mask[chosen if chosen.size else []] = True
    return mask
