r"""A lift that is learned: a small network e(x, t), trained with the published losses. Needs torch.

===============  ====================================================================================
consistency    \|e A - J_e (v, 1)\|^2, v the marginal velocity (not x1 - x0: that would drive J_e to zero)
target         \|d(e(x0, 0) exp A) - x1\|^2, x1 the exact endpoint of x0
phase          \|e(x0, 0) exp A - e(x1, 1)\|^2
reconstruction \|d(e(x, t)) - x\|^2
===============  ====================================================================================

Two ways lead on from training. The features are a fixed dictionary of the sampler, whose solve then finds another A and d; or the
lift is used as it was trained, with its own A and d: :meth:`NeuralFeatures.advance` takes x to time t by

.. math:: d(e(x, 0)\, e^{t A}) ,

and the eigenvectors of A are its spectral modes, in which data are edited and interpolated.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, final

import numpy as np
from scipy.linalg import expm

from gpukoop.arrays import Array
from gpukoop.draws import check_count, check_positive
from gpukoop.sampler.integration import integrate
from gpukoop.sampler.teacher import EmpiricalTeacher, as_teacher

N_TIMES = (
    5  # states kept of each exact path: the times of the consistency and reconstruction losses
)
N_STEPS = 50
BLUR = 0.05  # of an empirical field, in units of the data
TEACHER_POINTS = 2_000
BATCH = 256


def _torch() -> Any:
    try:
        return import_module("torch")
    except ImportError as error:
        raise ImportError(
            "a neural lift needs torch, which is not installed: pip install torch"
        ) from error


@final
class NeuralFeatures:
    """Features e(x, t) of a network with two hidden layers; pass it as ``dictionary=`` after :meth:`train`.

    Parameters
    ----------
    n_coordinates : int
        d.
    n_features : int
        M.
    width : int
        Of the hidden layers.
    random_state : int
        Seed of weights and batches.

    Attributes
    ----------
    losses : dict of lists
        One number for each step and loss.
    operator, decoder : arrays of shape (M, M) and (M, d)
        A and d as trained; zero before.

    Notes
    -----
    As a dictionary it differs from the published method in what follows training: A and the decoder are solved for, in closed form,
    with the features fixed. The decoder is linear. Runs on the CPU, float64.

    References
    ----------
    .. [1] E. Turan et al., Unfolding Generative Flows with Koopman Operators, arXiv 2506.22304.
    """

    def __init__(
        self, n_coordinates: int, n_features: int = 32, *, width: int = 64, random_state: int = 0
    ) -> None:
        torch = _torch()
        self.n_coordinates = check_count(n_coordinates, "n_coordinates")
        self.n_features = check_count(n_features, "n_features")
        check_count(width, "width")
        self.random_state = random_state
        self.losses: dict[str, list[float]] = {}
        # A generator of its own: the process-wide stream of torch stays as it is.
        source = torch.Generator().manual_seed(random_state)
        d, M = self.n_coordinates, self.n_features

        def layer(rows: int, columns: int) -> list[Any]:
            W = torch.randn(rows, columns, generator=source, dtype=torch.float64) / rows**0.5
            return [W, torch.zeros(columns, dtype=torch.float64)]

        self.operator, self.decoder = np.zeros((M, M)), np.zeros((M, d))
        self.weights = layer(d + 1, width) + layer(width, width) + layer(width, M)

    def _encode(self, z: Any, zdot: Any = None) -> Any:
        """Return e(z), and given zdot also its derivative along it, by forward rules.

        Differs from torch.func.jvp in compiling nothing; silu(a) = a sigma(a) has the slope sigma (1 + a (1 - sigma)).
        """
        torch = _torch()
        h, rate, W = z, zdot, self.weights
        for i in (0, 2):
            a = h @ W[i] + W[i + 1]
            gate = torch.sigmoid(a)
            if rate is not None:
                rate = (rate @ W[i]) * gate * (1 + a * (1 - gate))
            h = a * gate
        e = h @ W[4] + W[5]
        return e if rate is None else (e, rate @ W[4])

    def _joined(self, x: Array, t: Array) -> Any:
        z = np.concatenate([np.asarray(x), np.asarray(t).reshape(-1, 1)], axis=1)
        return _torch().from_numpy(z.astype(np.float64))

    def features(self, x: Array, t: Array) -> np.ndarray:
        """Return e(x, t), (n, M)."""
        return self._encode(self._joined(x, t)).detach().numpy()

    def features_and_jvp(self, x: Array, t: Array, u: Array) -> tuple[np.ndarray, np.ndarray]:
        """Return e and its forward-mode derivative along (u, 1)."""
        e, rate = self._encode(self._joined(x, t), self._joined(u, np.ones(len(u))))
        return e.detach().numpy(), rate.detach().numpy()

    def train(
        self,
        X: Any,
        *,
        teacher: Any = None,
        n_paths: int = 512,
        n_steps: int = 300,
        rate: float = 2e-3,
    ) -> NeuralFeatures:
        """Train encoder, generator and decoder together by Adam.

        Parameters
        ----------
        X : array of shape (n, d)
            Data, about mean 0 and size 1.
        teacher : object with velocity(x, t), optional
            The marginal velocity; that of (2,000 of) the data, slightly blurred, by default.
        n_paths : int
            Exact paths, integrated once.
        n_steps : int
        rate : float

        Returns
        -------
        NeuralFeatures
            Itself.
        """
        torch = _torch()
        check_count(n_steps, "n_steps")
        check_positive(rate, "rate")
        X = np.asarray(X, dtype=float)
        field = as_teacher(teacher) or EmpiricalTeacher(X[:TEACHER_POINTS], smooth=BLUR)
        rng = np.random.default_rng(self.random_state)
        times = np.linspace(0.0, 1.0, N_TIMES)
        start = rng.standard_normal((check_count(n_paths, "n_paths"), X.shape[1]))
        paths = np.asarray(integrate(field, start, times.tolist(), n_steps=N_STEPS))
        speeds = np.stack([field.velocity(x, float(t)) for x, t in zip(paths, times, strict=True)])
        M, d = self.n_features, X.shape[1]
        A = torch.zeros(M, M, dtype=torch.float64)
        decoder = torch.zeros(M, d, dtype=torch.float64)
        learned = [*self.weights, A, decoder]
        for tensor in learned:
            tensor.requires_grad_(True)
        optimiser = torch.optim.Adam(learned, lr=rate)
        for _ in range(n_steps):
            chosen = rng.integers(len(start), size=BATCH)
            k = rng.integers(N_TIMES, size=BATCH)
            z0 = self._joined(start[chosen], np.zeros(BATCH))
            z1 = self._joined(paths[-1, chosen], np.ones(BATCH))
            z = self._joined(paths[k, chosen], times[k])
            zdot = self._joined(speeds[k, chosen], np.ones(BATCH))
            e, de = self._encode(z, zdot)
            arrived = self._encode(z0) @ torch.linalg.matrix_exp(A)
            parts = {
                "consistency": ((e @ A - de) ** 2).mean(),
                "target": ((arrived @ decoder - z1[:, :d]) ** 2).mean(),
                "phase": ((arrived - self._encode(z1)) ** 2).mean(),
                "reconstruction": ((e @ decoder - z[:, :d]) ** 2).mean(),
            }
            optimiser.zero_grad()
            sum(parts.values()).backward()
            torch.nn.utils.clip_grad_norm_(
                learned, 1.0
            )  # after backward: before it there is nothing to clip
            optimiser.step()
            for name, value in parts.items():
                self.losses.setdefault(name, []).append(float(value.detach()))
        for tensor in self.weights:
            tensor.requires_grad_(False)
        self.operator, self.decoder = A.detach().numpy(), decoder.detach().numpy()
        return self

    def advance(self, x: Array, t: float = 1.0) -> np.ndarray:
        """Return where points of time 0 are at time t, in one step of the trained operator, (n, d).

        Parameters
        ----------
        x : array of shape (n, d)
            Standard normal draws give new samples at t = 1.
        t : float
            In [0, 1].
        """
        if not 0 <= t <= 1:
            raise ValueError(f"t is {t}, expected a time in [0, 1]")
        start = self.features(x, np.zeros(len(x)))
        return np.asarray(start @ expm(t * self.operator) @ self.decoder)

    def modes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the eigenvalues of A, slowest first, and the pictures of their modes in data space, (M,) and (M, d), complex."""
        values, left = self._spectrum()
        return values, np.linalg.inv(left) @ self.decoder

    def edit(self, x: Array, factors: Mapping[int, float]) -> np.ndarray:
        """Return data whose components along some modes are multiplied, (n, d).

        Parameters
        ----------
        x : array of shape (n, d)
            Data, of time 1, in the units of the training.
        factors : mapping of int to float
            Number of the mode in :meth:`modes` -> factor. The conjugate of a complex mode is multiplied, too, so that data
            stay real. An empty one shows how far encoding and decoding alone lead: see :meth:`invertibility`.
        """
        values, left = self._spectrum()
        scale = np.ones(len(values))
        for mode, factor in factors.items():
            if not 0 <= mode < len(values):
                raise ValueError(f"mode {mode} was asked for, there are {len(values)} from 0 on")
            scale[np.isclose(values, values[mode]) | np.isclose(values, values[mode].conj())] = (
                factor
            )
        parts = (self.features(x, np.ones(len(x))) @ left) * scale
        return np.asarray((parts @ np.linalg.inv(left)).real @ self.decoder)

    def interpolate(self, a: Array, b: Array, n: int) -> np.ndarray:
        """Return n points from a to b, both of shape (d,), on the straight line between their features, (n, d)."""
        ends = self.features(np.stack([a, b]), np.ones(2))
        share = np.linspace(0, 1, check_count(n, "n", least=2))[:, None]
        return np.asarray(((1 - share) * ends[0] + share * ends[1]) @ self.decoder)

    def invertibility(self, x: Array) -> float:
        """Return the root mean square of d(e(x, 1)) - x over that of x about its mean: 0 where decoding undoes encoding."""
        back = self.features(x, np.ones(len(x))) @ self.decoder
        return float(np.sqrt(((back - x) ** 2).mean() / ((x - np.mean(x, axis=0)) ** 2).mean()))

    def _spectrum(self) -> tuple[np.ndarray, np.ndarray]:
        values, left = np.linalg.eig(self.operator)
        order = np.lexsort((values.imag, -values.real))
        return values[order], left[:, order]
