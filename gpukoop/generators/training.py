r"""Training of a generator network by a flow.

========== ==================================================================
G          network, (b, latent) -> (b, d)
y, X       latent points and samples of a batch
v          velocity of the objective at the particles G(y), towards X
h, K, tau  step size, persistence, length of a JKO step
========== ==================================================================

Forward Euler: targets :math:`\zeta = G(y) + h\, v(G(y))` stay while the optimizer takes K steps on

.. math:: \tfrac{1}{2 b} \sum_i |\zeta_i - G(y_i)|^2 .

K = 1 is the generator step of a GAN with that objective, large K makes the particles take the flow's step. A JKO step asks
for the velocity again at each of the K steps and adds the pull :math:`-(G(y) - G_k(y)) / \tau` towards where it began.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gpukoop.generators.critics import NetworkCritic
from gpukoop.generators.networks import check_network, checked_output, library
from gpukoop.generators.objectives import Choices
from gpukoop.generators.seeing import Seen
from gpukoop.generators.toward import in_spaces

if TYPE_CHECKING:
    import torch


# Points that go through the network at once when it samples.
DRAWN = 10_000


@dataclass(frozen=True)
class Schedule:
    """What decides a step beside the objective."""

    batch_size: int
    n_iter: int
    step_size: float
    persistence: int
    tau: float | None
    learning_rate: float
    ema_decay: float
    clip: float | None
    mixed_precision: bool

    @classmethod
    def of(cls, generator: Any, device: Any) -> Schedule:
        """Return that of an estimator on a device."""
        number = lambda value: None if value is None else float(value)
        return cls(
            generator.batch_size,
            generator.n_iter,
            float(generator.step_size),
            generator.persistence,
            number(generator.jko),
            float(generator.learning_rate),
            float(generator.ema_decay),
            number(generator.clip),
            bool(generator.mixed_precision) and device.type == "cuda",
        )


@dataclass
class Source:
    """What samples: a network, and the standard normal latent points that go in.

    Attributes
    ----------
    network : torch.nn.Module
    latent_dim : int
    device : torch.device
    shares : array of shape (c,), optional
        How often each class occurs.
    """

    network: torch.nn.Module
    latent_dim: int
    device: Any
    shares: np.ndarray | None = None

    def latent(self, labels: torch.Tensor | int, chance: torch.Generator) -> torch.Tensor:
        """Return latent points for one-hot labels, or so many without."""
        torch = library()
        size = labels if isinstance(labels, int) else len(labels)
        y = torch.randn(size, self.latent_dim, generator=chance, device=self.device)
        return y if isinstance(labels, int) else torch.cat([y, labels.to(y)], dim=1)

    def draw(self, n: int, chosen: np.ndarray | None, seed: int) -> np.ndarray:
        """Return n new points of the classes with these indices, on the host."""
        torch = library()
        chance = torch.Generator(device=self.device).manual_seed(seed)
        if self.shares is not None:
            if chosen is None:
                chosen = np.random.default_rng(seed).choice(len(self.shares), n, p=self.shares)
            one_hot = np.eye(len(self.shares), dtype=np.float32)[chosen]
        parts = []
        with torch.no_grad():
            for start in range(0, n, DRAWN):
                size = min(DRAWN, n - start)
                labels: Any = size
                if self.shares is not None:
                    labels = torch.as_tensor(one_hot[start : start + size], device=self.device)
                parts.append(self.network(self.latent(labels, chance)).float().cpu().numpy())
        return np.concatenate(parts)


class Training:
    """A network on its way: parameters, their running mean, optimizer and random streams.

    Parameters
    ----------
    network : torch.nn.Module
    X : array of shape (m, d), float32
        Samples in units of their width.
    classes : array of shape (m, c), optional
        One-hot labels.
    objective : str
    spaces : list of (slice, Choices)
        Columns of each space that the objective is summed over, and its choices; one for a network critic.
    critic : NetworkCritic, optional
    schedule : Schedule
    latent_dim : int
    device : torch.device
    seed : int
    seen : Seen, optional
        Features in which particles and samples are compared.
    features : array of shape (m, p), optional
        Those of the samples.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        X: np.ndarray,
        classes: np.ndarray | None,
        objective: str,
        spaces: list[tuple[slice, Choices]],
        critic: NetworkCritic | None,
        schedule: Schedule,
        latent_dim: int,
        device: Any,
        seed: int,
        seen: Seen | None = None,
        features: np.ndarray | None = None,
    ) -> None:
        torch = library()
        self.network, self.critic, self.schedule = network.to(device), critic, schedule
        check_network(self.network)
        # What samples neither drops units nor looks at the others of its batch, whatever the network does while it learns.
        self.mean = copy.deepcopy(self.network).requires_grad_(False).eval()
        shares = None if classes is None else classes.mean(axis=0, dtype=float)
        self.source = Source(self.mean, latent_dim, device, shares)
        self.objective, self.spaces, self.device = objective, spaces, device
        self.seen = seen
        self.n_outputs = X.shape[1]
        self.X = torch.as_tensor(X if features is None else features, device=device)
        self.classes = None if classes is None else torch.as_tensor(classes, device=device)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), schedule.learning_rate, betas=(0.9, 0.99)
        )
        self.annealing = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, max(1, schedule.n_iter), eta_min=0.02 * schedule.learning_rate
        )
        self.rng = np.random.default_rng(seed)
        self.chance = torch.Generator(device=device).manual_seed(seed)
        self.scaler = torch.amp.GradScaler(enabled=schedule.mixed_precision)
        self.iteration = 0

    def step(self) -> dict[str, float]:
        """Take one step on a batch of samples; return what it measured."""
        torch = library()
        plan = self.schedule
        size = min(plan.batch_size, len(self.X))
        rows = torch.as_tensor(self.rng.choice(len(self.X), size, replace=False)).to(self.device)
        X, classes = self.X[rows], None if self.classes is None else self.classes[rows]
        # Particles have the classes of the samples, row by row: each class is a problem of its own with as many of both.
        y = self.source.latent(size if classes is None else classes, self.chance)
        velocity_at = in_spaces(
            self.objective, self.spaces, self.critic, X, classes, self.rng, self.chance
        )
        start: Any = None
        target: Any = None
        measures: dict[str, float] = {}
        for k in range(plan.persistence):
            particles = self._forward(y)
            if self.seen is not None:
                particles = self.seen(particles)
                if not particles.requires_grad:
                    raise TypeError(
                        "features returned a tensor that does not depend on the points: PyTorch finds no gradient through it"
                    )
            if target is None or plan.tau is not None:
                velocity, energy = velocity_at(particles.detach(), self.iteration)
                if k == 0:
                    start = particles.detach()
                    measures = {"energy": energy, "velocity": _rms(velocity)}
                if plan.tau is not None:
                    velocity = velocity - (particles.detach() - start) / plan.tau
                target = particles.detach() + plan.step_size * velocity
            loss = ((target - particles) ** 2).sum() / (2 * size)
            self._require(bool(loss.isfinite()))
            self._descend(loss)
        self.annealing.step()
        self._average()
        self.iteration += 1
        measures["regression_error"] = float(np.sqrt(2 * float(loss.detach())))
        return measures

    def finished(self) -> torch.nn.Module:
        """Return the averaged network; raise where the last step left the finite numbers, which no further loss would see."""
        self._require(all(bool(part.isfinite().all()) for part in self.mean.parameters()))
        return self.mean

    def _require(self, finite: bool) -> None:
        if not finite:
            raise FloatingPointError(
                f"the training left the finite numbers at step {self.iteration}: lower learning_rate or step_size"
            )

    def _forward(self, y: torch.Tensor) -> torch.Tensor:
        torch = library()
        with torch.autocast(self.device.type, enabled=self.schedule.mixed_precision):
            try:
                found = self.network(y)
            except (RuntimeError, ValueError, TypeError) as error:
                if self.iteration:  # it took such points before: memory, for one
                    raise
                reason = " ".join(str(error).split())[:200]
                raise ValueError(
                    f"network does not take float32 latent points of shape {tuple(y.shape)}, columns of the latent dimension "
                    f"and the classes: {reason}"
                ) from error
        return checked_output(found, len(y), self.n_outputs).float()

    def _descend(self, loss: torch.Tensor) -> None:
        torch = library()
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.schedule.clip is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.schedule.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _average(self) -> None:
        """Move the running mean of the parameters; young means forget faster."""
        torch = library()
        decay = min(self.schedule.ema_decay, (1 + self.iteration) / (10 + self.iteration))
        with torch.no_grad():
            for mean, now in zip(self.mean.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)
            for kept, latest in zip(self.mean.buffers(), self.network.buffers(), strict=True):
                kept.copy_(latest)

    def state(self) -> dict[str, Any]:
        """Return everything that the following steps depend on: tensors, numbers, strings and containers of them."""
        return {
            "iteration": self.iteration,
            "network": self.network.state_dict(),
            "mean": self.mean.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "annealing": self.annealing.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": self.rng.bit_generator.state,
            "chance": self.chance.get_state(),
            "critic": None if self.critic is None else self.critic.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state: the following steps give the bits they would have given."""
        self.network.load_state_dict(state["network"])
        self.mean.load_state_dict(state["mean"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.annealing.load_state_dict(state["annealing"])
        self.scaler.load_state_dict(state["scaler"])
        self.rng.bit_generator.state = state["rng"]
        self.chance.set_state(state["chance"])
        if self.critic is not None:
            self.critic.restore(state["critic"])
        self.iteration = state["iteration"]


def _rms(x: torch.Tensor) -> float:
    return float((x.double() ** 2).sum(dim=1).mean().sqrt())
