"""Which text serves a request of the CPU: few variants, chosen by what was measured; tables in :mod:`gpukoop.kernels.cpu.source`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from gpukoop.kernels.arrays import Array
from gpukoop.kernels.cpu.nests import TARGETS, lanes
from gpukoop.kernels.operation import Operation

# Measured (AVX-512): up to here scalars in text beat the buffer; it costs sums less than what has two passes.
MAX_FEATURES = 4
MAX_FEATURES_LONG = 8
MAX_COLUMNS = 4
MAX_SUMS = 12  # running sums of a gradient beside the profile, or the registers run out
LANES = 64  # tiles are padded to this: no loop has a remainder


@dataclass(frozen=True)
class Variant:
    """What the text depends on; scales, weights, n and m are arguments of the compiled code.

    Parameters
    ----------
    value, slope : bool
        Sum phi; sum dphi times (x - y).
    log : bool
        Log-sum-exp (and its gradient) instead of sums.
    features : int
        d, or 0: known at run time.
    columns : int
        t, or 0: known at run time.
    real : str
        "float32" or "float64".
    degree : int
        Degree of the polynomial behind exp2.
    tile : int
        Sources a tile.
    skip : bool
        Visit tiles in the order given, until the rest cannot matter (:mod:`gpukoop.kernels.cells`).
    """

    value: bool
    slope: bool
    log: bool
    features: int
    columns: int
    real: str
    degree: int
    tile: int
    skip: bool = False

    @property
    def targets(self) -> int:
        """R: one where nothing is shared; else as many as the registers hold."""
        if self.features and self.columns:
            return 1
        return TARGETS

    @property
    def wide(self) -> bool:
        """Whether the gradient is left to the loop nest over rows of features, padded to :attr:`pad`."""
        return self.slope and self.features == 0 and self.columns == 1

    @property
    def pad(self) -> int:
        """What the features of a target, and of a source by rows, are padded to a multiple of."""
        return lanes(self.real) if self.wide else 1


class Arguments(NamedTuple):
    """What the compiled code of every variant is called with, in this order; the text takes names and types from here.

    Attributes
    ----------
    start, stop : int
        Targets to compute.
    block, width : int
        Targets of a block, and running sums of each.
    n_features, n_columns, T, m : int
        d, t, t padded, and the number of padded sources.
    value_factor, slope_factor, tol : float
        Of the results; accuracy where tiles may be left out.
    X, S, Y : arrays
        Packed targets, tiles of sources with weights, rows of sources.
    P : array
        The factor of the squared distance, and the numbers of the trace's symbols.
    visit, left : arrays
        Tiles to visit, and what each and all later ones may contribute.
    out, grad : arrays
        Results.
    """

    start: int
    stop: int
    block: int
    width: int
    n_features: int
    n_columns: int
    T: int
    m: int
    value_factor: float
    slope_factor: float
    tol: float
    X: Array
    S: Array
    Y: Array
    P: Array
    visit: Array
    left: Array
    out: Array
    grad: Array


def signature(real: str) -> str:
    """Return the types of :class:`Arguments` in Numba's words."""
    rows, integers, numbers = f"{real}[:, ::1]", ["int64"] * 8, ["float64"] * 3
    arrays = [rows, rows, rows, f"{real}[::1]", "int32[:, ::1]", "float64[:, ::1]"]
    return f"void({', '.join([*integers, *numbers, *arrays, rows, f'{real}[:, :, ::1]'])})"


def choose(operation: Operation, d: int, t: int, real: str, degree: int) -> Variant:
    """Return the variant that serves d features and t columns; few texts serve all sizes."""
    slope, log = operation.slope, operation.log
    features = d if d <= (MAX_FEATURES_LONG if slope or log else MAX_FEATURES) else 0
    few = features and t <= MAX_COLUMNS and (not slope or t * d <= MAX_SUMS)
    columns = t if few or t == 1 else 0
    # A tile and its buffers fit a first-level cache if the features are few, a second-level cache if not.
    tile = 1024 if features and columns and features + columns <= 6 else 512 if d <= 256 else 128
    if real == "float64":
        tile //= 2
    return Variant(operation.value, slope, log, features, columns, real, degree, tile)
