"""Small problems of least squares on the host: the step that every learned spectrum ends with."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

# Directions of a regression below this share of the largest are rounding.
RANK_CUT = 1e-13


def whitened_pencil(A: np.ndarray, C: np.ndarray, cut: float) -> tuple[np.ndarray, np.ndarray]:
    r"""Return eigenvalues, descending, and vectors of A y = theta C y in the well-determined part of C.

    .. math:: C = U \mathrm{diag}(s) U^T, \quad W = U s^{-1/2}\ (s > \mathrm{cut} \cdot s_{max}), \quad
              W^T A W = Q \mathrm{diag}(\theta) Q^T, \quad Y = W Q

    Parameters
    ----------
    A, C : ndarrays of shape (p, p)
        Symmetric; C positive semi-definite.
    cut : float
        Directions of C below this share of the largest are dropped: noise, or linear dependence.

    Returns
    -------
    theta : ndarray of shape (q,)
    Y : ndarray of shape (p, q)
        Y^T C Y = 1.
    """
    s, U = np.linalg.eigh((C + C.T) / 2)
    keep = s > cut * s[-1]
    # Cut before whitening: directions of C that are rounding would be blown up to modes of any eigenvalue.
    W = U[:, keep] / np.sqrt(s[keep])
    theta, Q = np.linalg.eigh(W.T @ ((A + A.T) / 2) @ W)
    return theta[::-1], W @ Q[:, ::-1]


def regress(blocks: Iterable[tuple[np.ndarray, np.ndarray]], cut: float = RANK_CUT) -> np.ndarray:
    r"""Return the matrix A of least squares G A = H, row blocks (G, H) at a time: H is the generator on G.

    Only the triangular factor of the rows so far is kept, so the condition number is that of G and not
    its square, as with the normal equations. Columns are scaled to norm one before directions are cut.

    Parameters
    ----------
    blocks : iterable of pairs of ndarrays (b, p) and (b, s)
    cut : float
        Relative size of the singular values that are dropped: minimum-norm least squares.

    Returns
    -------
    ndarray of shape (p, s)
    """
    R: np.ndarray | None = None
    p = 0
    for G, H in blocks:
        p = G.shape[1]
        rows = np.concatenate([G, H], axis=1)
        stacked = rows if R is None else np.concatenate([R, rows])
        # Stacked QR and not normal equations: those square the condition number, which dictionaries have plenty of.
        R = np.asarray(np.linalg.qr(stacked, mode="r"))
    if R is None:
        raise ValueError("regress needs at least one block of rows")
    if not np.isfinite(R).all():
        raise ValueError(
            "the features of some samples leave the range of float64: rescale the samples"
        )
    G, H = R[:, :p], R[:, p:]
    size = np.linalg.norm(G, axis=0)
    # A column of zeros has no size; lstsq leaves its coefficient at zero.
    size[size == 0.0] = 1.0
    solution: np.ndarray = np.linalg.lstsq(G / size, H, rcond=cut)[0]
    return solution / size[:, None]
