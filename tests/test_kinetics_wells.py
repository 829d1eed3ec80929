"""Diffusions in wells, with answers from a grid: three wells in two dimensions, two wells among ten dimensions."""

import functools

import numpy as np
import pytest
from scipy import sparse
from scipy.sparse.linalg import eigsh, spsolve

import gpukoop as gk
from gpukoop import kinetics

BETA = 1.7
SIDE = np.linspace(-2.2, 2.2, 89), np.linspace(-1.6, 2.4, 81)


def potential(x, y):
    """Two deep wells at (-1, 0) and (1, 0), a shallow one at (0, 5/3): Metzner, Schuette, Vanden-Eijnden 2006, eq. 64."""
    return BETA * (
        3 * np.exp(-(x**2) - (y - 1 / 3) ** 2)
        - 3 * np.exp(-(x**2) - (y - 5 / 3) ** 2)
        - 5 * np.exp(-((x - 1) ** 2) - y**2)
        - 5 * np.exp(-((x + 1) ** 2) - y**2)
        + 0.2 * x**4
        + 0.2 * (y - 1 / 3) ** 4
    )


@functools.cache
def grid():
    """The points (n, 2), their law, and the symmetric Dirichlet form of the generator, of second order in the spacing."""
    x, y = np.meshgrid(*SIDE, indexing="ij")
    h = SIDE[0][1] - SIDE[0][0]
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    law = np.exp(-potential(*points.T))
    law /= law.sum()
    index = np.arange(len(points)).reshape(x.shape)
    i = np.concatenate([index[:-1].ravel(), index[:, :-1].ravel()])
    j = np.concatenate([index[1:].ravel(), index[:, 1:].ravel()])
    flow = np.sqrt(law[i] * law[j]) / h**2
    form = sparse.coo_matrix((flow, (i, j)), shape=(len(law),) * 2)
    form = form + form.T
    return points, law, (sparse.diags(np.asarray(form.sum(axis=1)).ravel()) - form).tocsr()


@functools.cache
def exact_timescales():
    _, law, form = grid()
    root = sparse.diags(1 / np.sqrt(law))
    values = eigsh(root @ form @ root, k=4, sigma=-1e-3, return_eigenvectors=False)
    return 1 / np.sort(values)[1:]


def exact_committor(source, target):
    """Solve L q = 0 between discs of radius .3 around two centres."""
    points, _, form = grid()
    A, B = (np.linalg.norm(points - c, axis=1) < 0.3 for c in (source, target))
    inner = ~(A | B)
    q = B.astype(float)
    q[inner] = spsolve(form[inner][:, inner].tocsc(), -form[inner] @ q)
    return q


def walk(gradient, start, n_frames, frame_time, n_substeps, rng):
    """Euler-Maruyama of many walkers at once: frames (walkers, n_frames, d)."""
    h = frame_time / n_substeps
    Z, out = start.copy(), np.empty((len(start), n_frames, start.shape[1]))
    for i in range(n_frames):
        out[:, i] = Z
        for _ in range(n_substeps):
            Z = Z - h * gradient(Z) + np.sqrt(2 * h) * rng.normal(size=Z.shape)
    return out


def slope(Z, step=1e-5):
    x, y = Z.T
    return np.stack(
        [
            (potential(x + step, y) - potential(x - step, y)) / (2 * step),
            (potential(x, y + step) - potential(x, y - step)) / (2 * step),
        ],
        axis=1,
    )


def three_wells(seed, walkers=10, n_frames=2_000):
    rng = np.random.default_rng(seed)
    points, law, _ = grid()
    start = points[rng.choice(len(law), size=walkers, p=law)]
    return list(walk(slope, start, n_frames, 0.1, 10, rng))


@pytest.mark.slow
def test_three_wells():
    """4,000 units of time are 520 relaxation times: the deep wells' passages are known to some 5 %."""
    runs = three_wells(0, walkers=40, n_frames=1_000)
    estimator = gk.KernelEDMD(n_components=3, n_landmarks=200, random_state=0)
    model = kinetics.KineticModel(estimator, lag=10, frame_time=0.1).fit(runs)
    exact = exact_timescales()
    assert (model.timescales_lower_[:2] < exact[:2]).all()
    assert (exact[:2] < model.timescales_upper_[:2]).all()
    states = kinetics.metastable_states(model, 3)
    centres = np.array([[-1.05, -0.04], [1.05, -0.04], [0.0, 1.54]])
    chi = states.memberships(centres)
    order = chi.argmax(axis=1)
    assert sorted(order) == [0, 1, 2]
    assert chi.max(axis=1).min() > 0.95
    points, law, _ = grid()
    own = np.stack([np.linalg.norm(points - c, axis=1) for c in centres]).argmin(axis=0)
    right = states.memberships(points).argmax(axis=1) == order[own]
    assert law[right].sum() > 0.97
    # the weight that basins of the nearest centre have differs from that of fuzzy states by what lies between wells
    exact_weights = np.array([law[own == k].sum() for k in range(3)])
    assert states.weights[order] == pytest.approx(exact_weights, abs=0.06)
    # between the deep wells the next timescale is a tenth of the slowest; to the shallow one it is a fifth, and so good is q
    for target, bound in ((1, 0.05), (2, 0.2)):
        q = exact_committor(centres[0], centres[target])
        found = states.committor(int(order[0]), int(order[target]), points)
        assert np.sqrt(law @ (found - q) ** 2) < bound


@pytest.mark.slow
def test_a_double_well_in_ten_dimensions():
    exact = 1 / gk.datasets.exact("slow_well", barrier=2.0)["eigenvalues"][0]
    X, _ = gk.datasets.slow_well(20_000, 0.1, 0, barrier=2.0)
    estimator = gk.KernelEDMD(n_components=3, n_landmarks=200, coordinates="tica", random_state=0)
    model = kinetics.KineticModel(estimator, lag=10, frame_time=0.1).fit(X)
    assert model.timescales_lower_[0] < exact < model.timescales_upper_[0]
    states = kinetics.metastable_states(model, 2)
    side = states.memberships(X).argmax(axis=1)[np.abs(X[:, 0]) > 0.5]
    agree = np.mean((side == 0) == (X[np.abs(X[:, 0]) > 0.5, 0] > 0))
    assert max(agree, 1 - agree) > 0.99
