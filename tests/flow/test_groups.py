"""Velocities of all classes at once against the sums over pairs of one class after another."""

import numpy as np
import pytest
from scipy.special import logsumexp, softmax

torch = pytest.importorskip("torch")

from gpukoop.flow import groups  # noqa: E402
from gpukoop.generators import toward  # noqa: E402
from gpukoop.generators.objectives import choices  # noqa: E402

GROUPED = toward.grouped


def batch(sizes, d, shift=0.0):
    rng = np.random.default_rng([*sizes, d])
    labels = np.repeat(np.arange(len(sizes)), sizes)
    rng.shuffle(labels)
    centres = rng.normal(size=(len(sizes), d))
    X = centres[labels] + rng.normal(size=(len(labels), d)) + shift
    Z = X[rng.permutation(len(X))] * 1.3 + rng.normal(size=d) / 2
    return Z.astype(np.float32), X.astype(np.float32), labels


def both(objective, Z, X, labels, monkeypatch, **given):
    """Return velocity and energy by groups, and by sums in float64 over one class after another."""
    classes = torch.as_tensor(np.eye(labels.max() + 1, dtype=np.float32)[labels])
    chosen = choices(X, None, given.get("blur"), 1e-2, None)
    ask = lambda dtype: toward.toward(
        objective,
        chosen,
        None,
        torch.as_tensor(X, dtype=dtype),
        classes,
        np.random.default_rng(0),
        None,
    )(torch.as_tensor(Z, dtype=dtype), 0)
    calls = []
    monkeypatch.setattr(toward, "grouped", lambda *a: calls.append(GROUPED(*a)) or calls[-1])
    quick = ask(torch.float32)
    assert calls[-1] is not None
    monkeypatch.setattr(toward, "grouped", lambda *a: None)
    slow = ask(torch.float64)
    return (quick[0].numpy(), quick[1]), (slow[0].numpy(), slow[1])


@pytest.mark.parametrize("objective", ["mmd", "energy"])
@pytest.mark.parametrize(
    ("sizes", "d"), [((17,), 2), ((5, 9, 1, 30), 3), ((40, 41), 60), ((530, 270), 6)]
)
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_kernel_velocities(objective, sizes, d, shift, monkeypatch):
    Z, X, labels = batch(sizes, d, shift)
    (v, e), (exact, energy) = both(objective, Z, X, labels, monkeypatch)
    width = np.abs(exact).max()
    # |z - x|^2 by products of matrices in float32: rounding of |z|^2, relative to the square of the smallest scale
    np.testing.assert_allclose(v, exact, atol=3e-3 * width)
    assert e == pytest.approx(energy, rel=2e-3, abs=2e-4 * float(width))


@pytest.mark.parametrize(("sizes", "d"), [((17,), 2), ((5, 9, 1, 30), 3), ((40, 41), 60)])
def test_drift_by_hand(sizes, d):
    """A particle far from all others is still repelled by them: logarithms, where fused sums see only what it weighs itself."""
    Z, X, labels = batch(sizes, d)
    chosen = choices(X, None, None, 1e-2, None)
    v, energy = GROUPED("drift", chosen, X, labels)(Z)
    exact, gaps = np.zeros(Z.shape), np.zeros(len(Z))
    for i, z in enumerate(Z.astype(float)):
        own = [j for j in np.flatnonzero(labels == labels[i]) if j != i]
        there = X[labels == labels[i]].astype(float)
        for s in chosen.scales:
            at_x = -((z - there) ** 2).sum(axis=1) / (2 * s * s)
            at_z = -((z - Z[own].astype(float)) ** 2).sum(axis=1) / (2 * s * s)
            pull = softmax(at_x) @ there - z
            push = softmax(at_z) @ Z[own] - z if own else 0.0
            exact[i] += (pull - push) / len(chosen.scales)
            log_q = logsumexp(at_z) - np.log(len(own)) if own else 0.0
            gaps[i] += (log_q - logsumexp(at_x) + np.log(len(there))) / len(chosen.scales)
    # shares are exponentials of squares over 2 s^2, s a twentieth of the width: rounding of float32 times some hundred
    np.testing.assert_allclose(v, exact, atol=1e-2 * np.abs(exact).max())
    assert energy == pytest.approx(gaps.mean(), rel=1e-3)


