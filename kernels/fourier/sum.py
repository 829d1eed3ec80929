r"""One Fourier sum: transform, check against exact rows, put right what the noise spoils.

=== =============== ====================
n   targets         rows of ``X``
m   sources         rows of ``Y``
d   features        columns of both
t   right-hand side columns of ``V``
g   densities       columns of sum |v| k: t, or one for many columns
=== =============== ====================
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpukoop.kernels.arrays import Array, namespace, to_host
from gpukoop.kernels.formula.profile import AbstractKernel
from gpukoop.kernels.fourier import cost
from gpukoop.kernels.fourier.check import CHECKED_ROWS, exact
from gpukoop.kernels.fourier.geometry import Geometry
from gpukoop.kernels.fourier.modes import Grid, absolute, coefficients, height, smallest_scale
from gpukoop.kernels.fourier.nufft import FLOOR, setup, spectra, values
from gpukoop.kernels.operation import PRODUCT, VALUE_AND_GRADIENT, Operation

# The largest of 32 errors is about two standard deviations, the largest of a million five.
NOISE_FACTOR = 3.0
# So many columns have their own sum |v| k; more share a mean profile.
OWN_DENSITY = 4
# Exact pairs that cost nothing next to a transform, and the share of all pairs above which a sum is not near-linear.
FREE_PAIRS, EXACT_SHARE = 2**24, 0.1
ATTEMPTS = 3


@dataclass
class _Pass:
    """Results of one transform on the inner targets, in units of sum_j |v_j|: (n, t), (n, t, d), (n, g)."""

    value: Array | None
    slope: Array | None
    density: Array


class FourierSum:
    """One pass over some columns: transform, check, put right."""

    def __init__(
        self,
        kernel: AbstractKernel,
        geometry: Geometry,
        V: Array,
        tol: float,
        operation: Operation,
    ) -> None:
        self.kernel, self.geometry, self.V, self.tol = kernel, geometry, V, tol
        self.want_value, self.want_slope = operation.value, operation.slope
        # Of exact rows the value is always wanted: it is what errors are measured by.
        self.checked = VALUE_AND_GRADIENT if operation.slope else PRODUCT
        self.unit = smallest_scale(kernel) if operation.slope else 1.0
        # The rounding of the result itself is part of the error.
        self.rounding = float(np.finfo(geometry.X.dtype).eps)
        self.room = (tol - self.rounding) * (1 - 1e-6)

    def run(self) -> float:
        """Compute ``value`` and ``slope`` for all targets; return the error estimate."""
        g, tol = self.geometry, self.tol
        n, m = len(g.X), len(g.Y)
        chosen = g.plan(self.kernel, tol, self.want_slope)
        if chosen is not None:
            g.choose(chosen[0])
        if chosen is None or len(g.inner_x) == 0 or len(g.inner_y) == 0:
            self._everything_exact()
            return self.rounding
        xp = namespace(g.X)
        V = self.V if g.near_y is None else self.V[g.near_y]
        self.size = xp.abs(V).sum(axis=0, dtype=float)
        # Columns of equal size: two travel in one transform, and its error is relative to the larger.
        self.W = V / xp.where(self.size == 0, 1.0, self.size)
        self.groups = self._density_weights()
        self._sum_check_rows()
        accuracy, attempt = self._first_accuracy(), 0
        while True:
            attempt += 1
            got = self._transform(accuracy)
            noise = self._noise(got)  # (t,)
            bad = self._bad_rows(got, noise)
            n_bad = int(bad.sum())
            budget = self._budget(got)
            last = attempt == ATTEMPTS or self.setup.eps <= FLOOR["complex128"]
            if last:
                budget = max(budget, int(EXACT_SHARE * n * m))
            if n_bad * m <= budget or last:
                break
            accuracy = self._finer(accuracy, got, noise, budget // m)
        repaired = n_bad * m <= budget
        estimate = self._estimate(got, noise, ~bad if repaired else None)
        self._assemble(got, bad if repaired else None)
        return estimate

    # -- the absolute accuracy that the rows need -----------------------------------------------------

    def _density_weights(self) -> Array:
        """Return the weights whose sums with |k| the errors are measured by, (m, g)."""
        xp = namespace(self.W)
        A = xp.abs(self.W)
        return A if A.shape[1] <= OWN_DENSITY else A.mean(axis=1, keepdims=True)

    def _sum_check_rows(self) -> None:
        g = self.geometry
        self.rows = g.rows()
        X = g.inner_x[self.rows]
        xp, t = namespace(X), self.W.shape[1]
        W, one_kernel = self.W, absolute(self.kernel) is self.kernel
        if one_kernel and not self._value_is_density:
            W = xp.hstack([self.W, self.groups])
        got = exact(self.kernel, self.checked, X, g.inner_y, W)
        value, slope = got if self.want_slope else (got, None)
        self.true_value, self.true_slope = value[:, :t], None if slope is None else slope[:, :t]
        if self._value_is_density:
            self.true_density = abs(value)
        elif one_kernel:
            self.true_density = value[:, t:]
        else:
            self.true_density = exact(absolute(self.kernel), PRODUCT, X, g.inner_y, self.groups)

    @property
    def _value_is_density(self) -> bool:
        """Whether all weights of a column and all coefficients of the kernel have one sign."""
        if not hasattr(self, "_one_sign"):
            xp = namespace(self.W)
            signs = xp.all((self.W.min(axis=0) >= 0) | (self.W.max(axis=0) <= 0))
            few = self.W.shape[1] <= OWN_DENSITY
            self._one_sign = few and absolute(self.kernel) is self.kernel and bool(signs)
        return self._one_sign

    def _first_accuracy(self) -> float:
        # The lower fifth of the random rows, and the rim: sparser rows are cheaper to sum exactly. In decades, so that
        # products of one operator share grid and plans.
        density = to_host(self.true_density) / height(self.kernel)
        need = float(np.quantile(density[:CHECKED_ROWS], 0.2, axis=0).min())
        if len(density) > CHECKED_ROWS:
            # Random rows keep a factor 4 for those between them; that a few rows too many lie beyond the rim costs little.
            need = min(need, 4 * float(np.median(density[CHECKED_ROWS:], axis=0).min()))
        decade = 10.0 ** math.floor(math.log10(min(max(need, 1e-9), 1.0)))
        return cost.density_accuracy(self.tol, decade)

    def _finer(self, accuracy: float, got: _Pass, noise: Array, rows: int) -> float:
        """Return the accuracy at which only ``rows`` targets would be below the noise."""
        share = min(1.0, rows / len(got.density))
        level = to_host(namespace(got.density).quantile(got.density, share, axis=0))
        need = to_host(noise) / np.maximum(self.room * level, 1e-300)
        # From what was asked of the transform; by a digit at least, since stencils come in whole cells.
        used = min(accuracy, self.setup.eps / (4 * self.gain))
        return max(used / min(max(10.0, 2 * float(need.max())), 1e4), 1e-13)

    @property
    def gain(self) -> float:
        """How much better the sum is than its worst term.

        Errors of the sources are unrelated and average out: a twentieth of sqrt(m) is what is left of it in the worst of the
        clouds tried. The noise that is measured decides, this only starts well.
        """
        return min(max(math.sqrt(len(self.W)) / 20, 1.0), 50.0)

    # -- transform ------------------------------------------------------------------------------------

    def _transform(self, accuracy: float) -> _Pass:
        g = self.geometry
        if g.box is None:
            raise RuntimeError("no box chosen")
        grid = cost.grid_for(self.kernel, g.box, accuracy, self.tol, self.want_slope)
        if grid is None:
            raise ValueError(cost.refusal(self.kernel, (g.box,), self.tol, self.want_slope))
        m = len(g.inner_y)
        # Not coarser than a tenth of tol: a narrower stencil saves little, and a second pass costs all of it.
        eps = min(4 * accuracy * self.gain, self.tol / 10)
        # Single precision at its floor is worth a try: what is asked for is mostly ten times what is needed.
        rounding = 6e-8 * max(P / smallest_scale(self.kernel) for P in grid.periods)
        single = g.X.dtype == np.float32 and 10 * eps >= FLOOR["complex64"] and rounding <= 40 * eps
        dtype = "complex64" if single else "complex128"
        self.setup = setup(grid.shape, eps, dtype, m + len(g.inner_x))
        targets, sources = g.clouds(grid, self.setup)
        W = self.W if self._value_is_density else namespace(self.W).hstack([self.W, self.groups])
        F = spectra(self.setup, sources, W)
        count, rows = self._rows(F, grid)
        out = values(self.setup, targets, rows, count)  # (count, n)
        return self._unpack(out)

    def _rows(self, F: Array, grid: Grid) -> tuple[int, Iterator[Array]]:
        """Return how many spectra of results there are, and them: values, densities, slopes."""
        xp = namespace(F)
        t, d = self.W.shape[1], len(grid.periods)
        real = self.setup.real
        b = xp.asarray(coefficients(self.kernel, grid), dtype=real)
        b_abs = b
        if absolute(self.kernel) is not self.kernel:
            b_abs = xp.asarray(coefficients(absolute(self.kernel), grid), dtype=real)
        with_value = self.want_value or self._value_is_density

        def rows() -> Iterator[Array]:
            if with_value:
                yield from (F[c] * b for c in range(t))
            yield from (F[r] * b_abs for r in range(t, len(F)))
            if self.want_slope:
                for c in range(t):
                    smooth = F[c] * b
                    for axis, (M, P) in enumerate(zip(grid.cutoffs, grid.periods, strict=True)):
                        step = 2j * math.pi / P * self.unit
                        factor = (xp.arange(-M, M + 1) * step).astype(F.dtype)
                        yield smooth * factor.reshape([-1 if a == axis else 1 for a in range(d)])

        count = (t if with_value else 0) + len(F) - t + (t * d if self.want_slope else 0)
        return count, rows()

    def _unpack(self, out: Array) -> _Pass:
        t, d = self.W.shape[1], self.geometry.X.shape[1]
        with_value = self.want_value or self._value_is_density
        at = t if with_value else 0
        value = out[:t].T if with_value else None
        if self._value_is_density:
            density = abs(out[:t].T)
        else:
            width = self.groups.shape[1]
            density = out[at : at + width].T
            at += width
        slope = out[at:].reshape(t, d, -1).transpose(2, 0, 1) if self.want_slope else None
        return _Pass(value if self.want_value else None, slope, density)

    # -- check ----------------------------------------------------------------------------------------

    def _noise(self, got: _Pass) -> Array:
        """Return the noise of every column: three times its largest error on the checked rows."""
        errors = []
        if got.value is not None:
            errors.append(abs(got.value[self.rows] - self.true_value).max(axis=0))
        if got.slope is not None and self.true_slope is not None:
            true = self.true_slope * self.unit
            errors.append(abs(got.slope[self.rows] - true).max(axis=(0, 2)))
        rounding = float(np.finfo(self.setup.real).eps) * height(self.kernel) / len(self.W)
        return NOISE_FACTOR * namespace(self.W).maximum(_max_of(errors), rounding)

    def _bad_rows(self, got: _Pass, noise: Array) -> Array:
        return (got.density * self.room < self._per_group(noise)).any(axis=1)

    def _per_group(self, noise: Array) -> Array:
        return noise if self.groups.shape[1] == len(noise) else noise.max()

    def _budget(self, got: _Pass) -> int:
        """Return the exact pairs that cost as much as two such transforms: the next one would be a finer one."""
        g = self.geometry
        grid = Grid((), tuple((s - 1) // 2 for s in self.setup.shape), (), 0.0)
        size = len(g.inner_x), len(g.inner_y), g.X.shape[1], self.W.shape[1]
        spent = cost.seconds(grid, g.box, *size, self.checked, self.tol, str(g.X.dtype), g.rate)
        return max(FREE_PAIRS, int(2 * spent / g.rate.pair / (3 if self.want_slope else 1)))

    def _estimate(self, got: _Pass, noise: Array, kept: Array | None) -> float:
        density = got.density if kept is None else got.density[kept]
        if len(density) == 0:
            return self.rounding
        floor = float(np.finfo(float).tiny)
        worst = self._per_group(noise) / namespace(density).maximum(density.min(axis=0), floor)
        return float(worst.max()) + self.rounding

    # -- put right and put together -------------------------------------------------------------------

    def _assemble(self, got: _Pass, bad: Array | None) -> None:
        g = self.geometry
        xp = namespace(g.X)
        n, t, d = len(g.X), self.V.shape[1], g.X.shape[1]
        near = slice(None) if g.near_x is None else g.near_x
        self.value = self.slope = None
        if got.value is not None:
            self.value = xp.zeros((n, t), g.X.dtype)
            self.value[near] = got.value * self.size
        if got.slope is not None:
            self.slope = xp.zeros((n, t, d), g.X.dtype)
            self.slope[near] = got.slope * (self.size / self.unit)[:, None]
        if g.far_y is not None and len(g.far_y):
            self._add(slice(None), g.Y[g.far_y], self.V[g.far_y], set_rows=False)
        rows = [] if g.far_x is None else [g.far_x]
        if bad is not None and bool(bad.any()):
            where = xp.flatnonzero(bad)
            rows.append(where if g.near_x is None else g.near_x[where])
        if rows and sum(map(len, rows)):
            self._add(xp.concatenate(rows), g.Y, self.V, set_rows=True)

    def _add(self, rows: Any, Y: Array, V: Array, *, set_rows: bool) -> None:
        """Add the exact sums over some sources to some rows, or put them in their place."""
        X = self.geometry.X[rows]
        got = exact(self.kernel, self.checked, X, Y, V, wide=False)
        value, slope = got if self.want_slope else (got, None)
        for out, part in ((self.value, value), (self.slope, slope)):
            if out is not None:
                out[rows] = part if set_rows else out[rows] + part

    def _everything_exact(self) -> None:
        g = self.geometry
        xp = namespace(g.X)
        t, d = self.V.shape[1], g.X.shape[1]
        self.value = xp.zeros((len(g.X), t), g.X.dtype) if self.want_value else None
        self.slope = xp.zeros((len(g.X), t, d), g.X.dtype) if self.want_slope else None
        self._add(slice(None), g.Y, self.V, set_rows=True)


def _max_of(arrays: list[Array]) -> Array:
    """Return the elementwise maximum."""
    top = arrays[0]
    for a in arrays[1:]:
        top = namespace(a).maximum(top, a)
    return top
