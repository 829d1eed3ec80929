"""Images from files, features of images, and the distances in them."""

import gzip
import struct
import sys

import numpy as np
import pytest

import gpukoop as gk
from gpukoop import datasets, metrics
from gpukoop.metrics import (
    ClassifierFeatures,
    RandomConvolutions,
    frechet_distance,
    kernel_distance,
)

rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (5, 6, 7), dtype=np.uint8)
LABELS = np.array([3, 1, 4, 1, 5])


def idx(array):
    kinds = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}
    header = struct.pack(f">HBB{array.ndim}I", 0, kinds[array.dtype.name], array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


# -- files


def test_numpy_files(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    np.savez_compressed(tmp_path / "b.npz", x=IMAGES, y=LABELS[:, None], other=np.zeros((2, 2)))
    np.save(tmp_path / "c.npy", IMAGES[..., None])
    for name in ("a.npz", "b.npz"):
        X, labels = datasets.images(tmp_path / name, return_labels=True)
        assert np.array_equal(X, IMAGES)
        assert np.array_equal(labels, LABELS)
    assert np.array_equal(datasets.images(str(tmp_path / "c.npy")), IMAGES[..., None])
    with pytest.raises(ValueError, match="no labels"):
        datasets.images(tmp_path / "c.npy", return_labels=True)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64"])
def test_idx_keeps_every_kind_of_number(tmp_path, dtype):
    array = (IMAGES.astype(float) - 3).astype(dtype)
    (tmp_path / "images.idx").write_bytes(idx(array))
    back = datasets.images(tmp_path / "images.idx")
    assert back.dtype == dtype
    assert back.dtype.isnative
    assert np.array_equal(back, array)


@pytest.mark.parametrize("zipped", [(".gz", ".gz"), ("", ""), (".gz", ""), ("", ".gz")])
def test_mnists_names_find_its_labels(tmp_path, zipped):
    for name, array, end in zip(
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        (IMAGES, LABELS.astype(np.uint8)),
        zipped,
        strict=True,
    ):
        data = gzip.compress(idx(array)) if end else idx(array)
        (tmp_path / f"{name}{end}").write_bytes(data)
    path = tmp_path / f"train-images-idx3-ubyte{zipped[0]}"
    X, labels = datasets.images(path, return_labels=True)
    assert np.array_equal(X, IMAGES)
    assert np.array_equal(labels, LABELS)


def test_cifar_batches(tmp_path):
    colours = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    planes = colours.transpose(0, 3, 1, 2).reshape(3, -1)
    ten = np.hstack([np.array([[7], [0], [9]], dtype=np.uint8), planes])
    hundred = np.hstack([np.array([[1, 70], [2, 10], [3, 99]], dtype=np.uint8), planes])
    for name, table, labels in (("ten", ten, [7, 0, 9]), ("hundred", hundred, [70, 10, 99])):
        (tmp_path / f"{name}.bin").write_bytes(table.tobytes())
        X, found = datasets.images(tmp_path / f"{name}.bin", return_labels=True)
        assert np.array_equal(X, colours)
        assert found.tolist() == labels


def test_folders_of_pngs(tmp_path, tmp_path_factory):
    image = pytest.importorskip("PIL.Image")
    for i, picture in enumerate(IMAGES):
        image.fromarray(picture).save(tmp_path / f"{i}.png")
    assert np.array_equal(datasets.images(tmp_path), IMAGES)
    classes = tmp_path_factory.mktemp("classes")
    for label in ("cat", "dog"):
        (classes / label).mkdir(parents=True)
        coloured = np.stack([IMAGES[len(label) - 1]] * 3, axis=-1)
        image.fromarray(coloured).save(classes / label / "1.png")
    X, labels = datasets.images(classes, return_labels=True)
    assert X.shape == (2, 6, 7, 3)
    assert labels.tolist() == ["cat", "dog"]
    (classes / "stray.png").write_bytes(b"")
    with pytest.raises(ValueError, match="one or the other"):
        datasets.images(classes)
    image.fromarray(IMAGES[0, :3]).save(tmp_path / "9.png")
    with pytest.raises(ValueError, match="must be alike"):
        datasets.images(tmp_path)
    (tmp_path / "9.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"9\.png is no readable PNG"):
        datasets.images(tmp_path)


def bad_files():
    npz_of_tables = lambda p: np.savez(p, a=np.zeros((3, 4)))
    return {
        "gone.npy": (None, "no such file"),
        "text.npy": (b"hello, these are no images", "no .npz, .npy, IDX"),
        "empty.npy": (b"", "no .npz"),
        "cut.npy": (lambda p: p.write_bytes(b"\x93NUMPY\x01\x00"), "no readable images"),
        "tables.npz": (npz_of_tables, "expected one array of images"),
        "flat.npy": (lambda p: np.save(p, np.zeros((3, 4))), "shape \\(3, 4\\)"),
        "objects.npy": (
            lambda p: np.save(p, np.array([{}] * 3), allow_pickle=True),
            "no readable images",
        ),
        "complex.npy": (lambda p: np.save(p, np.zeros((3, 4, 4), complex)), "complex128"),
        "short.idx": (idx(IMAGES)[:-1], "announces 210 bytes"),
        "long.idx": (idx(IMAGES) + b"1", "announces 210 bytes"),
        "huge.idx": (struct.pack(">HBB3I", 0, 8, 3, *[2**32 - 1] * 3), "announces 7.9e\\+28"),
        "kind.idx": (struct.pack(">HBB1I", 0, 7, 1, 3) + b"abc", "as IDX files do"),
        "cut.gz": (gzip.compress(idx(IMAGES))[:-9], "no readable images"),
        "odd.bin": (b"1" * 100, "multiples of 3,073"),
    }


@pytest.mark.parametrize("name", bad_files())
def test_bad_files_are_refused_in_words(tmp_path, name):
    content, words = bad_files()[name]
    if callable(content):
        content(tmp_path / name)
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        datasets.images(tmp_path / name)
    assert name in str(caught.value)


def test_empty_folders_and_no_paths(tmp_path):
    with pytest.raises(ValueError, match="no PNG files"):
        datasets.images(tmp_path)
    with pytest.raises(TypeError, match="name of a file"):
        datasets.images(3)


# -- distances


def test_frechet_of_normal_samples_is_the_closed_form():
    A = rng.normal(size=(4, 4))
    S, m = A @ A.T, np.arange(4.0)
    X = rng.multivariate_normal(np.zeros(4), np.eye(4), 200_000)
    Y = rng.multivariate_normal(m, S, 200_000)
    # tr sqrt(S) by eigenvalues: an oracle without a matrix root
    exact = m @ m + 4 + np.trace(S) - 2 * np.sqrt(np.linalg.eigvalsh(S)).sum()
    # sd of a mean: |m| sqrt(lambda_max / n); five of them and as much for the covariance
    bound = (
        10 * (np.linalg.norm(m) * np.sqrt(np.linalg.eigvalsh(S)[-1]) + np.trace(S)) / np.sqrt(2e5)
    )
    assert frechet_distance(X, Y) == pytest.approx(exact, abs=bound)
    assert bound < 0.1 * exact
    assert frechet_distance(X[:100], X[:100]) < 1e-10
    assert frechet_distance(X, Y) == pytest.approx(frechet_distance(Y, X), rel=1e-9)
    assert frechet_distance(X[:500], 2 * X[:500], lambda x: x[:, :1] + 0.0) == pytest.approx(
        X[:500, 0].mean() ** 2 + X[:500, 0].var(ddof=1), rel=1e-9
    )


def test_kernel_distance_is_unbiased_and_its_bar_covers_the_truth():
    # k(x, y) = (x y + 1)^3 for x ~ N(0, 1), y ~ N(1, 1): E k over the moments 0 1 0 3 and 1 2 4
    inside = metrics.kernel_distance
    kernel = __import__("gpukoop").Polynomial(3, 1.0, 1.0)
    x_own, y_own, cross = 1 + 3, 1 + 3 + 3 * 4 + 16, 1 + 3 * 2
    exact = x_own + y_own - 2 * cross
    found = [
        inside(rng.normal(size=(2_000, 1)), rng.normal(size=(2_000, 1)) + 1, kernel=kernel)
        for _ in range(8)
    ]
    values, errors = np.array(found).T
    spread = values.std(ddof=1) / np.sqrt(8)
    assert abs(values.mean() - exact) < 4 * spread
    assert spread < 0.15 * exact
    assert (errors > 0).all()
    same = rng.normal(size=(1_000, 6))
    value, error = kernel_distance(same[:500], same[500:])
    assert abs(value) < 5 * error + 0.05


def pictures(n, kind, seed):
    """Bars that lie or stand somewhere, in noise."""
    r = np.random.default_rng(seed)
    X = 0.2 * r.random((n, 12, 16))
    for x, k, where in zip(X, kind, r.integers(2, 9, n), strict=True):
        x[
            (slice(where, where + 2), slice(None)) if k else (slice(None), slice(where, where + 2))
        ] += 1
    return X


def test_random_convolutions_see_shapes():
    kind = np.arange(400) % 2
    X, other = pictures(400, kind, 1), pictures(400, kind, 2)
    lying = pictures(400, np.ones(400, int), 3)
    same, different = (frechet_distance(Z, X, "convolutions") for Z in (other, lying))
    assert different > 20 * same
    phi = RandomConvolutions().fit(X)
    assert phi.transform(X).shape == (400, phi.n_features_out_) == (400, 128)
    assert np.array_equal(phi.transform(X), RandomConvolutions().fit(X).transform(X))
    assert not np.array_equal(phi.transform(X), RandomConvolutions(1).fit(X).transform(X))
    assert np.abs(phi.transform(np.full((3, 12, 16), 0.3))).max() < 1e-5
    with pytest.raises(ValueError, match="expected \\(12, 16, 1\\) as in fit"):
        phi.transform(np.zeros((2, 12, 12)))


def test_convolutions_against_sums_by_hand():
    from scipy.signal import correlate2d

    X = rng.random((2, 9, 11, 2))
    phi = RandomConvolutions(3).fit(X)
    x = (X - phi.lowest_) / phi.range_
    for layer, side, cells in zip(phi.filters_, (5, 3), ((4, 5), (2, 2)), strict=True):
        w = layer.reshape(side, side, x.shape[3], -1)
        half = side // 2
        padded = np.pad(x, ((0, 0), (half,) * 2, (half,) * 2, (0, 0)), mode="edge")
        y = np.zeros((*x.shape[:3], w.shape[3]))
        for i, c, f in np.ndindex(2, x.shape[3], w.shape[3]):
            y[i, ..., f] += correlate2d(padded[i, ..., c], w[..., c, f], mode="valid")
        cut = [
            np.linspace(0, s, k + 1).astype(int) for s, k in zip(y.shape[1:3], cells, strict=True)
        ]
        x = np.array(
            [
                [[np.abs(p[a:b, c:d]).mean((0, 1)) for c, d in zip(cut[1], cut[1][1:], strict=False)]
                 for a, b in zip(cut[0], cut[0][1:], strict=False)]
                for p in y
            ]
        )  # fmt: skip
    np.testing.assert_allclose(phi.transform(X), x.reshape(2, -1), rtol=2e-5, atol=1e-6)


def test_a_classifier_is_trained_once(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("GPUKOOP_CACHE_DIR", str(tmp_path))
    kind = np.arange(600) % 2
    X, names = pictures(600, kind, 4), np.array(["stands", "lies"])[kind]
    before = torch.random.get_rng_state()
    first = ClassifierFeatures(n_features=16, n_epochs=9).fit(X, names)
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.accuracy_ > 0.9
    assert (first.predict(pictures(50, kind[:50], 5)) == names[:50]).mean() > 0.9
    (file,) = (tmp_path / "classifiers").iterdir()
    written = file.stat().st_mtime_ns
    again = ClassifierFeatures(n_features=16, n_epochs=9).fit(X, names)
    assert file.stat().st_mtime_ns == written
    assert again.accuracy_ == first.accuracy_
    assert np.array_equal(again.transform(X), first.transform(X))
    file.write_bytes(file.read_bytes()[:100])
    anew = ClassifierFeatures(n_features=16, n_epochs=9).fit(X, names)
    np.testing.assert_allclose(anew.transform(X), first.transform(X), rtol=1e-3, atol=1e-4)
    lying = pictures(300, np.ones(300, int), 6)
    assert frechet_distance(lying, X, first) > 20 * frechet_distance(X[:300], X[300:], first)


def test_wrong_features_and_clouds(monkeypatch):
    X = pictures(10, np.arange(10) % 2, 0)
    with pytest.raises(ValueError, match="features='convolutions'"):
        frechet_distance(X, X)
    with pytest.raises(ValueError, match="features is 'inception'"):
        frechet_distance(X, X, "inception")
    with pytest.raises(TypeError, match="features is a int"):
        frechet_distance(X, X, 3)
    with pytest.raises(ValueError, match="3 features and Y 2"):
        frechet_distance(np.zeros((4, 3)), np.ones((4, 2)))
    with pytest.raises(ValueError, match="one class only"):
        ClassifierFeatures().fit(X, np.zeros(10))
    with pytest.raises(ValueError, match="one label an image"):
        ClassifierFeatures().fit(X, np.zeros(3))
    with pytest.raises(ValueError, match="all pixels"):
        RandomConvolutions().fit(np.ones((4, 9, 9)))
    with pytest.raises(ValueError, match="at least 8 x 8"):
        RandomConvolutions().fit(np.zeros((4, 5, 9)) + np.arange(9))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"pip install gpukoop\[torch\]"):
        ClassifierFeatures(cache=False).fit(X, np.arange(10) % 2)


def test_colours_come_last(tmp_path):
    """(n, colours, height, width), as PyTorch has images, is refused in words; the same images with colours last are read."""
    X = np.random.default_rng(0).random((5, 3, 8, 9))
    np.save(tmp_path / "images.npy", X)
    words = r"expected \(n, height, width, colours\): colours come last"
    for read in (
        lambda: gk.metrics.RandomConvolutions().fit(X),
        lambda: gk.Generator(n_iter=1, device="cpu").fit(X),
        lambda: gk.datasets.images(tmp_path / "images.npy"),
    ):
        with pytest.raises(ValueError, match=words):
            read()
    assert gk.metrics.RandomConvolutions().fit(np.moveaxis(X, 1, -1)).shape_ == (8, 9, 3)