def transported(Z, X, blur, n_iter=500):
    """Return barycentres and value of entropic transport by plain iterations in float64."""
    eps, C = blur**2, ((Z[:, None] - X) ** 2).sum(axis=2) / 2
    if X is Z and len(Z) > 1:
        np.fill_diagonal(C, np.inf)  # nobody is transported to itself
    g = np.zeros(len(X))
    for _ in range(n_iter):
        f = -eps * logsumexp((g - C) / eps - np.log(len(X)), axis=1)
        g = -eps * logsumexp((f[:, None] - C) / eps - np.log(len(Z)), axis=0)
    return softmax((g - C) / eps, axis=1) @ X, f.mean() + g.mean()


@pytest.mark.parametrize(("sizes", "d"), [((17,), 40), ((5, 9, 2, 30), 50), ((20, 31), 60)])
@pytest.mark.parametrize(("final", "error"), [(None, 0.15), (600, 2e-3)])
def test_sinkhorn_velocities(sizes, d, final, error, monkeypatch):
    """As many steps as training takes leave the first error, many leave rounding."""
    Z, X, labels = batch(sizes, d)
    if final is not None:
        monkeypatch.setattr(groups, "FINAL", final)
    blur = 0.4 * float(np.sqrt(X.var(axis=0).sum()))
    v, energy = GROUPED("sinkhorn", choices(X, None, blur, 1e-2, None), X, labels)(Z)
    exact, total = np.zeros(Z.shape), 0.0
    for c in range(len(sizes)):
        z, x = (cloud[labels == c].astype(float) for cloud in (Z, X))
        (to_x, zx), (to_z, zz) = (transported(*pair, blur) for pair in ((z, x), (z, z)))
        exact[labels == c] = to_x - to_z
        total += (zx - zz / 2) * len(z) / len(Z)
    np.testing.assert_allclose(v, exact, atol=error * np.abs(exact).max())
    assert energy == pytest.approx(total, rel=error / 4)


def test_equal_clouds_stand_still(monkeypatch):
    """Where particles see themselves; in a training they do not, and stand still on average."""
    _, X, labels = batch((6, 11), 4)
    where = groups.Groups(labels)
    at, a = X[where.rows], where.a
    flows = (
        lambda z: groups.mmd(z, at, a, (1.0,), (1.0,)),
        lambda z: groups.mmd(z, at, a, (), ()),
        lambda z: groups.sinkhorn(z, at, a, 0.15),
    )
    for flow in flows:
        # a distance of zero is rounding, sqrt(eps) |z|, where it is a product of matrices: a share of 1/6 of a unit vector of it
        assert np.abs(flow(at.copy()).velocity[where.mask]).max() < 6e-5 * np.abs(X).max()


def test_what_samples_have_among_themselves_is_summed_once_a_batch(monkeypatch):
    """The same energy as where it is summed anew, and one sum for all questions."""
    Z, X, labels = batch((6, 11), 4)
    where = groups.Groups(labels)
    x, a = X[where.rows], where.a
    for mixture in (((1.0, 0.3), (1.0, 2.0)), ((), ())):
        own = groups.among(x, a, *mixture)
        for c in range(2):
            y = x[c, where.mask[c]].astype(float)
            r = np.linalg.norm(y[:, None] - y, axis=2)
            k = -r if not mixture[0] else np.exp(-(r**2) / 2) + 2 * np.exp(-(r**2) / 0.18)
            assert own[c] == pytest.approx(k.mean(), rel=1e-5)
        z = Z[where.rows]
        anew, known = (groups.mmd(z, x, a, *mixture, given) for given in (None, own))
        np.testing.assert_array_equal(anew.energy, known.energy)
    calls, among = [], groups.among
    monkeypatch.setattr(groups, "among", lambda *given: calls.append(1) or among(*given))
    velocity = GROUPED("energy", choices(X, None, None, 1e-2, None), X, labels)
    assert len({velocity(Z)[1] for _ in range(3)}) == 1
    assert len(calls) == 1


