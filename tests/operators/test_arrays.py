"""Arrays in and out: libraries, devices, dtypes, and one clear error for each bad input."""

import array_api_strict
import numpy as np
import pytest
import scipy.sparse
from stand_in import StandIn, cupy  # noqa: F401 - cupy is a fixture

import gpukoop as gk
from gpukoop.arrays import is_cupy, like, namespace, native_array, points, to_host, weights
from gpukoop.testing import tolerance

RNG = np.random.default_rng(0)
X, Y, V = RNG.normal(size=(12, 3)), RNG.normal(size=(7, 3)), RNG.normal(size=7)
KERNEL = gk.Gaussian(1.5)


def every_result(K, v):
    """Return every array that an operator gives back."""
    return [
        K @ v,
        K.gradient(v),
        *K.value_and_gradient(v),
        K.logsumexp(v),
        *K.logsumexp_and_gradient(v),
        K.diagonal(),
        K.to_dense(),
    ]


REFERENCE = every_result(KERNEL(X, Y, backend="numpy"), V)


def test_numpy_in_numpy_out():
    results = every_result(KERNEL(X, Y), V)
    assert all(type(r) is np.ndarray for r in results)
    shapes = [(12,), (12, 3), (12,), (12, 3), (12,), (12,), (12, 3), (7,), (12, 7)]
    assert [r.shape for r in results] == shapes


def test_array_api_strict_in_and_out():
    strict = [array_api_strict.asarray(a) for a in (X, Y, V)]
    results = every_result(KERNEL(strict[0], strict[1], backend="numpy"), strict[2])
    for result, expected in zip(results, REFERENCE, strict=True):
        assert type(result) is type(strict[0])
        # before NumPy 2.1 what came through DLPack is read-only there, and does not go back that way
        assert np.array_equal(np.asarray(result), expected)


def test_torch_in_and_out():
    torch = pytest.importorskip("torch")
    tensors = [torch.from_numpy(a.copy()) for a in (X, Y, V)]
    results = every_result(KERNEL(tensors[0], tensors[1], backend="numpy"), tensors[2])
    for result, expected in zip(results, REFERENCE, strict=True):
        assert isinstance(result, torch.Tensor)
        assert np.array_equal(result.numpy(), expected)
    with pytest.raises(TypeError, match=r"X is a tensor that requires grad.*pass X.detach\(\)"):
        KERNEL(tensors[0].requires_grad_())


def test_results_follow_the_points_not_the_weights():
    strict = array_api_strict.asarray(V)
    assert type(KERNEL(X, Y) @ strict) is np.ndarray
    assert type(KERNEL(array_api_strict.asarray(X), Y) @ V) is type(strict)
    assert type(KERNEL(X, array_api_strict.asarray(Y)) @ V) is np.ndarray


def test_lists_are_numpy():
    result = KERNEL([[0.0, 1.0], [2.0, 3.0]], backend="numpy") @ [1, 2]
    assert type(result) is np.ndarray
    assert result.dtype == float


class Exporter:
    """An array that speaks DLPack and nothing else."""

    def __init__(self, x):
        self.x = x

    def __dlpack__(self, **options):
        return self.x.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.x.__dlpack_device__()


def test_an_exporter_without_a_library_gives_numpy():
    assert type(KERNEL(Exporter(X), Exporter(Y), backend="numpy") @ V) is np.ndarray


def test_an_exporter_that_fails():
    class Broken(Exporter):
        def __dlpack__(self, **options):
            raise BufferError("read only")

    with pytest.raises(
        TypeError, match=r"X \(Broken\) could not be read through DLPack: read only; pass a NumPy"
    ):
        KERNEL(Broken(X))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_follows_the_points(dtype):
    for v in (V, V.astype("float32"), np.arange(7), V > 0):
        results = every_result(KERNEL(X.astype(dtype), Y.astype(dtype)), v)
        assert {r.dtype for r in results} == {np.dtype(dtype)}


def test_of_mixed_dtypes_the_wider_computes():
    assert KERNEL(X.astype("float32"), Y).dtype == float
    assert KERNEL(X, Y.astype("float32")).dtype == float


def layouts(a):
    padded = np.zeros((2 * len(a), *a.shape[1:]), a.dtype)
    padded[::2] = a
    frozen = a.copy()
    frozen.flags.writeable = False
    return {
        "fortran": np.asfortranarray(a),
        "strided": padded[::2],
        "read-only": frozen,
        "reversed": a[::-1].copy()[::-1],
    }


@pytest.mark.parametrize("layout", layouts(X))
@pytest.mark.parametrize("backend", ["numpy", "numba-cpu"])
def test_any_layout(layout, backend):
    K = KERNEL(layouts(X)[layout], layouts(Y)[layout], backend=backend)
    plain = KERNEL(X, Y, backend=backend)
    for result, expected in zip(
        every_result(K, layouts(V)[layout]), every_result(plain, V), strict=True
    ):
        assert np.array_equal(result, expected)
    W = RNG.normal(size=(7, 3))
    assert np.array_equal(K @ layouts(W)[layout], plain @ W)


