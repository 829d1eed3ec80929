"""Velocities of all classes at once against the sums over pairs of one class after another."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from gpukoop.generators import toward  # noqa: E402
from gpukoop.generators.objectives import choices  # noqa: E402

rng = np.random.default_rng(0)


def batch(sizes, d, shift=0.0):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    rng.shuffle(labels)
    centres = rng.normal(size=(len(sizes), d))
    X = centres[labels] + rng.normal(size=(len(labels), d)) + shift
    Z = X[rng.permutation(len(X))] * 1.3 + rng.normal(size=d) / 2
    return Z.astype(np.float32), X.astype(np.float32), labels


def both(objective, Z, X, labels, monkeypatch, **given):
    """Return velocity and energy by groups, and by sums over one class after another."""
    classes = torch.as_tensor(np.eye(labels.max() + 1, dtype=np.float32)[labels])
    chosen = choices(X, objective, None, given.get("blur"), 1e-2, None)
    ask = lambda: toward.toward(
        objective, chosen, None, torch.as_tensor(X), classes, np.random.default_rng(0), None
    )(torch.as_tensor(Z), 0)
    calls = []
    way = toward.grouped
    monkeypatch.setattr(toward, "grouped", lambda *a: calls.append(way(*a)) or calls[-1])
    quick = ask()
    assert calls[-1] is not None
    monkeypatch.setattr(toward, "grouped", lambda *a: None)
    slow = ask()
    return (quick[0].numpy(), quick[1]), (slow[0].numpy(), slow[1])


@pytest.mark.parametrize("objective", ["mmd", "energy", "drift"])
@pytest.mark.parametrize(("sizes", "d"), [((17,), 2), ((5, 9, 1, 30), 3), ((40, 41), 60)])
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_kernel_velocities(objective, sizes, d, shift, monkeypatch):
    Z, X, labels = batch(sizes, d, shift)
    (v, e), (exact, energy) = both(objective, Z, X, labels, monkeypatch)
    width = np.abs(exact).max()
    # |z - x|^2 by products of matrices in float32: rounding of |z|^2, relative to the square of the smallest scale
    np.testing.assert_allclose(v, exact, atol=3e-3 * width)
    assert e == pytest.approx(energy, rel=2e-3, abs=2e-4 * float(width))


@pytest.mark.parametrize(("sizes", "d"), [((17,), 2), ((5, 9, 2, 30), 3), ((40, 41), 60)])
def test_sinkhorn_velocities(sizes, d, monkeypatch):
    Z, X, labels = batch(sizes, d)
    blur = 0.4 * float(np.sqrt(X.var(axis=0).sum()))
    (v, e), (exact, energy) = both("sinkhorn", Z, X, labels, monkeypatch, blur=blur)
    # both stop at a marginal error of about a per cent (SINKHORN_TOL)
    np.testing.assert_allclose(v, exact, atol=5e-2 * np.abs(exact).max())
    assert e == pytest.approx(energy, rel=3e-2)


def test_equal_clouds_stand_still(monkeypatch):
    _, X, labels = batch((6, 11), 4)
    for objective in ("mmd", "energy", "sinkhorn"):
        (v, e), _ = both(objective, X, X, labels, monkeypatch)
        assert np.abs(v).max() < 1e-5
        assert abs(e) < 1e-4


def test_large_batches_and_a_chosen_backend_are_left_to_sums():
    X = np.zeros((3_000, 1), np.float32) + np.arange(3_000)[:, None]
    one = np.zeros(3_000, int)
    assert toward.grouped("mmd", choices(X, "mmd", None, None, 1e-2, None), X, one) is None
    few = X[:50], one[:50]
    assert toward.grouped("mmd", choices(X, "mmd", None, None, 1e-2, "numpy"), *few) is None
    assert toward.grouped("w2", choices(X, "w2", None, None, 1e-2, None), *few) is None
    assert toward.grouped("mmd", choices(X, "mmd", None, None, 1e-2, None), *few) is not None
