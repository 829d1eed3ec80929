"""What a trained generator does: new samples, their report and score, and its file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from sklearn.utils.validation import check_is_fitted

from gpukoop.arrays import points, to_host
from gpukoop.centring import varying
from gpukoop.draws import check_count
from gpukoop.estimators.verdict import JudgedMixin
from gpukoop.fitted import check_columns, framed
from gpukoop.flow.loop import seed_from
from gpukoop.generators.checked import check_parameters, device_of
from gpukoop.generators.samples import distance_multiple, flat, rank
from gpukoop.generators.saved import read, write
from gpukoop.generators.training import Source

if TYPE_CHECKING:
    import torch

G = TypeVar("G", bound="DrawingMixin")


class DrawingMixin(JudgedMixin, ABC):
    """The verbs of a generator after ``fit``."""

    latent_dim: int
    device: Any
    features: Any
    network_: torch.nn.Module
    X_: np.ndarray
    varies_: np.ndarray
    centre_: np.ndarray
    width_: float
    classes_: np.ndarray | None
    shape_: tuple[int, ...]
    _source: Source

    def _remark(self) -> str:
        # pixels have one unit, and features their own distance
        image = len(self.shape_) > 1 or self.features is not None
        return "" if image else super()._remark()

    @abstractmethod
    def _network(self, n_inputs: int) -> torch.nn.Module:
        """Return the network before training, for so many latent dimensions and classes."""

    @framed
    def sample(self, n_samples: int = 1, y: Any = None, random_state: Any = None) -> np.ndarray:
        """Return new samples, one evaluation of the network each.

        Parameters
        ----------
        n_samples : int
        y : label or array of shape (n_samples,), optional
            Of a conditional generator: labels to draw for; by default as the data had them.
        random_state : None, int, Generator or RandomState
            None takes the estimator's.

        Returns
        -------
        float32 array of shape (n_samples, d), or (n_samples, height, width, ...) for images; a frame with its columns if
        ``fit`` was given one
        """
        if not hasattr(self, "_source"):
            check_is_fitted(self, "network_")
        check_parameters(self)
        n = check_count(n_samples, "n_samples")
        chosen = self.random_state if random_state is None else random_state
        return self._draw(n, y, seed_from(chosen)).reshape(n, *self.shape_)

    def _measure(self, X: np.ndarray) -> None:
        """Keep the means of the columns, their common width, and which of them vary."""
        self.varies_ = varying(X)
        if not self.varies_.any():
            raise ValueError("all rows of X coincide: there is no law to learn")
        self.centre_ = np.where(self.varies_, X.mean(axis=0, dtype=float), X[0])
        self.width_ = float(np.sqrt(X.var(axis=0, dtype=float).mean()))

    def _draw(self, n: int, y: Any, seed: int) -> np.ndarray:
        if y is not None and self.classes_ is None:
            raise ValueError("y was given, but the generator was fitted without labels")
        chosen = None if y is None else self._indices(n, y)
        scaled = self._source.draw(n, chosen, seed % 2**63) * np.float32(self.width_)
        # A column, or a pixel, that is constant in the data stays so: a network comes near it and no nearer.
        return np.where(self.varies_, scaled, 0) + self.centre_.astype(np.float32)

    def _indices(self, n: int, y: Any) -> np.ndarray:
        labels, known = np.asarray(y), np.asarray(self.classes_)
        if labels.shape not in ((), (n,)):
            raise ValueError(f"y has shape {labels.shape}, expected one label or {n}")
        text = [a.dtype.kind in "US" for a in (labels, known)]
        if labels.dtype.kind not in "iufbUS" or text[0] != text[1]:
            raise TypeError(f"y is {y!r}, expected labels such as {known[:1].tolist()[0]!r}")
        unknown = np.setdiff1d(labels, known)
        if len(unknown):
            raise ValueError(
                f"y has {unknown[:3].tolist()}, which the generator has not seen; it knows {known.tolist()}"
            )
        return np.broadcast_to(np.searchsorted(known, labels), (n,))

    def score(self, X: Any, y: Any = None) -> float:
        """Return minus the energy distance of new samples to X, in units of what as many fresh samples show: about -1 at best."""
        check_is_fitted(self, "network_")
        check_parameters(self)
        check_columns(self, X)
        native = to_host(points(X, "X")[0]) if rank(X) == 2 else flat(X)
        if native.shape[1] != len(self.centre_):
            raise ValueError(
                f"X has {native.shape[1]} numbers a sample, the generator was fitted to {len(self.centre_)}"
            )
        return -distance_multiple(self._draw(len(native), None, 0), native)

    def _loaded(self, state: dict[str, Any], shares: list[float] | None) -> None:
        """Take over a network that was read from a file."""
        device = device_of(self.device)
        network = self._network(self.latent_dim + (0 if shares is None else len(shares)))
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"network is not the one that was saved: {reason}") from error
        self.network_ = network.to(device).requires_grad_(False).eval()
        known = None if shares is None else np.asarray(shares)
        self._source = Source(self.network_, self.latent_dim, device, known)

    def diagnose(self, Z: Any = None, law: Any = None, **options: Any) -> Any:
        """Return a report on new samples against the data: see :func:`gpukoop.diagnose`. Images are flattened."""
        if Z is None:
            check_is_fitted(self, "network_")
            Z = self._draw(min(2_000, len(self.X_)), None, 0)
        return super().diagnose(np.asarray(Z).reshape(len(Z), -1), law, **options)

    def _data(self) -> np.ndarray:
        return self.X_

    def save(self, path: str | Path) -> None:
        """Write network and settings to a file that :meth:`load` reads; whole or not at all.

        Networks of the user are kept by their parameters only: give the same module to ``load``.
        """
        check_is_fitted(self, "network_")
        write(Path(path), self)

    @classmethod
    def load(cls: type[G], path: str | Path, network: Any = None) -> G:
        """Return a fitted generator from a file; it samples, and knows its data no more.

        Parameters
        ----------
        path : path
            Written by :meth:`save`. Only tensors, numbers and strings are read: no code is run.
        network : torch.nn.Module or callable, optional
            As given to the generator that was saved, where that was not the default.
        """
        made: G = read(Path(path), cls, network)
        return made
