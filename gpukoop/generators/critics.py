r"""Critics that are networks: a classifier for the f-divergences, a 1-Lipschitz function for W1.

They live as long as the training. Each step fits them to the batch (a few optimizer steps), then the particles move along
the gradient that the objective makes of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpukoop.flow.ratio import LARGEST_LOG, pull, value
from gpukoop.generators.networks import library, perceptron

if TYPE_CHECKING:
    import torch

STEPS = 5
PENALTY = 10.0
# Of the activation of a critic whose layers are normed, below zero: most of a gradient passes.
SLOPE = 0.5
RATE = 1e-3
# Momentum of Adam that forgets soon: the critic follows particles that move.
BETAS = (0.5, 0.9)


def lipschitz(n_inputs: int, n_outputs: int, *, layers: int) -> torch.nn.Module:
    """Return a perceptron whose layers stretch no length: their spectral norm is 1, and so are the slopes between them at most."""
    nn = library().nn
    norm = nn.utils.parametrizations.spectral_norm
    parts = perceptron(n_inputs, n_outputs, layers=layers)
    return nn.Sequential(
        *(
            norm(part) if isinstance(part, nn.Linear) else nn.LeakyReLU(SLOPE)
            for part in parts.children()
        )
    )


class NetworkCritic:
    r"""A critic network, its optimizer, and the velocity it gives.

    Parameters
    ----------
    objective : str
        "w1", or a divergence of :mod:`gpukoop.flow.ratio`.
    n_features : int
        Columns it sees: those of the points, then those of the classes.
    network : torch.nn.Module, optional
        (b, n_features) -> (b, 1).
    spectral : bool
        Of "w1": 1-Lipschitz by its layers in place of the penalty.
    steps : int
        Optimizer steps at each batch.
    device : torch.device

    Notes
    -----
    f-divergences: logistic regression of particles against samples, velocity :math:`-r f''(r) \nabla s`. W1:
    :math:`\max_f E_Z f - E_X f` with the gradient penalty :math:`10\, E(|\nabla f| - 1)_+^2` between the clouds, velocity
    :math:`-\nabla f`; only slopes above 1 are punished, since an optimal f may be flatter where there is nothing to carry.
    With normed layers (T. Miyato et al., arXiv 1802.05957) no point is steeper than 1, and many are flatter than need be.

    References
    ----------
    .. [1] I. Gulrajani et al., Improved Training of Wasserstein GANs, arXiv 1704.00028.
    """

    def __init__(
        self,
        objective: str,
        n_features: int,
        device: Any,
        network: torch.nn.Module | None = None,
        steps: int = STEPS,
        spectral: bool = False,
    ) -> None:
        torch = library()
        self.objective, self.steps, self.spectral = objective, steps, spectral
        made = network or (lipschitz if spectral else perceptron)(n_features, 1, layers=2)
        self.network = made.to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), RATE, betas=BETAS)
        self.pull = None if objective == "w1" else pull(objective)

    def velocity(
        self, Z: torch.Tensor, X: torch.Tensor, chance: torch.Generator
    ) -> tuple[torch.Tensor, float]:
        """Fit the critic to particles and samples; return the velocity (b, n_features) and the objective's value."""
        torch = library()
        for _ in range(self.steps):
            self.optimizer.zero_grad()
            self._loss(Z, X, chance).backward()
            self.optimizer.step()
        z = Z.detach().requires_grad_()
        with torch.enable_grad():
            s = self.network(z).squeeze(1)
            (slope,) = torch.autograd.grad(s.sum(), z)
        s = s.detach()
        if self.pull is None:
            with torch.no_grad():
                return -slope, float(s.mean() - self.network(X).mean())
        s = s.clamp(-LARGEST_LOG, LARGEST_LOG)
        factor = self.pull(s, torch.exp)
        energy = value(self.objective, s.double().cpu().numpy())
        return -factor[:, None] * slope, energy

    def _loss(self, Z: Any, X: Any, chance: Any) -> Any:
        torch = library()
        at_z, at_x = self.network(Z).squeeze(1), self.network(X).squeeze(1)
        if self.pull is not None:
            soft = torch.nn.functional.softplus
            return (soft(-at_z).mean() + soft(at_x).mean()) / 2
        if self.spectral:
            return at_x.mean() - at_z.mean()
        size = min(len(Z), len(X))
        mix = torch.rand(size, 1, generator=chance, device=chance.device).to(Z)
        between = (mix * Z[:size] + (1 - mix) * X[:size]).requires_grad_()
        (slope,) = torch.autograd.grad(self.network(between).sum(), between, create_graph=True)
        over = (slope.norm(dim=1) - 1).clamp_min(0)
        return at_x.mean() - at_z.mean() + PENALTY * (over**2).mean()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what a checkpoint kept."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
