"""How good eigenfunctions are on pairs that they were not learned from: what a grid search compares."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from gpukoop.arrays import Array, like, points
from gpukoop.fitted import check_columns
from gpukoop.lagged import check_lag, runs_of
from gpukoop.spectrum.coordinates import functions_of_points
from gpukoop.spectrum.pairs import CUT, pair_moments
from gpukoop.spectrum.trajectory import trajectory_moments


class ScoredOnPairs:
    """An estimator of slow modes whose ``score`` is variational."""

    def score(self, X: Any, y: None = None, *, successors: Any = None) -> float:
        r"""Return VAMP-2 of the eigenfunctions on pairs that were not learned from.

        .. math:: 1 + \| G_0^{-1/2} G_\tau G_0^{-1/2} \|_F^2

        with G the covariances of the eigenfunctions on these pairs, symmetrised. No set of functions has a larger one, up to
        noise, than the slowest eigenfunctions.

        Parameters
        ----------
        X : array of shape (m, d)
            A trajectory (or a list of them), if the fit had ``lag``; else the first halves of pairs.
        y : None
            Ignored.
        successors : array of shape (m, d)
            The second halves.

        Returns
        -------
        float
            The larger the better, at least 1: the share of the constant.

        Raises
        ------
        ValueError
            If neither the fit had a lag nor successors are given, or modes are complex (``reversible=False``).

        Notes
        -----
        More modes score more: compare ``n_components`` by what each adds, or :func:`gpukoop.kinetics.cross_validate` with
        ``n_modes=``. A fold that ``GridSearchCV`` takes out of a trajectory leaves one seam in what is learned, of ``lag``
        pairs; ``cross_validate`` leaves none.
        """
        check_is_fitted(self, "functions_")
        own: Any = self
        if own.reversible is not True:
            raise ValueError(
                "score is that of reversible modes, these have reversible=False: compare complex eigenvalues by their errors"
            )
        if successors is not None:
            check_columns(own, X)
            first, _ = points(X, "X", n_features=own.n_features_in_, other="the fitted X")
            functions = functions_of_points(own.functions_, own)
            halves = (
                functions.transform(Z).astype(float)
                for Z in (first, successors_of(first, None, successors))
            )
            moments = pair_moments(*halves)
        elif getattr(own, "_lag", None) is None:
            raise ValueError(
                "score needs pairs: pass successors=Y, X one lag_time later, or learn from trajectories by fit(X, lag=...)"
            )
        else:
            runs = runs_of(X, "X")
            for run in runs:
                check_columns(own, run)
            if runs[0].shape[1] != own.n_features_in_:
                raise ValueError(
                    f"X has {runs[0].shape[1]} features, the fitted X has {own.n_features_in_}: both need the same columns"
                )
            blocks = trajectory_moments(
                functions_of_points(own.functions_, own), runs, check_lag(runs, own._lag)
            )
            moments = sum(blocks[1:], blocks[0])
        if np.linalg.eigvalsh(moments.covariance())[0] < CUT:
            raise ValueError(
                "the modes, or a combination of them, do not vary on X: pass more frames, or longer runs"
            )
        one = np.eye(len(moments.x))
        return 1.0 + moments.score(one, one, True)


def successors_of(X: Array, y: Any, successors: Any) -> Array:
    """Return the successors of X as checked points, in the library of X."""
    if successors is None:
        hint = "; they were passed as y" if getattr(y, "ndim", 1) == 2 else ""
        raise ValueError(
            f"KernelEDMD learns from pairs: pass successors=Y, X one lag_time later, of shape {X.shape}{hint}"
        )
    Y, _ = points(successors, "successors", n_features=X.shape[1])
    if len(Y) != len(X):
        raise ValueError(
            f"successors has {len(Y)} rows, X has {len(X)}: row i of successors is row i of X one lag_time later"
        )
    return like(Y, X)
