"""Autograd over the fused sums: gradcheck in float64, values of gpukoop.metrics, a training loop, and words without torch."""

import subprocess
import sys

import numpy as np
import pytest

import gpukoop as gk
from gpukoop import metrics

torch = pytest.importorskip("torch", reason="torch is not installed: pip install gpukoop[torch]")

KERNELS = {
    "gaussian": gk.Gaussian(0.8),
    "laplace": gk.Laplace(1.3),
    "matern52": gk.Matern52(0.9),
    "rational": gk.RationalQuadratic(0.7, 1.5),
    "energy": gk.Energy(),
    "sum": gk.Gaussian(0.5) + 0.3 * gk.Matern32(2.0),
}


def tensors(*shapes, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    found = [
        torch.randn(shape, generator=generator, dtype=torch.float64) + shift for shape in shapes
    ]
    return [a.requires_grad_() for a in found]


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("t", [None, 2])
def test_product_gradcheck(name, t):
    X, Y, v = tensors((5, 3), (4, 3), (4,) if t is None else (4, t))
    assert torch.autograd.gradcheck(lambda *a: gk.torch.product(KERNELS[name], *a), (X, Y, v))


@pytest.mark.parametrize("name", ["gaussian", "laplace", "matern52", "rational"])
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_product_gradcheck_in_the_scale(name, shift):
    X, Y, v = tensors((5, 3), (4, 3), (4,), shift=shift)
    scale = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda s: 2.5 * gk.torch.product(KERNELS[name], X, Y, v, scale=s), (scale,)
    )


def test_one_cloud_and_mixed_needs():
    X, v = tensors((6, 2), (6,))
    kernel = gk.Gaussian(0.8)
    assert torch.autograd.gradcheck(lambda X, v: gk.torch.product(kernel, X, X, v), (X, v))
    frozen = X.detach()
    (slope,) = torch.autograd.grad(gk.torch.product(kernel, frozen, frozen, v).sum(), v)
    want = torch.exp(-(torch.cdist(frozen, frozen) ** 2) / (2 * 0.8**2)).sum(0)
    assert torch.allclose(slope, want, rtol=1e-12)


@pytest.mark.parametrize("name", KERNELS)
def test_mmd_gradcheck_and_value(name):
    X, Y = tensors((6, 2), (5, 2))
    kernel = KERNELS[name]
    assert torch.autograd.gradcheck(lambda *a: gk.torch.mmd(*a, kernel), (X, Y))
    assert torch.autograd.gradcheck(lambda *a: gk.torch.mmd(*a, kernel, squared=True), (X, Y))
    want = metrics.mmd(X.detach().numpy(), Y.detach().numpy(), kernel)
    assert gk.torch.mmd(X, Y, kernel).item() == pytest.approx(want, rel=1e-10)


def test_energy_distance_gradcheck_and_value():
    X, Y = tensors((6, 2), (5, 2))
    assert torch.autograd.gradcheck(gk.torch.energy_distance, (X, Y))
    want = metrics.energy_distance(X.detach().numpy(), Y.detach().numpy())
    assert gk.torch.energy_distance(X, Y).item() == pytest.approx(want, rel=1e-10)


def test_sinkhorn_divergence_gradcheck_and_value():
    X, Y = tensors((6, 2), (5, 2))
    how = {"blur": 0.7, "tol": 1e-13, "n_iter": 5_000}
    # central differences of step 1e-4: h^2 times the third derivative, and the solver's 1e-13 over h
    assert torch.autograd.gradcheck(
        lambda *a: gk.torch.sinkhorn_divergence(*a, **how), (X, Y), eps=1e-4, atol=1e-6, rtol=1e-5
    )
    want = metrics.sinkhorn_divergence(X.detach().numpy(), Y.detach().numpy(), **how)
    assert gk.torch.sinkhorn_divergence(X, Y, **how).item() == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("m", [6, 9])
