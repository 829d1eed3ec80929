r"""A learned dictionary: a small network trained so that its functions decay as slowly as functions can.

=== ==============================================
x   points (n, d), y their successors (n, d)
psi functions of the network, (n, p), centred
=== ==============================================

.. math:: \max_\psi\; \mathrm{tr}\left[(C_0^{-1} C_t)^2\right], \quad
          C_0 = \tfrac12 (\psi_x^T \psi_x + \psi_y^T \psi_y) / n, \quad C_t = \tfrac12 (\psi_x^T \psi_y + \psi_y^T \psi_x) / n

The score of a reversible process is the sum of the squared eigenvalues of the Koopman operator in the span of the functions;
no functions score more than the true eigenfunctions.

References
----------
.. [1] H. Wu, F. Noe, Variational approach for learning Markov processes from time series data, Journal of Nonlinear Science
   30, 2020, eq. 22.
.. [2] Y. Xu, F. Li, M. Fujisawa, X. Cheng, Y. Marzouk, I. Ishikawa, arXiv 2512.18837: dictionaries learned for KSWGD.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from gpukoop.arrays import Array, Home, like, points, to_host
from gpukoop.centring import centred
from gpukoop.draws import check_count, check_positive, random_generator
from gpukoop.fitted import check_columns, remember_columns, whole
from gpukoop.parameters import check_shared
from gpukoop.persistence import PersistentEstimator
from gpukoop.torch.sums import library

# Ridge of C_0 relative to its mean eigenvalue: functions that the samples do not tell apart count once.
RIDGE = 1e-4
# Pairs kept aside: the weights that score best on them are kept.
HELD_OUT = 0.2
# Epochs between two looks at the pairs kept aside.
LOOK_EVERY = 10


class NeuralDictionary(PersistentEstimator):
    """Functions of a multilayer perceptron, learned from pairs: a dictionary for ``GeneratorEDMD``, whose modes KSWGD follows.

    Parameters
    ----------
    n_functions : int
        p.
    width, depth : int
        Units of a hidden layer, and hidden layers.
    n_epochs : int
        Passes of Adam over all pairs at once.
    learning_rate : float
    random_state : int, Generator, RandomState or None

    Attributes
    ----------
    network_ : torch.nn.Module
        Of standardised points, in float64, on the host.
    score_ : float
        Sum of the squared eigenvalues on the pairs kept aside.

    Notes
    -----
    Cost of an epoch: two evaluations of the network at n points and O(n p^2). A step of KSWGD: one evaluation and one
    vector-Jacobian product, O(n p). Needs PyTorch (``pip install gpukoop[torch]``).

    Examples
    --------
    >>> import gpukoop as gk  # doctest: +SKIP
    >>> X, Y = gk.datasets.quadruple_well(2000, lag_time=0.1, independent=True)  # doctest: +SKIP
    >>> learned = gk.torch.NeuralDictionary(random_state=0).fit(X, successors=Y)  # doctest: +SKIP
    >>> spectrum = gk.GeneratorEDMD(learned).fit(X)  # doctest: +SKIP
    >>> Z = gk.KSWGD(spectrum).fit(X).sample(1000)  # doctest: +SKIP
    """

    def __init__(
        self,
        n_functions: int = 16,
        width: int = 64,
        depth: int = 2,
        n_epochs: int = 300,
        learning_rate: float = 3e-3,
        random_state: Any = None,
    ) -> None:
        self.n_functions = n_functions
        self.width = width
        self.depth = depth
        self.n_epochs = n_epochs
        self.learning_rate = learning_rate
        self.random_state = random_state

    @whole
    def fit(self, X: Any, y: None = None, *, successors: Any = None) -> NeuralDictionary:
        """Train the network on pairs.

        Parameters
        ----------
        X : array of shape (m, d)
        y : ignored
        successors : array of shape (m, d)
            X one lag later, row by row.
        """
        torch = library()
        self._check_parameters()
        remember_columns(self, X, successors)
        x = to_host(points(X, "X")[0]).astype(float)
        if successors is None:
            raise ValueError(
                "NeuralDictionary learns from pairs: pass successors=Y, X one lag later"
            )
        z = to_host(points(successors, "successors", n_features=x.shape[1])[0]).astype(float)
        if len(z) != len(x):
            raise ValueError(f"successors has {len(z)} rows, X has {len(x)}: row i is X[i] later")
        self.n_features_in_ = x.shape[1]
        self.mean_, centre = centred(x)
        deviation = centre.std(axis=0)
        self.deviation_ = np.where(deviation > 0, deviation, 1.0)
        rng = random_generator(self.random_state)
        order = rng.permutation(len(x))
        pairs = [torch.from_numpy((a[order] - self.mean_) / self.deviation_) for a in (x, z)]
        aside = max(1, int(HELD_OUT * len(x)))
        with torch.random.fork_rng(devices=[]):  # the caller's stream stays where it is
            torch.manual_seed(int(rng.integers(2**62)))
            self.network_ = self._network(torch)
        optimiser = torch.optim.Adam(self.network_.parameters(), lr=float(self.learning_rate))
        self.score_, best = -1.0, None
        for epoch in range(self.n_epochs):
            optimiser.zero_grad()
            (-_score(torch, *(self.network_(a[aside:]) for a in pairs))).backward()
            optimiser.step()
            if epoch % LOOK_EVERY == LOOK_EVERY - 1 or epoch == self.n_epochs - 1:
                with torch.no_grad():
                    score = float(_score(torch, *(self.network_(a[:aside]) for a in pairs)))
                if score > self.score_:
                    state = self.network_.state_dict()
                    self.score_, best = score, {k: v.clone() for k, v in state.items()}
        if best is not None:
            self.network_.load_state_dict(best)
        return self

    def _check_parameters(self) -> None:
        check_shared(self)
        for name in ("n_functions", "width", "depth", "n_epochs"):
            check_count(getattr(self, name), name)
        check_positive(self.learning_rate, "learning_rate")

    def _network(self, torch: Any) -> Any:
        layers: list[Any] = []
        size = self.n_features_in_
        for _ in range(self.depth):
            layers += [torch.nn.Linear(size, self.width), torch.nn.Tanh()]
            size = self.width
        return torch.nn.Sequential(*layers, torch.nn.Linear(size, self.n_functions)).double()

    def _points(self, X: Any) -> tuple[Array, Home]:
        check_is_fitted(self, "network_")
        self._check_parameters()
        check_columns(self, X)
        return points(X, "X", n_features=self.n_features_in_, other="the fitted X")

    def _input(self, X: Array) -> Any:
        x = (to_host(X).astype(float) - self.mean_) / self.deviation_
        return library().from_numpy(np.ascontiguousarray(x))

    def features(self, X: Any) -> Array:
        """Return the functions at points, (n, p)."""
        native, home = self._points(X)
        with library().no_grad():
            return home.restore(like(self.network_(self._input(native)).numpy(), native))

    def gradient(self, X: Any) -> Array:
        """Return their gradients, (n, p, d): p vector-Jacobian products."""
        native, home = self._points(X)
        rows = [to_host(self._slope(native, e)) for e in np.eye(self.network_[-1].out_features)]
        return home.restore(like(np.stack(rows, axis=1), native))

    def slope(self, X: Any, w: Array) -> Array:
        """Return the gradient of ``features(X) @ w``, (n, d), from one vector-Jacobian product."""
        native, home = self._points(X)
        return home.restore(self._slope(native, w))

    def _slope(self, X: Array, w: Array) -> Array:
        torch = library()
        x = self._input(X).requires_grad_(True)
        with torch.enable_grad():
            total = (self.network_(x) @ torch.from_numpy(to_host(w).astype(float))).sum()
            (slope,) = torch.autograd.grad(total, x)
        return like(slope.numpy() / self.deviation_, X)


def _score(torch: Any, P: Any, Q: Any) -> Any:
    """Return tr[(C_0^-1 C_t)^2] of functions of x and of y."""
    mean = (P.mean(0) + Q.mean(0)) / 2
    P, Q = P - mean, Q - mean
    C0 = (P.T @ P + Q.T @ Q) / (2 * len(P))
    Ct = (P.T @ Q + Q.T @ P) / (2 * len(P))
    ridge = RIDGE * torch.trace(C0) / len(C0) + torch.finfo(C0.dtype).tiny
    K = torch.linalg.solve(C0 + ridge * torch.eye(len(C0), dtype=C0.dtype), Ct)
    return torch.trace(K @ K)