@pytest.mark.parametrize("objective", ["mmd", "energy", "sinkhorn"])
def test_batches_of_one_law_stand_still_on_average(objective):
    """Four particles of a law in 40 dimensions, seen by themselves, contract; left out, the mean over batches is zero."""
    rng = np.random.default_rng(0)
    chosen = choices(rng.normal(size=(500, 40)).astype(np.float32), None, 6.0, 1e-2, None)
    radial = {True: [], False: []}
    for _ in range(300):
        Z, Y = rng.normal(size=(2, 4, 40)).astype(np.float32)
        v = GROUPED(objective, chosen, Y, np.zeros(4, int))(Z)[0]
        radial[True].append((v * Z).sum() / np.linalg.norm(v))
        a = np.full((1, 4), 0.25, np.float32)
        z, y, s = Z[None], Y[None], chosen.scales
        if objective == "sinkhorn":
            flow = groups.sinkhorn(z, y, a, 6.0)
        elif objective == "energy":
            flow = groups.mmd(z, y, a, (), ())
        else:
            flow = groups.mmd(z, y, a, s, chosen.weights)
        radial[False].append((flow.velocity[0] * Z).sum() / np.linalg.norm(flow.velocity))
    score = {k: np.mean(v) / (np.std(v) / np.sqrt(len(v))) for k, v in radial.items()}
    assert abs(score[True]) < 4
    assert score[False] < -8


def test_large_batches_and_a_chosen_backend_are_left_to_sums():
    X = np.zeros((3_000, 1), np.float32) + np.arange(3_000)[:, None]
    one = np.zeros(3_000, int)
    assert toward.grouped("mmd", choices(X, None, None, 1e-2, None), X, one) is None
    few = X[:50], one[:50]
    assert toward.grouped("mmd", choices(X, None, None, 1e-2, "numpy"), *few) is None
    assert toward.grouped("w2", choices(X, None, None, 1e-2, None), *few) is None
    assert toward.grouped("mmd", choices(X, None, None, 1e-2, None), *few) is not None


def test_sinkhorn_by_products_and_by_logarithms_agree(monkeypatch):
    """One exponential a pair for all steps; where the blur is so small that columns lose their digits, logarithms take over."""
    _, X, labels = batch((20, 31), 60)
    Z = (X[::-1] * 1.2).copy()
    where = groups.Groups(labels)
    z, x = Z[where.rows], X[where.rows]
    quick_way, ways = groups._scaled, []
    note = lambda *given: ways.append(quick_way(*given) is not None) or None
    for blur, kept in ((5.0, True), (0.3, False)):
        monkeypatch.setattr(groups, "_scaled", quick_way)
        quick = groups.sinkhorn(z, x, where.a, blur, unbiased=True)
        monkeypatch.setattr(groups, "_scaled", note)
        ways.clear()
        slow = groups.sinkhorn(z, x, where.a, blur, unbiased=True)
        assert all(ways) == kept
        width = np.abs(slow.velocity).max()
        np.testing.assert_allclose(quick.velocity, slow.velocity, atol=1e-3 * width)
        np.testing.assert_allclose(quick.energy, slow.energy, rtol=1e-4)


def test_kernels_of_a_mixture_are_as_large_in_the_mean():
    """Each kernel over its mean: gradients of one length; few dimensions keep s^2 alone, and no scale is made up for without end."""
    X = np.random.default_rng(0).normal(size=(400, 50)).astype(np.float32)
    chosen = choices(X, None, None, 1e-2, None)
    S = ((X[:, None] - X) ** 2).sum(axis=2)[np.triu_indices(400, 1)]
    means = [
        w / s**2 * np.exp(-S / (2 * s * s)).mean()
        for s, w in zip(chosen.scales, chosen.weights, strict=True)
    ]
    np.testing.assert_allclose(means, 1 / 3, rtol=1e-3)
    narrow = choices(X, 0.1, None, 1e-2, None)
    assert narrow.weights[0] == pytest.approx(0.01 * 1e4)
    plane = choices(X[:, :2], (1.0, 2.0), None, 1e-2, None)
    assert plane.weights == (0.5, 2.0)
