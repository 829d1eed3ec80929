"""A whole warm call of an operator on CuPy arrays, from ``K @ v`` to the launches: what it asks of the device and of the host."""

import sys

import numpy as np
import pytest
from device_counter import counted_device, counted_sums, recorded_launches

import gpukoop as gk
from gpukoop import alarm
from gpukoop.kernels.cuda import functions, program

CUDA = "numba-cuda"


@pytest.fixture
def device():
    with recorded_launches() as found:
        yield found


@pytest.fixture
def cupy():
    with counted_device() as module, counted_sums():
        yield module


def warm(cupy, d=3, t=1, n=300, m=400, dtype="float32", kernel=None):
    rng = np.random.default_rng(0)
    X, Y, V = (cupy.asarray(rng.normal(size=s).astype(dtype)) for s in ((n, d), (m, d), (m, t)))
    K = (kernel or gk.Gaussian(1.0))(X, Y, backend=CUDA)
    return K, V[:, 0] if t == 1 else V


CALLS = {
    "product": lambda K, v: K @ v,
    "gradient": lambda K, v: K.gradient(v),
    "value_and_gradient": lambda K, v: K.value_and_gradient(v),
    "logsumexp": lambda K, v: K.logsumexp(v),
    "logsumexp_and_gradient": lambda K, v: K.logsumexp_and_gradient(v),
}


@pytest.mark.parametrize("op", CALLS)
def test_a_warm_call_is_one_launch_beside_its_own_and_nothing_else(op, device):
    cupy, launches = device
    K, v = warm(cupy)
    CALLS[op](K, v)
    launches.clear()
    with cupy.counting() as count:
        CALLS[op](K, v)
    assert (count.syncs, count.copies) == (0, 0), str(count)
    assert count.calls == {"outside": 1}  # the look at the weights
    assert 1 <= len(launches) <= 4
    assert not any("points" in name for name, *_ in launches)


@pytest.mark.parametrize(
    ("make", "beside"),
    [
        (lambda cupy, v: v.astype("float64"), {"outside": 1, "astype": 1}),
        (lambda cupy, v: cupy.stack([v, v], axis=1)[:, 1], {"outside": 1, "copy": 1}),
    ],
    ids=["of another dtype", "a strided column"],
)
def test_weights_that_must_be_moved_cost_one_launch_more(make, beside, device):
    cupy, _ = device
    K, v = warm(cupy)
    v = make(cupy, v)
    _ = K @ v
    with cupy.counting() as count:
        _ = K @ v
    assert (count.syncs, count.copies) == (0, 0), str(count)
    assert sum(count.calls.values()) <= 3
    assert count.calls["outside"] == 1


@pytest.mark.parametrize("op", CALLS)
@pytest.mark.parametrize("where", ["host", "device"])
def test_one_scale_a_feature_is_copied_once_and_not_a_call(where, op, device):
    """The clouds were divided when the operator was made; what slopes are divided by lies on the device since the first call."""
    cupy, _ = device
    scale = np.array([0.7, 9.0, 0.2])
    K, v = warm(cupy, kernel=gk.Gaussian(scale if where == "host" else cupy.asarray(scale)))
    CALLS[op](K, v)
    with cupy.counting() as count:
        CALLS[op](K, v)
    assert (count.syncs, count.copies) == (0, 0), str(count)
    assert count.calls["outside"] == 1
    slopes = 1 if "gradient" in op else 0
    # One division of slopes, which are features by features of one array; products and log-sum-exps do without.
    assert sum(count.calls.values()) <= 1 + slopes, str(count)


def test_no_text_is_written_on_a_warm_call(device, monkeypatch):
    cupy, _ = device
    K, v = warm(cupy)
    for call in CALLS.values():
        call(K, v)

    def written(*_):
        raise AssertionError("a warm call wrote text")

    for owner, name in (
        (functions.Functions, "build"),
        (functions.CudaPrinter, "print"),
        (program.Program, "build"),
    ):
        monkeypatch.setattr(owner, name, written)
    monkeypatch.setattr(program, "compile_ptx", written)
    for call in CALLS.values():
        call(K, v)
    with pytest.raises(AssertionError, match="wrote text"):  # the writer is what these tests patch
        functions.CudaPrinter({}).print(None)


