"""Latent spaces: principal components, a pair of functions, or a transformer; the identity by default."""

from __future__ import annotations

from typing import Any, final

import numpy as np

from gpukoop.arrays import Array, like, to_host
from gpukoop.fitted import own_part
from gpukoop.versions import Persistent


@final
class Latent(Persistent):
    """The way into the space where the flow is learned, and back.

    Parameters
    ----------
    spec : None, int, (encode, decode), or object
        None is the identity. An int is that many principal components (scikit-learn's PCA, on the host). Two functions
        map (n, d) to (n, k) and back. An object has ``transform`` and ``inverse_transform``, and ``fit`` if it must learn;
        a copy of it is fitted, so that a later fit of the object changes no sampler.
    """

    def __init__(self, spec: Any) -> None:
        self.spec = spec
        self._encode: Any = None
        self._decode: Any = None
        if spec is None:
            return
        if isinstance(spec, bool):
            raise TypeError(
                f"latent is {spec!r}, expected None, an int, (encode, decode) or an object"
            )
        if isinstance(spec, int | np.integer):
            if spec < 1:
                raise ValueError(f"latent must be at least 1 component, got {spec}")
        elif isinstance(spec, tuple | list):
            if len(spec) != 2 or not all(callable(f) for f in spec):
                raise TypeError("latent is a sequence, expected two functions (encode, decode)")
            self._encode, self._decode = spec
        elif not (hasattr(spec, "transform") and hasattr(spec, "inverse_transform")):
            raise TypeError(
                f"latent is {spec!r}, expected None, a number of principal components, (encode, decode), or an object "
                "with transform and inverse_transform"
            )

    def fit(self, X: Array, seed: int) -> Array:
        """Learn the latent space and return X in it."""
        spec = own_part(self.spec)
        if isinstance(spec, tuple | list):
            self._encode, self._decode = spec
        if isinstance(spec, int | np.integer):
            from sklearn.decomposition import PCA

            if spec > min(X.shape):
                raise ValueError(
                    f"latent={spec} principal components need at least as many rows and columns, X has shape {X.shape}"
                )
            spec = PCA(n_components=int(spec), random_state=seed % 2**32).fit(to_host(X))
        elif spec is not None and self._encode is None and hasattr(spec, "fit"):
            spec.fit(to_host(X))
        if spec is not None and self._encode is None:
            self._encode, self._decode = spec.transform, spec.inverse_transform
        return self.encode(X)

    def encode(self, X: Array) -> Array:
        """Return X in the latent space, float64 like X."""
        if self._encode is None:
            return X
        inner = self._through(self._encode, X)
        if inner.ndim != 2 or len(inner) != len(X):
            raise ValueError(
                f"encode returned shape {inner.shape} for {len(X)} rows, expected ({len(X)}, k)"
            )
        return inner

    def decode(self, Z: Array) -> Array:
        """Return latent points as data."""
        return Z if self._decode is None else self._through(self._decode, Z)

    def _through(self, function: Any, X: Array) -> Array:
        return like(np.asarray(function(to_host(X)), dtype=to_host(X[:0]).dtype), X)
