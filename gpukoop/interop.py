"""Objects of molecular dynamics packages as arrays of features, one row a frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpukoop.arrays import points
from gpukoop.checks import real_array
from gpukoop.maps import torus

FEATURES = ("phi psi", "ca distances", "heavy atom distances")
SELECTIONS = {"ca distances": "name CA", "heavy atom distances": "not name H*"}


def featurize(trajectory: Any, features: str | Callable[[Any], Any] = "phi psi") -> Any:
    """Return features of the frames of a trajectory, or of each of a list of them.

    Parameters
    ----------
    trajectory : mdtraj.Trajectory, MDAnalysis Universe, array, or list of these
        An array (n, d) is returned as it is, where it is; one of positions (n, atoms, 3) needs a callable, for it does not say which atom
        is which.
    features : "phi psi", "ca distances", "heavy atom distances" or callable
        Cosines and sines of the backbone torsions, phi and psi of each residue in turn as far as they exist, first all phi,
        then all psi (:func:`gpukoop.maps.angles` gives the angles); or distances between all pairs of alpha carbons,
        or of atoms that are no hydrogens; or a function of the trajectory with one row a frame.

    Returns
    -------
    float64 array of shape (n, d), or list of such arrays
        Distances in the unit of the package: nm in mdtraj, angstrom in MDAnalysis.

    Raises
    ------
    TypeError
        If it is no trajectory, or an array that named features cannot be made of.
    ValueError
        If the name is unknown, or there are no such atoms.
    """
    if isinstance(trajectory, list | tuple):
        return [featurize(one, features) for one in trajectory]
    if callable(features):
        found = real_array(features(trajectory), "features")
    elif features not in FEATURES:
        raise ValueError(
            f"features is {features!r}, expected one of {', '.join(map(repr, FEATURES))} or a function"
        )
    else:
        package = type(trajectory).__module__.partition(".")[0]
        if package == "mdtraj":
            found = _mdtraj(trajectory, features)
        elif package == "MDAnalysis":
            found = _mdanalysis(trajectory, features)
        elif getattr(trajectory, "ndim", 0) == 2:
            native, home = points(trajectory, "trajectory")
            return home.restore(native.astype(float))
        else:
            raise TypeError(
                f"trajectory is of type {type(trajectory).__name__}, expected an mdtraj.Trajectory or MDAnalysis Universe (pip "
                "install gpukoop[md]), or an array (n, d) of features; positions (n, atoms, 3) need a function as features="
            )
    if found.ndim != 2:
        raise ValueError(f"features give shape {found.shape}, expected (n, d): one row a frame")
    if not found.shape[1]:
        raise ValueError(f"the trajectory has no {features}: there are too few such atoms")
    return found.astype(float)


def _mdtraj(trajectory: Any, features: str) -> np.ndarray:
    import mdtraj

    if features == "phi psi":
        found = [mdtraj.compute_phi(trajectory)[1], mdtraj.compute_psi(trajectory)[1]]
        angles = np.hstack(found).astype(float)
        return torus(angles) if angles.shape[1] else angles
    query = "name CA" if features == "ca distances" else "element != H"
    atoms = trajectory.topology.select(query)
    pairs = np.stack([atoms[side] for side in np.triu_indices(len(atoms), 1)], axis=1)
    if not len(pairs):
        return np.empty((len(trajectory), 0))
    return np.asarray(mdtraj.compute_distances(trajectory, pairs))


def _mdanalysis(universe: Any, features: str) -> np.ndarray:
    from MDAnalysis.lib.distances import calc_dihedrals, self_distance_array

    rows = []
    if features == "phi psi":
        residues = universe.atoms.residues
        chosen = [r.phi_selection() for r in residues] + [r.psi_selection() for r in residues]
        groups = [group for group in chosen if group is not None]
        for frame in universe.trajectory:
            corners = (
                [np.array([g.positions[i] for g in groups]) for i in range(4)] if groups else []
            )
            rows.append(calc_dihedrals(*corners, box=frame.dimensions) if groups else np.empty(0))
        angles = np.array(rows, float)
        return torus(angles) if angles.shape[1] else angles
    atoms = universe.select_atoms(SELECTIONS[features])
    for _ in universe.trajectory:
        rows.append(self_distance_array(atoms.positions) if len(atoms) > 1 else np.empty(0))
    return np.array(rows, float)
