"""Coordinates of other makers: objects with a vector-Jacobian product, torch modules; and which ones a parameter asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone

from gpukoop.arrays import Array, like, namespace, points
from gpukoop.fitted import own_part
from gpukoop.kernels.formula.lengths import isotropic
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.spectrum.linear_coordinates import METHODS, AbstractCoordinates, LinearCoordinates

# Ridge of J J^T relative to its trace: a degenerate Jacobian moves nothing along its kernel.
RIDGE = 1e-10


class UserCoordinates(AbstractCoordinates):
    """An object with ``transform`` and ``vjp``, checked; p passes of ``vjp`` give its Jacobian."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def transform(self, X: Array) -> Array:
        """Return g(X), (n, p)."""
        G, _ = points(self.inner.transform(X), "coordinates.transform(X)")
        if len(G) != len(X):
            raise ValueError(f"coordinates.transform(X) has {len(G)} rows, X has {len(X)}")
        return like(G, X)

    def vjp(self, X: Array, G: Array) -> Array:
        """Return J^T g, (n, d)."""
        back = like(self.inner.vjp(X, G), X)
        if back.shape != X.shape:
            raise ValueError(
                f"coordinates.vjp(X, G) returned shape {back.shape}, expected {X.shape}: J^T g for every row"
            )
        return back

    def lift(self, X: Array, motion: Array) -> Array:
        """Return X + J^T (J J^T)^-1 motion, (n, d)."""
        xp, p = namespace(X), motion.shape[1]
        eye = xp.eye(p, dtype=X.dtype)
        J = xp.stack([self.vjp(X, xp.tile(eye[k], (len(X), 1))) for k in range(p)], axis=1)
        J = J.astype(float)  # (n, p, d)
        # The p x p side: coordinates are few, features may be many.
        gram = J @ J.transpose(0, 2, 1)
        size = xp.trace(gram, axis1=1, axis2=2)
        gram = gram + (RIDGE * xp.where(size > 0, size, 1.0))[:, None, None] * xp.eye(p)
        push = xp.linalg.solve(gram, motion.astype(float)[:, :, None])
        return X + (J.transpose(0, 2, 1) @ push)[:, :, 0].astype(X.dtype)


class ModuleCoordinates:
    """A torch module (n, d) -> (n, p) as coordinates: values without a graph, products by autograd."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def _tensor(self, X: Array) -> Any:
        import torch

        first = next(iter(self.module.parameters()), None)
        X = torch.from_numpy(X) if isinstance(X, np.ndarray) else torch.from_dlpack(X)
        return X if first is None else X.to(first.dtype).to(first.device)

    def transform(self, X: Array) -> Array:
        """Return the module's values, (n, p)."""
        import torch

        with torch.no_grad():
            out = self.module(self._tensor(X))
        return like(out.cpu().numpy() if isinstance(X, np.ndarray) else out, X)

    def vjp(self, X: Array, G: Array) -> Array:
        """Return J^T g, (n, d)."""
        import torch

        with torch.enable_grad():
            # A leaf of its own: gradients must not run into a graph that the user has built around X.
            x = self._tensor(X).detach().clone().requires_grad_(True)
            out = self.module(x)
            (back,) = torch.autograd.grad(out, x, self._tensor(G).to(out.dtype))
        return like(back.cpu().numpy() if isinstance(X, np.ndarray) else back, X)


def check_coordinates(chosen: Any) -> None:
    """Raise unless these can be coordinates."""
    if chosen is None or isinstance(chosen, AbstractCoordinates) or _is_module(chosen):
        return
    if isinstance(chosen, str):
        if chosen not in METHODS:
            raise ValueError(
                f"coordinates must be None, {', '.join(map(repr, METHODS))} or an object with transform and vjp, got {chosen!r}"
            )
        return
    if not all(callable(getattr(chosen, name, None)) for name in ("transform", "vjp")):
        raise TypeError(
            f"coordinates is {chosen!r}, expected None, a name, a torch module or an object with transform(X) -> (n, p) and "
            "vjp(X, G) -> (n, d), the gradient G carried back"
        )


def is_auto(chosen: Any) -> bool:
    """Return whether the widths of columns decide."""
    return isinstance(chosen, str) and chosen == "auto"


def _is_module(chosen: Any) -> bool:
    return any(
        c.__module__.startswith("torch.") and c.__name__ == "Module" for c in type(chosen).__mro__
    )


@dataclass(frozen=True)
class InCoordinates:
    """Functions of g(x) as functions of x."""

    functions: Any
    coordinates: AbstractCoordinates

    @property
    def sources(self) -> Array:
        """Points whose library and dtype the functions have."""
        return self.functions.sources

    def transform(self, X: Array) -> Array:
        """Return the functions at g(X)."""
        return self.functions.transform(self.coordinates.transform(X))


def functions_of_points(functions: Any, spectrum: Any) -> Any:
    """Return functions of points, given those of what a spectrum sees of them."""
    coordinates = spectrum.coordinates_
    return functions if coordinates is None else InCoordinates(functions, coordinates)


def fitted_coordinates(
    chosen: Any,
    kernel: AbstractKernel,
    X: Array,
    Y: Array | None = None,
    weight: Array | None = None,
) -> tuple[AbstractCoordinates | None, AbstractKernel]:
    """Return the coordinates asked for, fitted to samples, weighted ones or pairs, and the kernel of points in them.

    A kernel with a scale for each feature is one with a single scale in coordinates divided by its lengths.
    """
    if not isinstance(kernel, AbstractKernel):
        raise TypeError(f"kernel is {kernel!r}, expected a kernel such as Gaussian('auto')")
    single, lengths = isotropic(kernel)
    if lengths is not None:
        if chosen is not None:
            raise ValueError(
                f"coordinates= and {kernel!r} both say what a distance is: pass one scale, or no coordinates"
            )
        if len(lengths) != X.shape[1]:
            raise ValueError(
                f"the kernel has {len(lengths)} scales, X has {X.shape[1]} features: pass one scale for each feature"
            )
        made = LinearCoordinates("standardize")
        made.mean_, made.n_features_in_ = np.zeros(len(lengths)), len(lengths)
        # One scale a feature is a stretch of the points: the rest of the room then knows a single scale.
        made.matrix_, made._back = np.diag(1 / np.array(lengths)), np.diag(lengths)
        return made, single
    if chosen is None:
        return None, kernel
    if isinstance(chosen, str):
        made = LinearCoordinates(chosen)
        return made.fit(X, successors=Y, sample_weight=weight), kernel
    if isinstance(chosen, LinearCoordinates):
        return (
            # Fitted ones are taken as they are, so that two spectra may share coordinates: as a copy, since the user may fit
            # them anew. Unfitted ones stay as the user made them.
            own_part(chosen)
            if hasattr(chosen, "matrix_")
            else clone(chosen).fit(X, successors=Y, sample_weight=weight)
        ), kernel
    chosen = own_part(chosen)
    if isinstance(chosen, AbstractCoordinates):
        return chosen, kernel
    return UserCoordinates(ModuleCoordinates(chosen) if _is_module(chosen) else chosen), kernel
