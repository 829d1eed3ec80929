"""Images from files that a user has: NumPy's, MNIST's (IDX), CIFAR's binary batches, and folders of PNGs."""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any, Literal, overload

import numpy as np

from gpukoop.arrays import require_finite
from gpukoop.files import LARGEST, open_regular, read_array, read_member

# Names under which labels are kept in archives.
LABELS = ("labels", "y", "targets", "label")
# IDX: third byte of the file, by which the numbers that follow are read; they are written with the largest byte first.
IDX = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
# CIFAR: label, then 32 x 32 pixels of each colour; CIFAR-100 has two labels.
CIFAR = {3073: 1, 3074: 2}
GREY, COLOURED = ("1", "L"), ("P", "PA", "LA", "La", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_DAMAGED = (
    ValueError,
    TypeError,
    KeyError,
    OSError,
    EOFError,
    MemoryError,
    OverflowError,
    SyntaxError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    NotImplementedError,
)


@overload
def images(path: str | Path, *, return_labels: Literal[False] = False) -> np.ndarray: ...
@overload
def images(path: str | Path, *, return_labels: Literal[True]) -> tuple[np.ndarray, np.ndarray]: ...
def images(
    path: str | Path, *, return_labels: bool = False
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Read images, and labels where there are any.

    Parameters
    ----------
    path : path
        One of:

        - ``.npz`` with one array of images; labels are the array called ``labels``, ``y``, ``targets`` or ``label``;
        - ``.npy``;
        - IDX, the format of MNIST, plain or ``.gz``; labels are in the file beside it whose name has ``labels-idx1`` in place of
          ``images-idx3``;
        - ``.bin``, a binary batch of CIFAR-10 or CIFAR-100 (fine labels);
        - a folder of PNG files in the order of their names; folders in it are classes, and their names the labels.
    return_labels : bool, default=False
        Return (images, labels).

    Returns
    -------
    array of shape (n, height, width) or (n, height, width, colours), as it was stored (PNG: uint8)
    array of shape (n,), with ``return_labels``

    Raises
    ------
    ValueError
        If there is nothing to read, it is damaged or of another kind, holds NaN or inf, images differ in size, or labels are asked for and there
        are none.
    ImportError
        If PNGs are to be read and Pillow is missing.

    Examples
    --------
    >>> X, y = gk.datasets.images("train-images-idx3-ubyte.gz", return_labels=True)  # doctest: +SKIP
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path is {path!r}, expected the name of a file or a folder")
    where = Path(path)
    try:
        folder, there = where.is_dir(), where.exists()
    except OSError as error:  # too long a name, a folder that may not be looked into
        raise ValueError(
            f"path {str(where)[:60]!r} cannot be looked at: {error.strerror}"
        ) from None
    if folder:
        X, labels = _folder(where)
    elif not there:
        raise ValueError(f"{where}: no such file or folder; expected .npz, .npy, IDX, .bin or PNGs")
    else:
        try:
            X, labels = _file(where)
        except _DAMAGED as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{where} has no readable images ({reason})") from None
    if X.ndim not in (3, 4) or 0 in X.shape or X.dtype.kind not in "fiub":
        raise ValueError(
            f"{where} holds an array of shape {X.shape} and dtype {X.dtype}, expected (n, height, width) or "
            "(n, height, width, colours) of real numbers"
        )
    # here, since it brings scikit-learn, which data sets do without
    from gpukoop.checks import refuse_colours_first

    refuse_colours_first(X.shape, "images")
    if X.dtype.kind == "f":
        require_finite(X, str(where))
    if not return_labels:
        return X
    if labels is None:
        raise ValueError(f"{where} has images but no labels: drop return_labels")
    if labels.shape != (len(X),):
        raise ValueError(f"{where} has {len(X)} images and labels of shape {labels.shape}")
    return X, labels


def _file(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return images and labels of a file, told by its first bytes."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > LARGEST:
            raise ValueError("it is too large")
        start = file.read(6)
        file.seek(0)
        if start[:4] == b"PK\x03\x04":
            return _archive(file)
        if start == b"\x93NUMPY":
            return read_array(file), None
        if start[:2] == b"\x1f\x8b" or start[:2] == b"\x00\x00":
            return _idx(file), _idx_labels(path)
        if path.suffix == ".bin":
            return _cifar(file.read())
    raise ValueError("it is no .npz, .npy, IDX or CIFAR .bin file")


def _archive(file: IO[bytes]) -> tuple[np.ndarray, np.ndarray | None]:
    with zipfile.ZipFile(file) as archive:
        arrays = {
            Path(name).stem: read_member(archive, name)
            for name in archive.namelist()
            if name.endswith(".npy")
        }
    stacks = [name for name, array in arrays.items() if array.ndim in (3, 4)]
    if len(stacks) > 1 and "images" in stacks:
        stacks = ["images"]
    if len(stacks) != 1:
        raise ValueError(
            f"it holds {', '.join(arrays) or 'nothing'}: expected one array of images, or one called 'images'"
        )
    labels = next((arrays[name].ravel() for name in LABELS if name in arrays), None)
    return arrays[stacks[0]], labels


def _idx(file: IO[bytes]) -> np.ndarray:
    """Return the array of an IDX file: two zeros, kind, number of dimensions, their sizes, the numbers."""
    zipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    stream: Any = gzip.GzipFile(fileobj=file) if zipped else file
    zeros, kind, n_axes = struct.unpack(">HBB", stream.read(4))
    if zeros or kind not in IDX or not n_axes:
        raise ValueError("it does not begin as IDX files do")
    shape = struct.unpack(f">{n_axes}I", stream.read(4 * n_axes))
    dtype = np.dtype(IDX[kind])
    size = math.prod(shape) * dtype.itemsize
    if size > LARGEST:
        raise ValueError(f"its header announces {size:.1e} bytes")
    data = stream.read(size)
    if len(data) != size or stream.read(1):
        raise ValueError(f"its header announces {size} bytes of numbers, and there are others")
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _idx_labels(path: Path) -> np.ndarray | None:
    """Return the labels in the file beside images in MNIST's way of naming, packed or not."""
    name = re.sub(r"images([-.])idx3", r"labels\1idx1", path.name)
    plain = name.removesuffix(".gz")
    for candidate in (name, plain, f"{plain}.gz"):
        beside = path.with_name(candidate)
        if beside != path and beside.is_file():
            with open_regular(beside) as file:
                return _idx(file)
    return None


def _cifar(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    fits = [size for size in CIFAR if data and len(data) % size == 0]
    if not fits:
        raise ValueError(
            f"it has {len(data)} bytes, and CIFAR's binary batches are multiples of 3,073 or 3,074"
        )
    # Where both divide, labels tell: those of CIFAR-10 are below 10.
    tables = [np.frombuffer(data, np.uint8).reshape(-1, size) for size in fits]
    table = next((t for t in tables if t.shape[1] == 3073 and t[:, 0].max() < 10), tables[-1])
    n_labels = CIFAR[table.shape[1]]
    pixels = table[:, n_labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels), table[:, n_labels - 1].astype(int)


def _pngs(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.suffix.lower() == ".png")


def _folder(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the PNGs of a folder, or of its folders, with their names as labels."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "PNG files need Pillow, which is not installed: pip install gpukoop[plot]"
        ) from error
    try:
        found = _pngs(path)
        classes = sorted(p for p in path.iterdir() if p.is_dir())
        inside = [_pngs(c) for c in classes]
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from None
    if found and any(inside):
        raise ValueError(
            f"{path} has PNG files both in itself and in folders: expected one or the other"
        )
    labels = None
    if not found:
        labels = np.repeat([c.name for c in classes], [len(files) for files in inside])
        found = [p for files in inside for p in files]
    if not found:
        raise ValueError(f"{path} has no PNG files, nor have its folders")
    pictures = []
    for file in found:
        try:
            with Image.open(file, formats=["PNG"]) as image:
                if image.mode not in (*GREY, *COLOURED):
                    raise ValueError(
                        f"pixels of mode {image.mode} are not read: save 8 bits a colour"
                    )
                pictures.append(np.asarray(image.convert("L" if image.mode in GREY else "RGB")))
        except (*_DAMAGED, Image.DecompressionBombError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{file} is no readable PNG ({reason})") from None
        if pictures[-1].shape != pictures[0].shape:
            raise ValueError(
                f"{file} has shape {pictures[-1].shape}, {found[0].name} has {pictures[0].shape}: images must be alike"
            )
    return np.stack(pictures), labels
