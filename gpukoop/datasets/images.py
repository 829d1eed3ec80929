r"""Images as points: handwritten digits in two renderings, and snapshots of the stochastic Allen-Cahn field."""

from __future__ import annotations

import math
from typing import Literal, overload

import numpy as np

from gpukoop.datasets.trajectories import Pairs, consecutive
from gpukoop.draws import RandomState, check_count, check_positive, random_generator

SIDE = 8  # of a digit, in pixels
# The second rendering. A slant, half a pixel to the right, a blur and a lifted contrast leave the digits legible
# (1-NN within the rendering: 97 %) but take a 1-NN trained on the first rendering down to about 62 %; labels
# carried over by exact optimal transport reach about 88 %.
SLANT, SHIFT, BLUR, CONTRAST = 0.2, 0.5, 0.6, 0.5


@overload
def digits(
    n_samples: int | None = None,
    random_state: RandomState = None,
    *,
    rendering: str = ...,
    return_labels: Literal[False] = False,
) -> np.ndarray: ...
@overload
def digits(
    n_samples: int | None = None,
    random_state: RandomState = None,
    *,
    rendering: str = ...,
    return_labels: Literal[True],
) -> tuple[np.ndarray, np.ndarray]: ...
def digits(
    n_samples: int | None = None,
    random_state: RandomState = None,
    *,
    rendering: str = "source",
    return_labels: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's handwritten digits as rows of 64 grey values in [0, 1].

    Parameters
    ----------
    n_samples : int, optional
        A random subset without repetition, in random order; None returns all 1,797 in their own order.
    random_state : int, Generator, RandomState or None
        Decides the subset. The same seed gives the same digits in both renderings.
    rendering : "source" or "target", default="source"
        The images as they are; or slanted, shifted by half a pixel, blurred and with lifted contrast, for the
        task of carrying labels from one rendering to the other.
    return_labels : bool, default=False
        Return (X, labels), the labels being the digits 0 to 9.

    Returns
    -------
    float64 array of shape (n_samples, 64), and with ``return_labels`` an integer array (n_samples,)

    Notes
    -----
    Accuracy of a nearest-neighbour classifier, 800 digits to learn from and 800 others to score: 0.97 within
    either rendering, 0.62 from source to target.

    References
    ----------
    .. [1] E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998.
    """
    from sklearn.datasets import load_digits

    X, labels = load_digits(return_X_y=True)
    if n_samples is not None:
        if check_count(n_samples) > len(X):
            raise ValueError(
                f"n_samples is {n_samples}, there are {len(X)} digits: ask for at most that many"
            )
        chosen = random_generator(random_state).permutation(len(X))[:n_samples]
        X, labels = X[chosen], labels[chosen]
    X = X / 16.0
    if rendering == "target":
        X = _render(X.reshape(-1, SIDE, SIDE)).reshape(-1, SIDE * SIDE)
    elif rendering != "source":
        raise ValueError(f"rendering is {rendering!r}: choose 'source' or 'target'")
    return (X, labels) if return_labels else X


def _render(images: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    middle = np.array([(SIDE - 1) / 2] * 2)
    slant = np.array(
        [[1.0, 0.0], [SLANT, 1.0]]
    )  # row, column of the source pixel for a pixel of the result
    offset = middle - slant @ (middle + np.array([0.0, SHIFT]))
    moved = [ndimage.affine_transform(image, slant, offset=offset, order=1) for image in images]
    blurred = ndimage.gaussian_filter(np.stack(moved), (0, BLUR, BLUR))
    lifted = np.clip(blurred, 0, None) ** CONTRAST
    return lifted / lifted.max(axis=(1, 2), keepdims=True)


def allen_cahn(
    n_samples: int,
    lag_time: float = 2e-5,
    random_state: RandomState = None,
    *,
    n_grid: int = 32,
    diffusion: float = 1e-3,
    width: float = 0.01,
    noise: float = math.sqrt(2.0),
    burn_in: int = 25,
    n_substeps: int = 1,
    independent: bool = False,
) -> Pairs:
    r"""Return pairs of snapshots of the stochastic Allen-Cahn field on the periodic unit square.

    .. math:: \partial_t u = D\, \Delta u + (u - u^3) / \epsilon^2 + s\, \xi, \qquad u_0 \sim U(-1/2, 1/2)

    by Euler-Maruyama with the five-point Laplacian, noise s sqrt(h) N(0, 1) in each cell, values clipped to
    [-1.5, 1.5] as published.

    Parameters
    ----------
    n_samples, random_state
        As in :func:`gpukoop.datasets.quadruple_well`.
    lag_time : float, default=2e-5
        Time between X and Y.
    n_grid : int, default=32
        Cells a side; the published fields have 128.
    diffusion, width, noise : float
        D, epsilon and s. The published pairs of (s, lag_time, epsilon) are (1.4142, 2e-5, 0.01) and
        (0.1, 1e-5, 0.02).
    burn_in : int, default=25
        Lags before the first snapshot.
    n_substeps : int, default=1
        Euler-Maruyama steps in one lag.
    independent : bool, default=False
        True starts every pair from its own u_0; False takes consecutive snapshots of one run.

    Returns
    -------
    X, Y : float64 arrays of shape (n_samples, n_grid ** 2)
        Rows of the field one after another.

    Raises
    ------
    ValueError
        If the step is too long for the explicit scheme; the message says how many substeps it takes.

    Notes
    -----
    Cost: (n_samples + burn_in) n_substeps n_grid^2 operations, times burn_in + 1 if independent. No exact answer
    is known; the law is symmetric under u -> -u and under shifts of the grid.

    References
    ----------
    .. [1] Xu, Li, Fujisawa, Marzouk, Ishikawa, arXiv 2512.18837: the experiment of this name.
    """
    n, g = check_count(n_samples), check_count(n_grid, "n_grid", least=3)
    k, wait = check_count(n_substeps, "n_substeps"), check_count(burn_in, "burn_in", least=0)
    lag, D = check_positive(lag_time, "lag_time"), check_positive(diffusion, "diffusion", zero=True)
    epsilon, s = check_positive(width, "width"), check_positive(noise, "noise", zero=True)
    h = lag / k
    # stable while h times the fastest rate is below 2: the Laplacian up to 8 / dx^2, the reaction 2 / eps^2 at u = 1
    rate = 8 * D * g**2 + 2 / epsilon**2
    if h * rate >= 2:
        raise ValueError(
            f"lag_time={lag:.3g} in {k} substeps is too long for the explicit scheme on this grid: "
            f"pass n_substeps={math.floor(lag * rate / 2) + 1} or more"
        )
    rng = random_generator(random_state)

    def advance(u: np.ndarray) -> np.ndarray:
        for _ in range(k):
            lap = (
                np.roll(u, 1, 1) + np.roll(u, -1, 1) + np.roll(u, 1, 2) + np.roll(u, -1, 2) - 4 * u
            )
            u = u + h * (D * g**2 * lap + (u - u**3) / epsilon**2)
            u = np.clip(u + s * math.sqrt(h) * rng.standard_normal(u.shape), -1.5, 1.5)
        return u

    u = rng.uniform(-0.5, 0.5, (n if independent else 1, g, g))
    for _ in range(wait):
        u = advance(u)
    if independent:
        return u.reshape(n, -1), advance(u).reshape(n, -1)
    states = np.empty((n, g * g))
    start = u.reshape(1, -1)
    for i in range(n):
        u = advance(u)
        states[i] = u.ravel()
    return consecutive(start, states)
