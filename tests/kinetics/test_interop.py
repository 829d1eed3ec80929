"""Objects of molecular dynamics packages, angles and manifolds; torsions against a formula of their own."""

import numpy as np
import pytest

import gpukoop as gk
from gpukoop import maps
from gpukoop.interop import featurize

NAMES, RESIDUES = ("N", "CA", "C", "O", "HA"), 4
N_ATOMS = len(NAMES) * RESIDUES


def positions(n_frames=5):
    return np.random.default_rng(0).normal(size=(n_frames, N_ATOMS, 3)) * 0.3


def torsion(a, b, c, d):
    """Signed angle between the planes (a, b, c) and (b, c, d)."""
    first, axis, last = b - a, c - b, d - c
    left, right = np.cross(first, axis), np.cross(axis, last)
    along = axis / np.linalg.norm(axis, axis=-1, keepdims=True)
    return np.arctan2((np.cross(left, right) * along).sum(-1), (left * right).sum(-1))


def exact(features, X):
    at = lambda residue, name: X[:, residue * len(NAMES) + NAMES.index(name)]
    if features == "phi psi":
        backbone = lambda r: (at(r, "N"), at(r, "CA"), at(r, "C"))
        phi = [torsion(at(r - 1, "C"), *backbone(r)) for r in range(1, RESIDUES)]
        psi = [torsion(*backbone(r), at(r + 1, "N")) for r in range(RESIDUES - 1)]
        a = np.stack(phi + psi, axis=1)
        return np.stack([np.cos(a), np.sin(a)], axis=2).reshape(len(X), -1)
    names = ("CA",) if features == "ca distances" else NAMES[:-1]
    chosen = [r * len(NAMES) + NAMES.index(n) for r in range(RESIDUES) for n in names]
    return np.stack(
        [
            np.linalg.norm(X[:, i] - X[:, j], axis=1)
            for k, i in enumerate(chosen)
            for j in chosen[k + 1 :]
        ],
        axis=1,
    )


def mdtraj_trajectory(X):
    md = pytest.importorskip("mdtraj")
    topology = md.Topology()
    chain = topology.add_chain()
    for _ in range(RESIDUES):
        residue = topology.add_residue("ALA", chain)
        for name in NAMES:
            topology.add_atom(name, md.element.Element.getBySymbol(name[0]), residue)
    return md.Trajectory(X, topology)


def mdanalysis_universe(X):
    mda = pytest.importorskip("MDAnalysis")
    universe = mda.Universe.empty(
        N_ATOMS,
        n_residues=RESIDUES,
        atom_resindex=np.repeat(np.arange(RESIDUES), len(NAMES)),
        residue_segindex=[0] * RESIDUES,
        trajectory=True,
    )
    universe.add_TopologyAttr("name", list(NAMES) * RESIDUES)
    universe.add_TopologyAttr("resname", ["ALA"] * RESIDUES)
    universe.add_TopologyAttr("resid", list(range(1, RESIDUES + 1)))
    universe.add_TopologyAttr("segid", ["A"])
    universe.load_new(X.astype(np.float32))
    return universe


@pytest.mark.parametrize("make", [mdtraj_trajectory, mdanalysis_universe])
@pytest.mark.parametrize("features", ["phi psi", "ca distances", "heavy atom distances"])
def test_features_are_those_of_the_positions(make, features):
    """Float32 coordinates: 1e-4 of a torsion of near atoms."""
    X = positions()
    found = featurize(make(X), features)
    assert found.shape == exact(features, X).shape
    assert np.allclose(found, exact(features, X), atol=1e-4)
    assert [f.shape for f in featurize([make(X), make(X[:3])], features)] == [
        found.shape,
        (3, found.shape[1]),
    ]


def test_arrays_and_functions():
    X = positions()
    assert featurize(X, lambda x: x[:, 0]).shape == (5, 3)
    assert np.array_equal(featurize(X[:, 0]), X[:, 0])
    with pytest.raises(TypeError, match=r"gpukoop\[md\]"):
        featurize(X, "phi psi")
    with pytest.raises(ValueError, match="expected one of 'phi psi'"):
        featurize(X, "chi")
    with pytest.raises(ValueError, match="one row a frame"):
        featurize(X, lambda x: x)