@pytest.mark.parametrize("backend", ["numpy", "numba-cpu"])
def test_inputs_are_never_modified(backend):
    inputs = [a.copy() for a in (X, Y, V)]
    every_result(KERNEL(inputs[0], inputs[1], backend=backend), inputs[2])
    assert all(np.array_equal(a, b) for a, b in zip(inputs, (X, Y, V), strict=True))


def test_results_are_new_arrays():
    K = KERNEL(X, Y, backend="numba-cpu")
    for first, second in zip(every_result(K, V), every_result(K, 2 * V), strict=True):
        assert not np.shares_memory(first, second)


def with_entry(a, value):
    changed = a.copy()
    changed[3, 1] = value
    return changed


BAD_POINTS = [
    (
        with_entry(X, np.nan),
        ValueError,
        [r"contains NaN or inf, 1 value\(s\)", r"\(3, 1\)", "drop or repair"],
    ),
    (with_entry(X, -np.inf), ValueError, ["contains NaN or inf", r"\(3, 1\)"]),
    (X[:, 0], ValueError, [r"has shape \(12,\), expected \(n, d\)", r"reshape\(-1, 1\)"]),
    (X[None], ValueError, [r"has shape \(1, 12, 3\), expected \(n, d\)"]),
    (3.0, ValueError, [r"has shape \(\), expected \(n, d\)"]),
    (X[:0], ValueError, ["0 sample", "is empty"]),
    (X[:, :0], ValueError, ["0 feature"]),
    (X.astype(str), TypeError, ["has text", "expected numbers in float32 or float64", "Encoder"]),
    (with_entry(X.astype(object), "red"), TypeError, ["holds 'red' in row 3, column 1", "Encoder"]),
    (with_entry(X.astype(object), None), TypeError, ["holds None in row 3", "missing values"]),
    (X.astype("datetime64[s]"), TypeError, ["has dtype datetime64", "dates into times"]),
    (X + 0j, ValueError, ["Complex data not supported", "pass real numbers"]),
    ([[1.0, 2.0], [3.0]], ValueError, ["is not a rectangular array of numbers"]),
    (None, TypeError, ["is None, expected an array"]),
    (
        scipy.sparse.csr_array(X),
        TypeError,
        ["is a sparse matrix, expected a dense array", r"toarray\(\)"],
    ),
    (np.ma.masked_greater(X, 1), TypeError, ["is a masked array", "fill or drop"]),
]


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "float16", "object"])
def test_numbers_of_other_kinds_become_float64(dtype, caplog):
    given = (4 * X).astype(dtype)
    with caplog.at_level("INFO", logger="gpukoop"):
        K = KERNEL(given)
    assert K.dtype == np.float64
    assert np.array_equal(K.X, given.astype(np.float64))
    assert f"X has dtype {dtype}: computed as float64" in caplog.text


@pytest.mark.parametrize("name", ["X", "Y"])
@pytest.mark.parametrize(("value", "error", "words"), BAD_POINTS, ids=range(len(BAD_POINTS)))
def test_bad_points(name, value, error, words):
    if name == "Y" and value is None:
        return  # Y=None means Y = X
    with pytest.raises(error, match=".*".join(words)) as caught:
        KERNEL(*((value,) if name == "X" else (X, value)))
    assert name in str(caught.value).replace("Complex data not supported: ", "").split()[0]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_whole_numbers_that_float64_rounds_are_told_of(dtype):
    X = (np.arange(6) + 2**53).reshape(3, 2).astype(dtype)
    with pytest.warns(UserWarning, match=r"X has whole numbers beyond 2\^53.*subtract a common"):
        points(X, "X")
    assert np.array_equal(points(X - X.min(), "X")[0], np.arange(6.0).reshape(3, 2))
    points(np.array([[2**53]], dtype), "X")  # the last that is exact


def test_features_must_match():
    with pytest.raises(ValueError, match="Y has 2 features, X has 3: both need the same columns"):
        KERNEL(X, Y[:, :2])


BAD_WEIGHTS = [
    (V[:6], ValueError, "has 6 rows, K has 7 columns: pass one weight per source point"),
    (np.ones(12), ValueError, "has 12 rows, K has 7 columns"),
    (np.ones((7, 2, 2)), ValueError, r"has shape \(7, 2, 2\), expected \(7,\) or \(7, t\)"),
    (1.0, ValueError, r"has shape \(\), expected \(7,\)"),
    (np.ones((7, 0)), ValueError, "has no column"),
    (
        np.where(np.arange(7) == 2, np.nan, V),
        ValueError,
        r"contains NaN or inf, 1 value\(s\), the first at index \(2,\)",
    ),
    (np.where(np.arange(7) == 2, np.inf, V), ValueError, "contains NaN or inf"),
    (V.astype(object), TypeError, "has dtype object, expected real numbers"),
    (V + 0j, TypeError, "has dtype complex128, expected real numbers"),
    (["a"] * 7, TypeError, "expected real numbers"),
    ([[1.0], [1.0, 2.0]], ValueError, "is not a rectangular array"),
    (None, TypeError, "is None, expected an array"),
]


