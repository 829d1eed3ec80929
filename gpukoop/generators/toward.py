"""Where a batch of particles should go: the velocity of the objective, from a critic, from sums, or for all classes at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpukoop.flow import groups
from gpukoop.flow.memory import Kept
from gpukoop.generators.critics import NetworkCritic
from gpukoop.generators.networks import library
from gpukoop.generators.objectives import MANY, Choices, closed_form

if TYPE_CHECKING:
    import torch

# Particles and the number of the step -> velocity and the objective's value.
Toward = Callable[[Any, int], tuple[Any, float]]


def toward(
    objective: str,
    choices: Choices,
    critic: NetworkCritic | None,
    X: torch.Tensor,
    classes: torch.Tensor | None,
    rng: np.random.Generator,
    chance: torch.Generator,
) -> Toward:
    """Return the velocity towards samples X (b, d); particles have the classes of the samples, row by row.

    Parameters
    ----------
    objective, choices, critic
        As in the training.
    X : tensor of shape (b, d)
    classes : tensor of shape (b, c), optional
        One-hot labels.
    rng, chance : generators
        Of the host, and of the device.
    """
    torch = library()
    if critic is not None:
        if classes is None:
            return lambda Z, step: critic.velocity(Z, X, chance)

        def judged(Z: Any, step: int) -> tuple[Any, float]:
            both = [torch.cat([cloud, classes], dim=1) for cloud in (Z, X)]
            velocity, energy = critic.velocity(both[0], both[1], chance)
            return velocity[:, : Z.shape[1]], energy

        return judged
    labels = X.new_zeros(len(X)).long() if classes is None else classes.argmax(1)
    if X.device.type == "cpu":
        at_once = grouped(objective, choices, X.numpy(), labels.numpy())
        if at_once is not None:
            return lambda Z, step: _as_tensors(at_once(Z.detach().numpy()))
    make = closed_form(objective)
    rows = [torch.nonzero(labels == c).squeeze(1) for c in torch.unique(labels)]
    fields = [(r, make(_array(X[r]), choices, rng)) for r in rows]

    def summed(Z: Any, step: int) -> tuple[Any, float]:
        velocity, energy = torch.empty_like(Z), 0.0
        for r, field in fields:
            motion = field(_array(Z[r]), Kept(), rng, step)
            velocity[r] = _tensor(motion.velocity).to(Z)
            energy += float(motion.energy) * len(r) / len(Z)
        return velocity, energy

    return summed


def in_spaces(
    objective: str,
    spaces: Sequence[tuple[slice, Choices]],
    critic: NetworkCritic | None,
    X: torch.Tensor,
    *rest: Any,
) -> Toward:
    """Return the velocity of :func:`toward` in each of several spaces that lie side by side, and the sum of their objectives."""
    torch = library()
    if len(spaces) == 1:
        return toward(objective, spaces[0][1], critic, X, *rest)
    ways = [toward(objective, c, critic, X[:, part].contiguous(), *rest) for part, c in spaces]

    def summed(Z: Any, step: int) -> tuple[Any, float]:
        found = [
            way(Z[:, part].contiguous(), step) for way, (part, _) in zip(ways, spaces, strict=True)
        ]
        return torch.cat([velocity for velocity, _ in found], dim=1), sum(e for _, e in found)

    return summed


def grouped(
    objective: str, choices: Choices, X: np.ndarray, labels: np.ndarray
) -> Callable[[np.ndarray], tuple[np.ndarray, float]] | None:
    """Return the velocity of all classes at once where there is such a way and it is small enough, else None."""
    if objective not in ("mmd", "energy", "drift", "sinkhorn") or choices.backend is not None:
        return None
    batch, many = groups.Groups(labels), X.shape[1] > MANY
    largest = int(batch.sizes.max())
    # In few dimensions the blur is small, and the fixed number of Sinkhorn's iterations here does not reach it.
    if len(batch.sizes) * largest**2 > groups.LARGEST or (objective == "sinkhorn" and not many):
        return None
    centre = X.mean(axis=0)
    at = (X - centre)[batch.rows]
    scales = choices.scales
    if objective in ("mmd", "energy"):
        mixture = (scales, choices.weights) if objective == "mmd" else ((), ())
        # What the samples have among themselves stays while the particles move: JKO steps ask again and again.
        own = groups.among(at, batch.a, *mixture)
        flow = lambda z: groups.mmd(z, at, batch.a, *mixture, own, unbiased=True)
    elif objective == "drift":
        flow = lambda z: groups.drift(z, at, batch.a, scales, [1 / len(scales)] * len(scales))
    else:
        flow = lambda z: groups.sinkhorn(z, at, batch.a, choices.blur, unbiased=True)

    def velocity(Z: np.ndarray) -> tuple[np.ndarray, float]:
        found = flow((Z - centre)[batch.rows])
        return batch.spread(found.velocity), batch.mean(found.energy)

    return velocity


def _as_tensors(found: tuple[np.ndarray, float]) -> tuple[torch.Tensor, float]:
    return library().from_numpy(found[0]), found[1]


def _array(x: torch.Tensor) -> Any:
    """Return the tensor's memory as an array of the same device."""
    if x.device.type == "cpu":
        return x.detach().numpy()
    import cupy

    return cupy.from_dlpack(x.detach().contiguous())


def _tensor(x: Any) -> torch.Tensor:
    torch = library()
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else torch.from_dlpack(x)
