r"""A lift that is learned: a small network e(x, t), trained with the published losses. Needs torch.

===============  ====================================================================================
consistency    \|e A - J_e (v, 1)\|^2, v the marginal velocity (not x1 - x0: that would drive J_e to zero)
target         \|d(e(x0, 0) exp A) - x1\|^2, x1 the exact endpoint of x0
phase          \|e(x0, 0) exp A - e(x1, 1)\|^2
reconstruction \|d(e(x, t)) - x\|^2
===============  ====================================================================================

Two ways lead on from training. The features are a fixed dictionary of the sampler, whose solve then finds another A and d; or the
lift is used as it was trained, with its own A and d: :meth:`AbstractNeuralFeatures.advance` takes x to time t by

.. math:: d(e(x, 0)\, e^{t A}) ,

and the eigenvectors of A are its spectral modes, in which data are edited and interpolated. With labels each class has an operator
beside that of all points, learned from exact paths to the class; encoder and decoder are shared.

The networks are those of :mod:`gpukoop.sampler.neural`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from importlib import import_module
from typing import Any

import numpy as np
from scipy.linalg import expm

from gpukoop.arrays import Array, points, to_host
from gpukoop.checks import one_label_each, real_array
from gpukoop.draws import check_count, check_positive
from gpukoop.sampler.integration import integrate
from gpukoop.sampler.teacher import EmpiricalTeacher, as_teacher
from gpukoop.versions import Persistent

# States kept of each exact path: the times of the consistency and reconstruction losses.
N_TIMES = 5
N_STEPS, BLUR = 50, 0.05  # of an empirical field, in units of the data
TEACHER_POINTS = 2_000
BATCH = 256


def library() -> Any:
    """Return the torch module, or say how to install it."""
    try:
        return import_module("torch")
    except ImportError as error:
        raise ImportError(
            "a neural lift needs torch, which is not installed: pip install torch"
        ) from error


def host(x: Any) -> np.ndarray:
    """Return a tensor as an array of double precision on the host."""
    return np.asarray(x.detach().cpu().double().numpy())


def _within_range(x: Any) -> np.ndarray:
    """Return what a network says on the host; raise where it left the range of its numbers."""
    found = host(x)
    if not np.isfinite(found).all():
        raise ValueError(
            "points are so large that the network leaves the range of its numbers: rescale them"
        )
    return found


class AbstractNeuralFeatures(Persistent, ABC):
    """A learned lift: encoder, operator and decoder, trained together; to add one, implement the four abstract names.

    Attributes
    ----------
    losses : dict of lists
        One number for each step and loss.
    operator, mean : arrays of shape (M, M) and (M,)
        A as trained, and the mean feature of the paths' ends; zero before.
    operators : dict of label to array of shape (M, M)
        That of each class, where labels were given.
    """

    def __init__(self, n_coordinates: int, n_features: int, random_state: int) -> None:
        self.n_coordinates = check_count(n_coordinates, "n_coordinates")
        self.n_features = check_count(n_features, "n_features")
        self.random_state = random_state
        self.losses: dict[str, list[float]] = {}
        self.operator = np.zeros((self.n_features, self.n_features))
        self.operators: dict[Any, np.ndarray] = {}
        self.mean = np.zeros(self.n_features)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"operators": {}} | state)  # a lift from before there were classes

    @abstractmethod
    def _parameters(self) -> list[Any]:
        """Return the tensors of encoder and decoder."""

    @abstractmethod
    def _encode(self, z: Any, zdot: Any = None) -> Any:
        """Return e(z) of rows (x, t), and given zdot also its derivative along it, by forward rules."""

    @abstractmethod
    def _decode(self, e: Any) -> Any:
        """Return d(e), (n, d), of features."""

    @abstractmethod
    def _pictures(self, rows: np.ndarray) -> np.ndarray:
        """Return what complex directions of the features (k, M) are in data space, (k, d)."""

    def _tensor(self, x: Any) -> Any:
        """Return an array as a tensor of the dtype and on the device of the parameters."""
        like = self._parameters()[0]
        tensor = library().as_tensor(np.array(x, copy=True)).to(like)
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"points leave the range of {tensor.dtype}: rescale them")
        return tensor

    def _points(self, x: Any, name: str = "x") -> np.ndarray:
        """Return points of data space on the host, checked."""
        native, _ = points(x, name, n_features=self.n_coordinates, other="the lift")
        return to_host(native).astype(float)

    def _joined(self, x: Any, t: Any, name: str = "x") -> Any:
        rows = self._points(x, name)
        times = real_array(t, "t").reshape(-1, 1)
        if len(times) != len(rows):
            raise ValueError(
                f"t has {len(times)} times, {name} has {len(rows)} rows: one time a row"
            )
        return self._tensor(np.concatenate([rows, times], axis=1))

    def features(self, x: Array, t: Array) -> np.ndarray:
        """Return e(x, t), (n, M)."""
        return _within_range(self._encode(self._joined(x, t)))

    def features_and_jvp(self, x: Array, t: Array, u: Array) -> tuple[np.ndarray, np.ndarray]:
        """Return e and its forward-mode derivative along (u, 1)."""
        z = self._joined(x, t)
        e, rate = self._encode(z, self._joined(u, np.ones(len(z)), "u"))
        return _within_range(e), _within_range(rate)

    def decode(self, e: Array) -> np.ndarray:
        """Return data of features, (n, d)."""
        rows, _ = points(e, "e", n_features=self.n_features, other="the lift")
        return _within_range(self._decode(self._tensor(to_host(rows))))

    def train(
        self,
        X: Any,
        y: Any = None,
        *,
        teacher: Any = None,
        n_paths: int = 512,
        n_steps: int = 300,
        rate: float = 2e-3,
    ) -> Any:
        """Train encoder, generator and decoder together by Adam.

        Parameters
        ----------
        X : array of shape (n, d)
            Data, about mean 0 and size 1.
        y : array of shape (n,), optional
            Labels: each class gets an operator and as many more paths as its share of ``n_paths``. A further call goes on from
            the operators that there are; those of classes it does not name stay as they are, all of them without y.
        teacher : object with velocity(x, t), optional
            The marginal velocity; that of the data, or of 2,000 of them at random, slightly blurred, by default. Without labels only.
        n_paths : int
            Exact paths, integrated once.
        n_steps : int
        rate : float

        Returns
        -------
        The lift itself; a training that fails, diverges (FloatingPointError) or is interrupted leaves it as it was.
        """
        trained = copy.deepcopy(self)  # steps write into the weights
        trained._train(X, y, teacher, n_paths, n_steps, rate)
        vars(self).update(vars(trained))
        return self

    def _train(self, X: Any, y: Any, teacher: Any, n_paths: int, n_steps: int, rate: float) -> None:
        torch = library()
        check_count(n_steps, "n_steps")
        check_positive(rate, "rate")
        X, count = self._points(X, "X"), check_count(n_paths, "n_paths")
        labels = one_label_each(y, len(X))
        if teacher is not None and labels is not None:
            raise ValueError(
                "a teacher is one velocity field and y asks for one per label: pass one of the two"
            )
        rng = np.random.default_rng(self.random_state)
        times = np.linspace(0.0, 1.0, N_TIMES)
        classes = [] if labels is None else np.unique(labels).tolist()
        clouds = [(X, count), *((X[labels == c], -(-count // len(classes))) for c in classes)]
        walks = []
        for cloud, n in clouds:
            if teacher is None and len(cloud) > TEACHER_POINTS:  # rows may be sorted
                cloud = cloud[rng.choice(len(cloud), TEACHER_POINTS, replace=False)]
            field = as_teacher(teacher) or EmpiricalTeacher(cloud, smooth=BLUR)
            x = rng.standard_normal((n, X.shape[1]))
            x = np.asarray(integrate(field, x, times.tolist(), n_steps=N_STEPS))
            walks.append(
                (x, np.stack([field.velocity(p, float(t)) for p, t in zip(x, times, strict=True)]))
            )
        paths, speeds = (np.concatenate(parts, axis=1) for parts in zip(*walks, strict=True))
        start = paths[0]
        group = np.repeat(np.arange(len(clouds)), [n for _, n in clouds])
        starts = [self.operator, *(self.operators.get(c, self.operator) for c in classes)]
        A, d = self._tensor(np.stack(starts)), X.shape[1]
        forward = lambda e, A, g: torch.einsum("bm,bmn->bn", e, A[g]) if classes else e @ A[0]
        learned = [*self._parameters(), A]
        for tensor in learned:
            tensor.requires_grad_(True)
        optimiser = torch.optim.Adam(learned, lr=rate)
        for _ in range(n_steps):
            chosen = rng.integers(len(start), size=BATCH)
            k, g = rng.integers(N_TIMES, size=BATCH), torch.as_tensor(group[chosen])
            z0 = self._joined(start[chosen], np.zeros(BATCH))
            z1 = self._joined(paths[-1, chosen], np.ones(BATCH))
            z = self._joined(paths[k, chosen], times[k])
            zdot = self._joined(speeds[k, chosen], np.ones(BATCH))
            e, de = self._encode(z, zdot)
            arrived = forward(self._encode(z0), torch.linalg.matrix_exp(A), g)
            parts = {
                "consistency": ((forward(e, A, g) - de) ** 2).mean(),
                "target": ((self._decode(arrived) - z1[:, :d]) ** 2).mean(),
                "phase": ((arrived - self._encode(z1)) ** 2).mean(),
                "reconstruction": ((self._decode(e) - z[:, :d]) ** 2).mean(),
            }
            optimiser.zero_grad()
            sum(parts.values()).backward()
            torch.nn.utils.clip_grad_norm_(learned, 1.0)  # before backward there is nothing to clip
            optimiser.step()
            for name, value in parts.items():
                self.losses.setdefault(name, []).append(float(value.detach()))
        for tensor in learned:
            tensor.requires_grad_(False)
            if not bool(tensor.isfinite().all()):
                raise FloatingPointError("the training diverged: lower rate, or rescale X")
        self.operator, *others = host(A)
        self.operators = self.operators | dict(zip(classes, others, strict=True))
        self.mean = self.features(paths[-1, :count], np.ones(count)).mean(axis=0)

    def advance(self, x: Array, t: float = 1.0, *, y: Any = None) -> np.ndarray:
        """Return where points of time 0 are at time t, in one step of the trained operator, (n, d).

        Parameters
        ----------
        x : array of shape (n, d)
            Standard normal draws give new samples at t = 1.
        t : float
            In [0, 1].
        y : label or array of shape (n,), optional
            Class of each point; without it the operator of all points moves them.
        """
        if check_positive(t, "t", zero=True) > 1:
            raise ValueError(f"t is {t}, expected a time in [0, 1]")
        x = self._points(x)
        e = self.features(x, np.zeros(len(x)))
        wanted = np.full(len(e), y) if np.ndim(y) == 0 else one_label_each(y, len(e))
        for label in [None] if y is None else np.unique(np.asarray(wanted)).tolist():
            rows = slice(None) if label is None else wanted == label
            e[rows] = e[rows] @ expm(t * self._operator(label))
        return self.decode(e)

    def modes(self, y: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the eigenvalues of A, slowest first, and the pictures of their modes in data space, (M,) and (M, d), complex.

        Given a label y, those of the operator of this class.
        """
        values, left = self._spectrum(y)
        return values, self._pictures(np.linalg.inv(left))

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
        x = self._points(x)
        if not isinstance(factors, Mapping):
            raise TypeError(f"factors is {factors!r}, expected a mapping of modes to factors")
        values, left = self._spectrum()
        scale = np.ones(len(values))
        for mode, factor in factors.items():
            factor = float(real_array(factor, f"the factor of mode {mode!r}", ()))
            if check_count(mode, "mode", least=0) >= len(values):
                raise ValueError(f"mode {mode} was asked for, there are {len(values)} from 0 on")
            scale[np.isclose(values, values[mode]) | np.isclose(values, values[mode].conj())] = (
                factor
            )
        parts = (self.features(x, np.ones(len(x))) @ left) * scale
        return self.decode((parts @ np.linalg.inv(left)).real)

    def interpolate(self, a: Array, b: Array, n: int) -> np.ndarray:
        """Return n points from a to b, both of shape (d,), on the straight line between their features, (n, d)."""
        both = [real_array(p, name, (self.n_coordinates,)) for p, name in ((a, "a"), (b, "b"))]
        ends = self.features(np.stack(both), np.ones(2))
        share = np.linspace(0, 1, check_count(n, "n", least=2))[:, None]
        return self.decode((1 - share) * ends[0] + share * ends[1])

    def invertibility(self, x: Array) -> float:
        """Return the root mean square of d(e(x, 1)) - x over that of x about its mean: 0 where decoding undoes encoding."""
        x = self._points(x)
        if (x == x[0]).all():
            raise ValueError("all rows of x are equal: there is no size to measure an error by")
        error = self.decode(self.features(x, np.ones(len(x)))) - x
        spread = np.hypot.reduce((x - x.mean(axis=0)).ravel())
        return float(np.hypot.reduce(error.ravel()) / spread)

    def _operator(self, label: Any) -> np.ndarray:
        if label is None:
            return self.operator
        if not isinstance(label, Hashable) or label not in self.operators:
            known = ", ".join(map(str, self.operators)) or "none: pass y to train"
            raise ValueError(f"class {label!r} was asked for, trained were {known}")
        return self.operators[label]

    def _spectrum(self, label: Any = None) -> tuple[np.ndarray, np.ndarray]:
        values, left = np.linalg.eig(self._operator(label))
        order = np.lexsort((values.imag, -values.real))
        return values[order], left[:, order]