@pytest.mark.parametrize(("value", "error", "words"), BAD_WEIGHTS, ids=range(len(BAD_WEIGHTS)))
def test_bad_weights(value, error, words):
    K = KERNEL(X, Y)
    for method in (K.__matmul__, K.matvec, K.gradient, K.value_and_gradient):
        with pytest.raises(error, match=f"^v .*{words}"):
            method(value)


def test_bad_logarithms():
    K = KERNEL(X, Y)
    for method in (K.logsumexp, K.logsumexp_and_gradient):
        for bad in (V[:6], np.ones((7, 1)), np.full(7, np.inf), np.full(7, np.nan), 0.0):
            with pytest.raises(ValueError, match=r"^b "):
                method(bad)
    with pytest.raises(ValueError, match=r"needs a positive kernel.*use K @ v"):
        gk.Energy()(X, Y).logsumexp(V)


def test_weights_beyond_the_range_of_the_points():
    K = KERNEL(X.astype(np.float32), Y.astype(np.float32))
    with pytest.raises(ValueError, match=r"^v has values beyond the range of float32"):
        K @ np.full(len(Y), 1e300)
    with pytest.raises(ValueError, match=r"^b has values beyond the range of float32"):
        K.logsumexp(np.full(len(Y), -1e300))
    assert np.isneginf(K.logsumexp(np.full(len(Y), -np.inf))).all()


def test_the_order_of_bytes_does_not_matter():
    for swapped in (X.astype(">f8"), X.astype("<f8")):
        K = KERNEL(swapped)
        assert K.dtype == np.float64
        assert (K @ np.ones(len(X)) == KERNEL(X) @ np.ones(len(X))).all()


@pytest.mark.parametrize("scale", [1e-310, 1e-160, 1e160, 1e300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scales_that_arithmetic_cannot_hold(scale, dtype):
    for kernel in (gk.Gaussian(scale), gk.Gaussian(1.0) + gk.Laplace(scale)):
        with pytest.raises(ValueError, match=f"in {np.dtype(dtype)} scales must lie between"):
            kernel(X.astype(dtype))


def test_scales_of_a_sum_too_far_apart():
    kernel = gk.Gaussian(1.0) + gk.Gaussian(1e-20)
    assert np.isfinite(kernel(X) @ np.ones(len(X))).all()
    with pytest.raises(ValueError, match="within a factor 2e\\+19"):
        kernel(X.astype(np.float32))


@pytest.mark.parametrize("tol", [0, 1, -1e-3, np.nan, "1e-3", True, np.inf])
def test_bad_tol(tol):
    with pytest.raises(
        ValueError, match=r"tol must be None \(rounding accuracy\) or a number in \(0, 1\), got"
    ):
        KERNEL(X, tol=tol)


def test_named_scales_of_bad_points():
    for Z in (np.ones((5, 2)), np.ones((1, 2))):
        with pytest.raises(ValueError, match="scale='median' needs points that differ"):
            gk.Gaussian("median")(Z)


def test_a_kernel_that_is_none():
    with pytest.raises(TypeError, match="expected a kernel such as"):
        gk.KernelOperator("gaussian", X)


def test_stand_in_for_cupy(cupy):  # noqa: F811
    x, y, v = map(StandIn, (X, Y, V))
    with pytest.raises(TypeError, match="Unsupported type"):
        x + X
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(x)
    assert is_cupy(x)
    assert namespace(x) is cupy
    assert native_array(x, "X")[1].library == "cupy"
    assert points(x, "X")[1].device == "cuda:0"
    assert type(to_host(x)) is np.ndarray
    assert type(like(X, x)) is StandIn
    assert type(weights(V, "v", 7, x)) is StandIn
    results = every_result(KERNEL(x, y, backend="numpy"), v)
    assert {type(r) for r in results} == {StandIn}
    K, bounds = KERNEL(x, y, backend="numpy"), tolerance(KERNEL, X, Y, V, "value_and_gradient")
    for result, expected, bound in zip(
        K.value_and_gradient(v), REFERENCE[2:4], bounds, strict=True
    ):
        assert (abs(result.get() - expected) <= 2 * bound).all()


def test_stand_in_for_cupy_dispatch(cupy):  # noqa: F811
    x = StandIn(X)
    with pytest.raises(
        gk.BackendError, match=r"float64, cupy on cuda:0\):[^$]*the points are on a GPU: move them"
    ):
        KERNEL(x, backend="numba-cpu") @ np.ones(12)
    with pytest.raises(ValueError, match="X is on cuda:0 and Y on cpu: move one of them first"):
        KERNEL(x, Y)
    assert gk.Gaussian("median")(x).kernel == gk.Gaussian("median")(X).kernel
    with pytest.raises(ValueError, match=r"X contains NaN or inf.*\(3, 1\)"):
        KERNEL(StandIn(with_entry(X, np.nan)))
