r"""From moments to operators: the generator, the SAT solve, its inverse, the denoiser.

All solves are on the host in float64; D <= 4096 is cheap there. B_a and B_b are moments at the ends of a slab, M the
mean of g^T L g over it, length = b - a in clock time, C the decoder.

=============  ====================================================================================
generator      (S + lam I) A = M, columns 0 and 1 overwritten by what is known exactly
sat            (B_b - length M + lam I) c = B_b C, the endpoint map u = g c: L u = 0, u(., b) = x
sat_inverse    (length M + B_a + lam I) c = B_a C, its inverse: L u = 0, u(., a) = x
denoiser       (B + lam I) c = E[g^T x1] at one time
=============  ====================================================================================

Energy identity, exact if length (M + M^T) = B_b - B_a: E_a|u|^2 + E_b|u - x|^2 + 2 lam |c|^2 = E_b|x|^2. So SAT cannot
blow up, and what is missing from the second moment of its output is the misfit at the end and the ridge.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, eigh

from gpukoop.checks import LARGEST_LENGTH, check_kind, check_length, real_array
from gpukoop.draws import check_count
from gpukoop.sampler.lifting import Lift
from gpukoop.sampler.moments import Moments

# Singular values below this share of the largest are dropped where reg = 0.
LSTSQ_CUT = 1e-13


def ridge(moments: Moments, reg: float) -> float:
    r"""Return :math:`\lambda = \mathrm{reg} \cdot \mathrm{tr} S / D`, a ridge in the units of the moments.

    Parameters
    ----------
    moments : Moments
    reg : float
        At least 0.

    Returns
    -------
    float
    """
    check_kind(moments, Moments, "moments")
    reg = check_length(reg, "reg", zero=True)
    return reg * float(np.trace(moments.host("S"))) / moments.n_features


def check_parts(moments: Moments, lam: float, lift: Lift | None = None) -> None:
    """Raise unless these are the parts of a solve, and fit together."""
    check_kind(moments, Moments, "moments")
    check_length(lam, "lam", zero=True)
    if lift is None:
        return
    check_kind(lift, Lift, "lift")
    if lift.n_features != moments.n_features:
        raise ValueError(
            f"the lift has {lift.n_features} features and the moments {moments.n_features}: they belong to another lift"
        )


def _solve(Q: np.ndarray, R: np.ndarray, lam: float, *, definite: bool = False) -> np.ndarray:
    """Solve (Q + lam I) c = R; with lam = 0 the minimum-norm least-squares solution."""
    if lam == 0:
        return np.linalg.lstsq(Q, R, rcond=LSTSQ_CUT)[0]
    shifted = Q + lam * np.eye(len(Q))
    if definite:
        try:
            return cho_solve(cho_factor(shifted, lower=True), R)
        except LinAlgError:
            pass  # rounding made it indefinite: the general solve below is as good
    try:
        return np.linalg.solve(shifted, R)
    except np.linalg.LinAlgError:  # a ridge below rounding
        return np.linalg.lstsq(Q, R, rcond=LSTSQ_CUT)[0]


def symmetrized(slope: np.ndarray, Ba: np.ndarray, Bb: np.ndarray) -> np.ndarray:
    r"""Return slope = length M made to obey summation by parts, length (M + M^T) = B_b - B_a, exactly.

    It makes the energy identity exact in the sample, and costs 8 % of accuracy at N = 10^5, more below.
    """
    return (slope - slope.T) / 2 + (Bb - Ba) / 2


def generator(moments: Moments, lift: Lift, lam: float) -> np.ndarray:
    r"""Return the Koopman generator of least squares, :math:`A = (S + \lambda I)^{-1} M`, (D, D), per clock time.

    The column of the constant is 0 and that of time is set to what L gives exactly: the ridge would bend it (0.018 at
    lam = 1e-6).

    Parameters
    ----------
    moments : Moments
    lift : Lift
        Its dictionary.
    lam : float
        Ridge, at least 0.

    Returns
    -------
    ndarray of shape (D, D)
    """
    check_parts(moments, lam, lift)
    M = moments.slope(moments.n_bins) / moments.length
    A = _solve(moments.host("S"), M, lam, definite=True)
    A[:, 0] = 0.0
    A[:, 1] = lift.time_column
    return A


def sat(
    moments: Moments, lift: Lift, lam: float, *, upto: int | None = None, symmetrize: bool = False
) -> np.ndarray:
    r"""Return c of the endpoint map, :math:`x_b \approx g(x_a, a)\, c`, (D, d), by summation by parts.

    .. math:: (B_b - (b-a) M + \lambda I)\, c = B_b C

    Parameters
    ----------
    moments : Moments
    lift : Lift
    lam : float
        Ridge, >= 0; 0 is the minimum-norm solution.
    upto : int, optional
        Edge b of the map; the end of the slab by default.
    symmetrize : bool
        Impose summation by parts on the sampled moments.

    Returns
    -------
    ndarray of shape (D, d)

    Notes
    -----
    Cost: 2/3 D^3 flops, no exponential. The symmetric part of the matrix is (B_a + B_b)/2 + lam I, so lam > 0 makes it
    uniquely solvable whatever the dictionary.
    """
    check_parts(moments, lam, lift)
    k = moments.n_bins if upto is None else check_count(upto, "upto")
    if k > moments.n_bins:
        raise ValueError(f"upto is {k}, but the moments have {moments.n_bins} bins")
    slope, B = moments.slope(k), moments.host("B", k)
    if symmetrize:
        slope = symmetrized(slope, moments.host("B", 0), B)
    return _solve(B - slope, B[:, lift.coordinates], lam)


def sat_inverse(
    moments: Moments, lift: Lift, lam: float, *, symmetrize: bool = False
) -> np.ndarray:
    r"""Return c of the inverse map, :math:`x_a \approx g(x_b, b)\, c`, (D, d).

    .. math:: ((b-a) M + B_a + \lambda I)\, c = B_a C

    Differs from exp(-A), which amplifies every decaying mode and serves where no feature depends on time.

    Parameters
    ----------
    moments : Moments
    lift : Lift
        Their dictionary.
    lam : float
        Ridge, at least 0.
    symmetrize : bool
        Impose summation by parts on the sampled moments.

    Returns
    -------
    ndarray of shape (D, d)
    """
    check_parts(moments, lam, lift)
    slope, B = moments.slope(moments.n_bins), moments.host("B", 0)
    if symmetrize:
        slope = symmetrized(slope, B, moments.host("B", moments.n_bins))
    return _solve(slope + B, B[:, lift.coordinates], lam)


def denoiser(moments: Moments, lam: float, end: str) -> np.ndarray:
    """Return c of the denoiser E[x1 | x_t] = g(x_t, t) c at one end of the slab, by plain ridge.

    Parameters
    ----------
    moments : Moments
    lam : float
        Ridge, at least 0.
    end : {"a", "b"}
        One whose right-hand side was summed (``ends=``).

    Returns
    -------
    ndarray of shape (D, d)
    """
    check_parts(moments, lam)
    if end not in ("a", "b") or not moments.ends["ab".index(end)]:
        raise ValueError(
            f"end is {end!r}, expected 'a' or 'b', one whose right-hand side was summed (ends=)"
        )
    k = 0 if end == "a" else moments.n_bins
    return _solve(moments.host("B", k), moments.host(f"Y{end}"), lam, definite=True)


def energy_ratio(moments: Moments, lift: Lift, c: np.ndarray) -> float:
    r"""Return :math:`E_a|g c|^2 / E_b|x|^2`: below 1 by the misfit and the ridge; 1 for data without extent.

    Parameters
    ----------
    moments : Moments
    lift : Lift
        Their dictionary.
    c : ndarray of shape (D, d)
        Of a map.

    Returns
    -------
    float
    """
    check_parts(moments, 0.0, lift)
    c = real_array(c, "c", (lift.n_features, None))
    if abs(c).max(initial=0.0) > LARGEST_LENGTH:
        raise ValueError(
            f"c has entries beyond {LARGEST_LENGTH:.0e}, whose squares leave the range of float64"
        )
    output = float(np.einsum("ij,ik,kj->", c, moments.host("B", 0), c))
    Bb = moments.host("B", moments.n_bins)
    size = float(np.diag(Bb)[lift.coordinates].sum())
    return output / size if size > 0 else 1.0


def growth_bound(moments: Moments, lam: float) -> float:
    r"""Return :math:`\omega_S = \tfrac12 \lambda_{\max}((B_b - B_a)/(b-a), S + \lambda I)`.

    It bounds the exponential, ||exp(tA)|| <= exp(t omega_S) in the norm of S + lam I, up to the sampling error of
    summation by parts.

    Parameters
    ----------
    moments : Moments
    lam : float
        Ridge, at least 0.

    Returns
    -------
    float

    Notes
    -----
    Cost: one symmetric eigenproblem.
    """
    check_parts(moments, lam)
    jump = (moments.host("B", moments.n_bins) - moments.host("B", 0)) / moments.length
    D = moments.n_features
    floor = max(lam, 1e-12 * float(np.trace(moments.host("S"))) / D)
    S = moments.host("S") + floor * np.eye(D)
    return 0.5 * float(eigh(jump, S, eigvals_only=True, subset_by_index=[D - 1, D - 1])[0])
