r"""Images as points: handwritten digits in two renderings."""

from __future__ import annotations

from typing import Literal, overload

import numpy as np

from gpukoop.draws import RandomState, check_count, check_flag, random_generator

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
    return (X, labels) if check_flag(return_labels, "return_labels") else X


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