def test_sliced_wasserstein_gradcheck_and_value(m):
    X, Y = tensors((6, 2), (m, 2))
    assert torch.autograd.gradcheck(lambda *a: gk.torch.sliced_wasserstein(*a), (X, Y))
    want = metrics.sliced_wasserstein(X.detach().numpy(), Y.detach().numpy())
    assert gk.torch.sliced_wasserstein(X, Y).item() == pytest.approx(want, rel=1e-12)


def test_equal_clouds_have_finite_gradients():
    (X,) = tensors((8, 2))
    for distance in (
        gk.torch.mmd,
        gk.torch.energy_distance,
        gk.torch.sliced_wasserstein,
        lambda X, Y: gk.torch.sinkhorn_divergence(X, Y, blur=0.5),
    ):
        (slope,) = torch.autograd.grad(distance(X, X.detach().clone()), X)
        assert torch.isfinite(slope).all()


def test_what_needs_no_gradient_costs_none(monkeypatch):
    asked = []
    original = gk.KernelOperator.value_and_gradient
    monkeypatch.setattr(
        gk.KernelOperator,
        "value_and_gradient",
        lambda K, v: asked.append(K.shape) or original(K, v),
    )
    X, Y = tensors((6, 2), (5, 2))
    gk.torch.mmd(X, Y.detach(), gk.Gaussian(1.0)).backward()
    assert sorted(asked) == [(6, 5), (6, 6)]  # nothing towards Y
    assert Y.grad is None


def test_a_network_learns_a_law():
    """A linear generator z -> A z + b reaches mean and covariance of a Gaussian by plain MMD training."""
    rng = np.random.default_rng(0)
    L, shift = np.array([[1.0, 0.0], [0.6, 0.5]]), np.array([1.0, -0.5])
    data = torch.as_tensor(rng.standard_normal((2_000, 2)) @ L.T + shift, dtype=torch.float32)
    net = torch.nn.Linear(2, 2)
    torch.manual_seed(0)
    with torch.no_grad():
        net.weight.copy_(torch.eye(2))
        net.bias.zero_()
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    latent = torch.as_tensor(rng.standard_normal((1_000, 2)), dtype=torch.float32)
    for _ in range(150):
        optimizer.zero_grad()
        gk.torch.mmd(net(latent), data[:1_000], gk.Gaussian(1.0), squared=True).backward()
        optimizer.step()
    end = net(latent).detach().numpy()
    # two sets of 1,000: their means differ by some 1/sqrt(1,000) * sqrt(2) = .045 each
    assert np.abs(end.mean(0) - shift).max() < 3 * 0.045
    assert np.abs(np.cov(end.T) - L @ L.T).max() < 0.2


def test_float32_and_dtype():
    X, Y = (a.detach().float().requires_grad_() for a in tensors((6, 2), (5, 2)))
    value = gk.torch.mmd(X, Y, gk.Gaussian(1.0))
    value.backward()
    assert value.dtype == X.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda X: gk.torch.mmd(X.detach().numpy(), X), TypeError, "expected a torch.Tensor"),
        (lambda X: gk.torch.mmd(X, X[:, :1]), ValueError, "X has 2 features and Y 1"),
        (lambda X: gk.torch.mmd(X, X.float()), ValueError, "move one with Y.to"),
        (lambda X: gk.torch.energy_distance(X[0], X), ValueError, "one row a point"),
        (lambda X: gk.torch.energy_distance(X.long(), X), TypeError, "float32 or float64"),
        (
            lambda X: gk.torch.product(KERNELS["sum"], X, X, X[:, 0], scale=torch.tensor(1.0)),
            ValueError,
            "has 2 scales",
        ),
        (
            lambda X: gk.torch.product(KERNELS["energy"], X, X, X[:, 0], scale=torch.tensor(1.0)),
            ValueError,
            "has no scale",
        ),
        (
            lambda X: gk.torch.product(KERNELS["gaussian"], X, X, X[:, 0], scale=1.0),
            TypeError,
            "a tensor with one element",
        ),
        (lambda X: gk.torch.sinkhorn_divergence(X, X, blur=-1.0), ValueError, "blur"),
    ],
)
def test_bad_input_is_one_sentence(call, error, words):
    (X,) = tensors((4, 2))
    with pytest.raises(error, match=words):
        call(X)


