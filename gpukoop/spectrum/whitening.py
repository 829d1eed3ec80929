"""Small symmetric problems of least squares: whitened pencils, the step that every learned spectrum ends with."""

from __future__ import annotations

import numpy as np


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
    W = U[:, keep] / np.sqrt(s[keep])
    theta, Q = np.linalg.eigh(W.T @ ((A + A.T) / 2) @ W)
    return theta[::-1], W @ Q[:, ::-1]
