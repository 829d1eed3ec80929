r"""Features of images in which generators are compared: fixed random convolutions, and a classifier trained on the real set.

Pixels are a poor place to compare images: a blurred picture is nearer to all of them than a sharp one. Both kinds of features are
made on the spot, from a seed and the labelled images at hand, so that a score needs no download; numbers of different real sets
cannot be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from gpukoop.arrays import native_array, to_host
from gpukoop.checks import real_array, refuse_colours_first
from gpukoop.draws import RandomState, check_count, check_positive, random_generator
from gpukoop.fitted import whole
from gpukoop.metrics.classifier import Classifier, train
from gpukoop.persistence import PersistentEstimator

# Filters of the two layers of random convolutions, their sides, and cells along a side in which the last one is averaged.
FILTERS, SIDES, CELLS = (24, 32), (5, 3), 2
# Images that go through the convolutions at once.
BLOCK = 250
# Ranges of the fit beyond which a pixel is a mistake: its square, summed, must stay in the range of float32.
FAR = 1e6
Features = Callable[[np.ndarray], np.ndarray] | TransformerMixin


def picture_array(images: Any, name: str = "images") -> np.ndarray:
    """Return images as float64 of shape (n, height, width, colours), or raise with their name."""
    array = real_array(images, name)
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise ValueError(
            f"{name} has shape {array.shape}, expected (n, height, width) or (n, height, width, colours)"
        )
    refuse_colours_first(array.shape, name)
    return array.reshape(*array.shape[:3], -1)


class RandomConvolutions(ClassNamePrefixFeaturesOutMixin, TransformerMixin, PersistentEstimator):
    r"""Features of two layers of random convolutions, fixed by their seed.

    .. math:: \phi = \mathrm{mean}_{cells}\, |w_2 * \mathrm{pool} |w_1 * x||

    The first filters are 5 x 5, the second 3 x 3, each of mean 0 and length 1: a constant picture has features 0. Contrast is
    divided by the range of the images given to ``fit``.

    Parameters
    ----------
    random_state : int, Generator, RandomState or None, default=0
        Decides the filters.

    Attributes
    ----------
    n_features_out_ : int
        128: 32 filters in 2 x 2 cells.

    References
    ----------
    .. [1] A. Saxe et al., On Random Weights and Unsupervised Feature Learning, ICML 2011.
    """

    def __init__(self, random_state: RandomState = 0) -> None:
        self.random_state = random_state

    @whole
    def fit(self, X: Any, y: Any = None) -> RandomConvolutions:
        """Draw the filters for images of this shape; their values decide the contrast alone.

        Parameters
        ----------
        X : array of shape (n, height, width) or (n, height, width, colours)
            At least 8 pixels along a side.
        y : ignored
        """
        pictures = picture_array(X, "X")
        if min(pictures.shape[1:3]) < 8:
            raise ValueError(
                f"X has images of {pictures.shape[1]} x {pictures.shape[2]} pixels, expected at least 8 x 8"
            )
        rng = random_generator(self.random_state)
        self.shape_ = pictures.shape[1:]
        self.lowest_, self.range_ = _range(pictures)
        channels = (pictures.shape[3], FILTERS[0])
        self.filters_ = [
            _filters(rng, side, into, out)
            for side, into, out in zip(SIDES, channels, FILTERS, strict=True)
        ]
        self.n_features_out_ = FILTERS[1] * CELLS**2
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the features of images, (n, 128) float32.

        Notes
        -----
        Cost: 2 million multiplications an image of 28 x 28.
        """
        check_is_fitted(self, "filters_")
        pictures = _scaled(_like(picture_array(X, "X"), self.shape_), self.lowest_, self.range_)
        parts = [pictures[i : i + BLOCK] for i in range(0, len(pictures), BLOCK)]
        return np.concatenate([self._block(part) for part in parts])

    @property
    def _n_features_out(self) -> int:  # names the columns of ``transform`` for scikit-learn
        return self.n_features_out_

    def _block(self, x: np.ndarray) -> np.ndarray:
        x = _pool(
            np.abs(_convolved(x, self.filters_[0], SIDES[0])), x.shape[1] // 2, x.shape[2] // 2
        )
        x = np.abs(_convolved(x, self.filters_[1], SIDES[1]))
        return _pool(x, CELLS, CELLS).reshape(len(x), -1)


class ClassifierFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, PersistentEstimator):
    """Features of a small convolutional classifier, trained on the labelled real images.

    Parameters
    ----------
    n_features : int
        Width of the last hidden layer, whose values are the features.
    n_epochs : int
        Passes over the images.
    validation_fraction : float
        Share of the images that only the accuracy is measured on.
    cache : bool
        Whether what was trained is kept in the cache folder (``GPUKOOP_CACHE_DIR``), by images, labels and parameters, so that
        the same call returns at once.
    random_state : int, Generator, RandomState or None, default=0
        One seed gives the same features on one machine; a number lets the cache find them.

    Attributes
    ----------
    accuracy_ : float
        Share of held-out images that are classified rightly.
    classes_ : array

    Notes
    -----
    PyTorch is needed (``pip install gpukoop[torch]``). 8,000 images of 28 x 28 take about a minute of one CPU core.

    References
    ----------
    .. [1] M. Heusel et al., GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium, arXiv 1706.08500.
    """

    def __init__(
        self,
        n_features: int = 64,
        n_epochs: int = 8,
        validation_fraction: float = 0.1,
        cache: bool = True,
        random_state: RandomState = 0,
    ) -> None:
        self.n_features = n_features
        self.n_epochs = n_epochs
        self.validation_fraction = validation_fraction
        self.cache = cache
        self.random_state = random_state

    @whole
    def fit(self, X: Any, y: Any) -> ClassifierFeatures:
        """Train the classifier.

        Parameters
        ----------
        X : array of shape (n, height, width) or (n, height, width, colours)
        y : array of shape (n,)
            Labels.

        Raises
        ------
        ImportError
            If PyTorch is not installed.
        ValueError
            If labels and images do not fit, or there is one class only.
        """
        self._check_parameters()
        pictures = picture_array(X, "X")
        labels = to_host(native_array(y, "y")[0])
        if labels.dtype == object and all(isinstance(label, str) for label in labels.flat):
            labels = labels.astype(str)  # a column of a frame
        if labels.dtype.kind not in "iufUSb" or (
            labels.dtype.kind == "f" and not np.array_equal(labels, np.round(labels))
        ):
            raise TypeError(
                f"y has dtype {labels.dtype}, expected labels: whole numbers or text, without missing ones"
            )
        if labels.shape != (len(pictures),):
            raise ValueError(
                f"y has shape {labels.shape}, expected ({len(pictures)},): one label an image"
            )
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("y has one class only: a classifier learns nothing from it")
        self.shape_ = pictures.shape[1:]
        self.lowest_, self.range_ = _range(pictures)
        self._trained: Classifier = train(
            _scaled(pictures, self.lowest_, self.range_),
            numbers,
            n_features=self.n_features,
            n_epochs=self.n_epochs,
            validation_fraction=self.validation_fraction,
            rng=random_generator(self.random_state),
            cache=self.cache,
        )
        self.accuracy_ = self._trained.accuracy
        return self

    def _check_parameters(self) -> None:
        check_count(self.n_features, "n_features")
        check_count(self.n_epochs, "n_epochs")
        if check_positive(self.validation_fraction, "validation_fraction") >= 1:
            raise ValueError(
                f"validation_fraction is {self.validation_fraction}, expected a number between 0 and 1"
            )
        if not isinstance(self.cache, bool):
            raise TypeError(f"cache is {self.cache!r}, expected True or False")

    def transform(self, X: Any) -> np.ndarray:
        """Return the features of images, (n, n_features) float32."""
        return self._pass(X)[0]

    @property
    def _n_features_out(self) -> int:  # names the columns of ``transform`` for scikit-learn
        return self.n_features

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class of each image, (n,)."""
        return self.classes_[self._pass(X)[1].argmax(axis=1)]

    def _pass(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        check_is_fitted(self, "accuracy_")
        self._check_parameters()
        pictures = _like(picture_array(X, "X"), self.shape_)
        return self._trained(_scaled(pictures, self.lowest_, self.range_))


def featured(X: Any, Y: Any, features: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return both clouds in the space where they are compared, float64 (n, p) and (m, p).

    ``features`` is None for points as they are, "convolutions", a fitted transformer or a function of both clouds.
    """
    if isinstance(features, str):
        if features != "convolutions":
            raise ValueError(
                f"features is {features!r}, expected None, 'convolutions', a transformer such as ClassifierFeatures, or a function"
            )
        features = RandomConvolutions().fit(Y)
    if features is not None:
        evaluate = features.transform if hasattr(features, "transform") else features
        if not callable(evaluate):
            raise TypeError(
                f"features is a {type(features).__name__}, expected None, 'convolutions', a transformer or a function"
            )
        X, Y = evaluate(X), evaluate(Y)
    x, y = real_array(X, "X"), real_array(Y, "Y")
    for cloud, name in ((x, "X"), (y, "Y")):
        if cloud.ndim != 2 or len(cloud) < 2:
            raise ValueError(
                f"{name} has shape {cloud.shape}, expected (n, p) with at least two rows"
                + ("; images need features='convolutions'" if features is None else "")
            )
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"X has {x.shape[1]} features and Y {y.shape[1]}: both clouds need the same"
        )
    return x, y


