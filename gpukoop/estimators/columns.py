"""Flows of data whose columns are in different units: samples and particles in standardised columns, results in the data's own."""

from __future__ import annotations

from typing import Any

from gpukoop.arrays import Array, like
from gpukoop.estimators.start import in_different_units
from gpukoop.estimators.weights import host_weight
from gpukoop.flow.loop import Callback
from gpukoop.kernels.formula.catalogue import Riesz
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.spectrum.linear_coordinates import LinearCoordinates


class ColumnsMixin:
    """What a flow sees of its samples: themselves, or their standardised columns.

    An energy measures one distance over all columns, so that of columns in different units it sees the widest alone. Numbers
    that were measured in the data keep the data's columns: the scale of a kernel, and all of ``units="absolute"``; so does a
    generator, whose map ends among the data.
    """

    X_: Array
    sample_weight_: Array | None
    units: str
    generator: Any
    columns_: LinearCoordinates | None = None

    def _place(self, kernel: AbstractKernel | None = None) -> Array:
        """Choose ``columns_`` for the samples ``X_``, and return these as the flow sees them, (m, d)."""
        measured = kernel is not None and kernel.resolved and not isinstance(kernel, Riesz)
        kept = measured or self.units == "absolute" or self.generator is not None
        self.columns_ = None
        if kept:
            return self.X_
        weight = host_weight(self.sample_weight_)
        if in_different_units(self.X_, weight):
            self.columns_ = LinearCoordinates("standardize").fit(self.X_, sample_weight=weight)
            self._standardised = self.columns_.transform(self.X_)
        return self._target

    @property
    def _target(self) -> Array:
        return self.X_ if self.columns_ is None else self._standardised

    @property
    def _standardises(self) -> bool:
        return self.columns_ is not None

    def _check_columns_kept(self) -> None:
        """Raise if what standardised columns exclude was set after ``fit``."""
        if self.columns_ is not None and (self.generator is not None or self.units == "absolute"):
            raise ValueError(
                "generator= or units='absolute' was set after a fit that standardised the columns (columns_): fit again"
            )

    def _seen(self, Z: Array) -> Array:
        """Return native points as the flow sees them, in the library of the samples."""
        Z = like(Z, self.X_)
        return Z if self.columns_ is None else self.columns_.transform(Z)

    def _back(self, Z: Array) -> Array:
        """Return points of the flow in the columns of the data."""
        return Z if self.columns_ is None else self.columns_.inverse(Z)

    def _watching(self, callback: Callback | None) -> Callback | None:
        """Return a callback that is shown the particles among the data."""
        if callback is None or self.columns_ is None:
            return callback
        return lambda i, Z: callback(i, self._back(Z))