def test_second_derivatives_are_refused():
    (X,) = tensors((4, 2))
    value = gk.torch.mmd(X, X.detach() + 1, gk.Gaussian(1.0))
    (slope,) = torch.autograd.grad(value, X, create_graph=True)
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        torch.autograd.grad(slope.sum(), X)


def test_without_torch_the_room_imports_and_says_what_to_install():
    code = """if True:
        import sys

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "torch":
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Blocker())
        import gpukoop as gk, numpy as np
        try:
            gk.torch.mmd(np.ones((2, 2)), np.ones((2, 2)))
        except ImportError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install gpukoop[torch]" in done.stdout


def test_mmd_of_batches_in_many_dimensions_by_products(monkeypatch):
    """Value and gradient by products of matrices against fused sums in float64, in several blocks; and when they are not taken."""
    from gpukoop.flow import groups

    rng = np.random.default_rng(7)
    X, Y = (
        torch.as_tensor(rng.normal(size=(600, 80)) + shift, dtype=torch.float32)
        for shift in (30.0, 30.2)
    )
    kernel = gk.Gaussian(9.0) + 0.5 * gk.Gaussian(4.0)
    calls = []
    way = groups.mmd
    monkeypatch.setattr(groups, "mmd", lambda *a, **k: calls.append(1) or way(*a, **k))

    def gradient(X, Y, kernel=kernel):
        X = X.clone().requires_grad_()
        value = gk.torch.mmd(X, Y, kernel, squared=True)
        return float(value.detach()), torch.autograd.grad(value, X)[0].double()

    value, slope = gradient(X, Y)
    assert len(calls) == 1
    exact, exact_slope = gradient(X.double(), Y.double())
    assert len(calls) == 1
    assert value == pytest.approx(exact, rel=2e-4)
    assert (slope - exact_slope).abs().max() < 1e-4 * exact_slope.abs().max()
    # many scales away, another kernel, other sizes: fused sums of differences
    gradient(X[:40], Y[:40], gk.Gaussian(0.5))
    gradient(X[:40], Y[:40], gk.Laplace(9.0))
    gradient(X[:40], Y[:41])
    gradient(X[:40, :3], Y[:40, :3])
    assert len(calls) == 1


def test_gradients_of_gradients_are_refused_and_no_constants():
    """A penalty on gradients would otherwise have no effect and say nothing: PyTorch lets a constant upstream pass."""
    x, y = tensors((6, 3), (5, 3))
    sums = {
        "energy": lambda x: gk.torch.energy_distance(x, y),
        "mmd": lambda x: gk.torch.mmd(x, y, gk.Gaussian(1.0), squared=True),
        "sinkhorn": lambda x: gk.torch.sinkhorn_divergence(x, y, blur=0.5),
        "product": lambda x: gk.torch.product(gk.Gaussian(1.0), x, y, torch.ones(5).to(y)).sum(),
    }
    for name, value in sums.items():
        z = x.detach().clone().requires_grad_()
        (once,) = torch.autograd.grad(value(z), z)
        (slope,) = torch.autograd.grad(value(z), z, create_graph=True)
        assert torch.equal(slope, once), name
        with pytest.raises(RuntimeError, match="first derivatives only"):
            ((slope.norm(dim=1) - 1) ** 2).sum().backward()


def test_tensors_that_are_not_in_memory():
    (x,) = tensors((6, 3))
    for bad, words in ((x.detach().to_sparse(), "sparse"), (x.detach().to("meta"), "on meta")):
        for distance in (gk.torch.energy_distance, gk.torch.sliced_wasserstein):
            with pytest.raises(TypeError, match=words):
                distance(bad, bad)