def test_a_warm_product_is_few_function_calls(device):
    """Python calls from the operator down to the launches: what the host pays, without a clock."""
    cupy, _ = device
    K, v = warm(cupy, n=1000, m=1000)
    _ = K @ v
    calls = 0

    def profile(frame, event, _):
        nonlocal calls
        calls += event == "call" and "device_counter" not in frame.f_code.co_filename

    sys.setprofile(profile)
    try:
        _ = K @ v
    finally:
        sys.setprofile(None)
    assert calls <= 64, calls


# -- weights that are not finite ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("op", ["product", "gradient", "value_and_gradient"])
def test_a_bad_weight_is_an_error_of_the_call_where_the_device_is_done(op, bad, cupy):
    K, v = warm(cupy)
    CALLS[op](K, v)
    v[7] = bad
    with pytest.raises(ValueError, match=r"v contains NaN or inf.*shape \(400,\)"):
        CALLS[op](K, v)
    v[7] = 1.0
    CALLS[op](K, v)  # heard once


def test_log_weights_may_be_minus_infinity_and_nothing_else(cupy):
    K, b = warm(cupy)
    b[3] = -np.inf
    assert np.isfinite(K.logsumexp(b).get()).all()
    for bad in (np.nan, np.inf):
        b[4] = bad
        with pytest.raises(ValueError, match="b contains NaN or inf"):
            K.logsumexp(b)


def test_weights_beyond_the_range_of_the_points_are_found(cupy):
    K, v = warm(cupy)
    wide = v.astype("float64")
    wide[5] = 1e39
    with pytest.raises(ValueError, match="beyond the range of float32"):
        _ = K @ wide
    wide[5] = 1e38
    _ = K @ wide


class Late:
    """A device that looks at arrays when it is told to: launches wait in a queue."""

    def __init__(self, monkeypatch):
        self.queue, real = [], alarm._outside

        def queued(cupy, dtype):
            look, *rest = real(cupy, dtype)
            return lambda *args: self.queue.append((look, args)), *rest

        monkeypatch.setattr(alarm, "_outside", queued)

    def work(self):
        while self.queue:
            look, args = self.queue.pop(0)
            look(*args)


def test_a_busy_device_is_heard_at_the_next_call_of_any_operator(cupy, monkeypatch):
    late = Late(monkeypatch)
    K, v = warm(cupy)
    other, w = warm(cupy, d=2, m=70)
    bad = v.copy()
    bad[0] = np.nan
    result = K @ bad
    assert np.isnan(result.get()).all()  # nothing is silent before: no target escapes
    _ = other @ w
    late.work()
    with pytest.raises(ValueError, match=r"v contains NaN or inf.*\(400,\)"):
        _ = other @ w
    late.work()
    _ = other @ w


def test_a_busy_device_is_heard_when_the_host_has_waited(cupy, monkeypatch):
    from gpukoop.arrays import to_host

    late = Late(monkeypatch)
    K, v = warm(cupy)
    bad = v.copy()
    bad[0] = np.nan
    result = K @ bad
    late.work()  # done before the result is
    with pytest.raises(ValueError, match="v contains NaN or inf"):
        to_host(result)


def test_only_the_first_thread_raises(cupy, monkeypatch):
    late = Late(monkeypatch)
    K, v = warm(cupy)
    v[0] = np.nan
    _ = K @ v
    late.work()
    with pytest.raises(ValueError, match="v contains"):
        alarm.listen()
    alarm.listen()


def test_weights_on_the_host_are_refused_before_anything_is_queued(cupy):
    K, v = warm(cupy)
    host = v.get()
    host[2] = np.nan
    with cupy.counting() as count, pytest.raises(ValueError, match="the first at index"):
        _ = K @ host
    assert (count.kernels, count.sums) == (0, 0)


def test_the_look_costs_one_launch_at_any_size(cupy):
    for n in (1, 10, 300_000):
        x = cupy.asarray(np.ones(n, "float32"))
        with cupy.counting() as count:
            alarm.watch(x, "x")
        assert (count.kernels, count.syncs, count.copies) == (1, 0, 0)