def _range(pictures: np.ndarray) -> tuple[float, float]:
    lowest, highest = float(pictures.min()), float(pictures.max())
    if lowest == highest:
        raise ValueError("all pixels of X coincide: there is nothing to see")
    if not np.isfinite(highest - lowest):
        raise ValueError(
            f"the pixels of X range from {lowest:.1e} to {highest:.1e}, beyond float64: rescale the images"
        )
    return lowest, highest - lowest


def _scaled(pictures: np.ndarray, lowest: float, width: float) -> np.ndarray:
    """Return pixels from 0 to 1 over the range of the fit, float32."""
    with np.errstate(over="ignore"):
        scaled = (pictures - lowest) / width
    if np.abs(scaled).max() > FAR:
        raise ValueError(
            f"X has pixels more than {FAR:.0e} times as large as the range of those given to fit: rescale the images"
        )
    return scaled.astype(np.float32)


def _like(pictures: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if pictures.shape[1:] != shape:
        raise ValueError(f"X has images of shape {pictures.shape[1:]}, expected {shape} as in fit")
    return pictures


def _filters(rng: np.random.Generator, side: int, channels: int, n: int) -> np.ndarray:
    """Return n filters as columns (side * side * channels, n), each of mean 0 and length 1."""
    drawn = rng.standard_normal((side * side * channels, n))
    drawn -= drawn.mean(axis=0)
    return (drawn / np.linalg.norm(drawn, axis=0)).astype(np.float32)


def _convolved(x: np.ndarray, filters: np.ndarray, side: int) -> np.ndarray:
    """Return (n, h, w, channels) convolved, edges continued, (n, h, w, n filters)."""
    half = side // 2
    padded = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))
    rows = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, filters.shape[0])
    return (rows @ filters).reshape(*x.shape[:3], -1)


def _pool(x: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return the means of x (n, h, w, c) over rows x columns cells of nearly equal size."""
    for axis, cells in ((1, rows), (2, columns)):
        edges = np.linspace(0, x.shape[axis], cells + 1).astype(int)
        counts = np.diff(edges).astype(np.float32)
        counts = counts.reshape([-1 if a == axis else 1 for a in range(4)])
        x = np.add.reduceat(x, edges[:-1], axis=axis) / counts
    return x