def test_a_trajectory_without_the_atoms_says_so():
    X = positions()
    with pytest.raises(ValueError, match="too few such atoms"):
        featurize(mdtraj_trajectory(X).atom_slice([0, 1]), "ca distances")
    with pytest.raises(ValueError, match="no phi psi: there are too few such atoms"):
        featurize(mdtraj_trajectory(X).atom_slice([0, 1]), "phi psi")


@pytest.mark.parametrize("make", [mdtraj_trajectory, mdanalysis_universe])
def test_a_trajectory_is_not_fitted_as_it_is(make):
    trajectory = make(positions())
    for given in (trajectory, [trajectory]):
        with pytest.raises(TypeError, match=r"pass gk\.interop\.featurize"):
            gk.KernelEDMD().fit(given, lag=1)


# --- angles and manifolds


def test_a_kernel_of_the_torus_is_periodic():
    a = np.array([[3.1, -0.5], [-3.1, -0.5], [0.0, 1.0]])
    Z = maps.torus(a)
    assert np.allclose(maps.angles(Z), a)
    assert np.allclose(maps.angles(maps.torus(np.degrees(a), 360), 360), np.degrees(a))
    distance = ((Z[:, None] - Z[None]) ** 2).sum(axis=2)
    assert np.allclose(distance, (4 * np.sin((a[:, None] - a[None]) / 2) ** 2).sum(axis=2))
    assert np.allclose(maps.torus(a + 2 * np.pi), Z)
    K = gk.Gaussian(0.5)(Z).to_dense()
    assert K[0, 1] > 0.98  # neighbours across the seam
    assert maps.torus(a.astype(np.float32)).dtype == np.float32
    # the kernel of angles is the same function: points on circles, or a period
    periodic = gk.Periodic(period=2 * np.pi, scale=0.5)(a).to_dense()
    assert np.allclose(K, periodic)
    # slow modes do not see where the seam is: Brownian angles at diffusion .045 a frame relax in 1 / .045 frames, twice
    rng = np.random.default_rng(0)
    path = np.cumsum(0.3 * rng.normal(size=(6_000, 2)), axis=0)
    estimator = gk.KernelEDMD(n_components=2, n_landmarks=100, random_state=0)
    found = [
        estimator.fit(maps.torus((path + shift + np.pi) % (2 * np.pi) - np.pi), lag=2).timescales_
        for shift in (0.0, 1.0)
    ]
    assert np.allclose(found[0], 1 / 0.045, rtol=0.25)
    assert np.allclose(*found, rtol=0.02)
    with pytest.raises(ValueError, match="reshape"):
        maps.torus(a[:, 0])
    with pytest.raises(ValueError, match="a cosine and a sine"):
        maps.angles(np.ones((4, 3)))


@pytest.mark.parametrize(
    ("project", "inside"),
    [
        (maps.project_circle, lambda rng, n: maps.torus(rng.uniform(-4, 4, (n, 1)))),
        (maps.project_torus, lambda rng, n: maps.torus(rng.uniform(-4, 4, (n, 2)))),
        (
            maps.project_sphere,
            lambda rng, n: (lambda z: z / np.linalg.norm(z, axis=1)[:, None])(
                rng.normal(size=(n, 3))
            ),
        ),
        (maps.project_simplex, lambda rng, n: rng.dirichlet(np.ones(4), n)),
    ],
)
def test_projections_are_the_nearest_points(project, inside):
    """No point of the manifold is nearer than the projection; points of it stay; no draw is beaten by 20,000 others."""
    rng = np.random.default_rng(1)
    M = inside(rng, 20_000)
    assert np.allclose(project(M[:50]), M[:50])
    Z = rng.normal(size=(30, M.shape[1]))
    P = project(Z)
    assert np.allclose(project(P), P)
    nearest = np.linalg.norm(Z[:, None] - M, axis=2).min(axis=1)
    assert (np.linalg.norm(Z - P, axis=1) <= nearest + 1e-12).all()
    assert np.allclose(np.linalg.norm(Z - P, axis=1), nearest, atol=0.15)


def test_a_flow_stays_on_the_torus():
    rng = np.random.default_rng(2)
    a = np.concatenate([rng.normal(2.9, 0.3, (200, 2)), rng.normal(-1, 0.4, (100, 2))])
    flow = gk.KSWGD(
        n_components=5,
        total_time=1.0,
        project=maps.project_torus,
        validation_fraction=0.0,
        random_state=0,
    )
    Z = flow.fit(maps.torus(a)).sample(19)
    assert np.allclose((Z.reshape(19, 2, 2) ** 2).sum(axis=2), 1)
