"""A stand-in for CuPy that computes with NumPy and counts what a program would ask of a device.

How to use it::

    from device_counter import counted_device, counted_sums

    with counted_device() as cupy, counted_sums():     # ``import cupy`` finds the stand-in; both undo themselves
        X = cupy.asarray(numbers)
        with cupy.counting() as count:
            gk.Gaussian(1.0)(X, backend="numba-cuda") @ v
        count.kernels, count.syncs, count.copies, count.sums
        print(count)                                    # with the lines that synchronised and copied

======== ======================================================================================================
kernels  launches: ufuncs, reductions, indexing with arrays, fills, copies on the device, products of matrices
syncs    the host waits: ``float(x)``, ``bool(x)``, boolean masks, ``nonzero``, checked factorisations, ``x.get()``
copies   between host and device, either way: ``asarray`` of NumPy arrays and of numbers, ``x.get()``, lists as indices
sums     kernel sums, if :func:`counted_sums` replaces them (their own launches are bounded elsewhere)
======== ======================================================================================================

To count the launches of the real reductions instead, leave :func:`counted_sums` out and call ``cupy.note("kernel")``
where a launch would stand. What CuPy refuses is refused: NumPy arrays beside CuPy arrays, ``numpy.asarray`` of a CuPy array.
Composite calls are counted by estimates, :data:`ledger.COMPOSITE`; all others are one launch. A function under ``cupy.fuse``
is one launch, and sees variables that only know arithmetic, ufuncs and one final reduction. A stream under capture records; the
graph does the same again, into the same memory, as one launch, and what waits or copies is refused.
"""

from device_counter.module import RAW, Stream, counted_device, pinned
from device_counter.sums import counted_sums, recorded_launches

__all__ = ["RAW", "Stream", "counted_device", "counted_sums", "pinned", "recorded_launches"]
