"""Critics that are networks: the velocities they give beside closed forms between normal laws."""

import math

import numpy as np
import pytest

from gpukoop.flow.ratio import PULLS

torch = pytest.importorskip("torch")

from gpukoop.generators.critics import NetworkCritic  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    """Small networks on one thread: the same bits whatever else the machine does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# f'(r) of each divergence, typed from the definitions of f; f'(r) = tanh(log(r) / 2) / 2 is how total variation is smoothed.
SLOPES = {
    "kl": lambda r: np.log(r) + 1,
    "reverse-kl": lambda r: -1 / r,
    "chi2": lambda r: 2 * (r - 1),
    "reverse-chi2": lambda r: 1 - 1 / r**2,
    "js": lambda r: np.log(2 * r / (r + 1)),
    "hellinger": lambda r: 1 - r**-0.5,
    "tv": lambda r: (r - 1) / (r + 1) / 2,
    "alpha(0.5)": lambda r: (0.5 * r**-0.5 - 0.5) / -0.25,
    "alpha(-1)": lambda r: (1 - r**-2) / 2,
}
# E f(r) under the reference, for particles N(m, I) and samples N(0, I), |m| = a.
DIVERGENCES = {
    "kl": lambda a: a**2 / 2,
    "reverse-kl": lambda a: a**2 / 2,
    "chi2": lambda a: math.expm1(a**2),
    "hellinger": lambda a: 2 - 2 * math.exp(-(a**2) / 8),
    "tv": lambda a: math.erf(a / 2 / math.sqrt(2)),
    "alpha(0.5)": lambda a: 4 - 4 * math.exp(-(a**2) / 8),
}


class LogRatio(torch.nn.Module):
    """log of N(mean, I) over N(0, diag(variances)), which a quadratic network knows exactly."""

    def __init__(self, mean, variances):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.as_tensor(mean, dtype=torch.float32))
        self.variances = torch.as_tensor(variances, dtype=torch.float32)

    def forward(self, x):
        far = (x**2 / self.variances).sum(1) - ((x - self.mean) ** 2).sum(1)
        return ((far + self.variances.log().sum()) / 2)[:, None]


@pytest.mark.parametrize("name", SLOPES)
def test_the_velocity_of_a_perfect_classifier_is_that_of_the_divergence(name):
    """Minus the gradient of f'(r), by central differences of the densities of two normal laws in float64."""
    mean, variances = np.array([0.7, -0.4]), np.array([1.5, 0.8])
    ratio = lambda x: np.exp(
        ((x**2 / variances).sum(1) - ((x - mean) ** 2).sum(1) + np.log(variances).sum()) / 2
    )
    Z = np.random.default_rng(0).normal(size=(200, 2)) + mean
    h = 1e-5
    expected = np.stack(
        [
            -(SLOPES[name](ratio(Z + e)) - SLOPES[name](ratio(Z - e))) / (2 * h)
            for e in h * np.eye(2)
        ],
        axis=1,
    )
    critic = NetworkCritic(name, 2, torch.device("cpu"), network=LogRatio(mean, variances), steps=0)
    cloud = torch.as_tensor(Z, dtype=torch.float32)
    velocity, _ = critic.velocity(cloud, cloud, torch.Generator())
    # Float32: log ratios of at most 8 from squares of at most 32, to some units each, exponentiated twice at most.
    error = np.abs(velocity.numpy() - expected).max(axis=1)
    assert (error <= 1e-4 * (1e-2 + np.abs(expected).max(axis=1))).all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_energy_of_a_perfect_classifier_is_the_divergence(name):
    m, n = np.array([0.5, 0.0]), 40_000
    Z = torch.as_tensor(np.random.default_rng(1).normal(size=(n, 2)) + m, dtype=torch.float32)
    critic = NetworkCritic(name, 2, torch.device("cpu"), network=LogRatio(m, np.ones(2)), steps=0)
    _, energy = critic.velocity(Z, Z - torch.as_tensor(m).float(), torch.Generator())
    # f(r) / r over the particles: its deviation is below 1 for all of these, at |m| = .5
    assert energy == pytest.approx(DIVERGENCES[name](0.5), abs=4 * 1.0 / math.sqrt(n))


@pytest.mark.parametrize("name", ["kl", "hellinger", "tv", "alpha(0.5)"])
def test_a_trained_classifier_gives_the_velocity_of_two_normal_laws(name):
    """A linear network is logistic regression: its velocity has the error of 10,000 samples, four deviations of it allowed."""
    torch.manual_seed(0)
    a, n = 1.0, 5_000
    chance = torch.Generator().manual_seed(0)
    Y, Z = torch.randn(n, 1, generator=chance), torch.randn(n, 1, generator=chance) + a
    critic = NetworkCritic(name, 1, torch.device("cpu"), network=torch.nn.Linear(1, 1), steps=800)
    for group in critic.optimizer.param_groups:
        group["lr"] = 1e-2
    velocity, _ = critic.velocity(Z, Y, chance)
    s = a * Z.double().numpy()[:, 0] - a**2 / 2
    exact = -a * PULLS.get(name, lambda s, exp: exp(-0.5 * s))(s, np.exp)
    # Fisher information of (slope, intercept): the mean over both clouds of p (1 - p) (x, 1)(x, 1)^T
    x = np.concatenate([Y.numpy()[:, 0], Z.numpy()[:, 0]]).astype(float)
    p = 1 / (1 + np.exp(-(a * x - a**2 / 2)))
    phi = np.stack([x, np.ones_like(x)])
    covariance = np.linalg.inv((phi * p * (1 - p)) @ phi.T)
    h = 1e-6
    of = lambda b, c: (
        -b * PULLS.get(name, lambda s, exp: exp(-0.5 * s))(b * Z.numpy()[:, 0] + c, np.exp)
    )
    grad = np.stack(
        [
            (of(a + h, -(a**2) / 2) - of(a - h, -(a**2) / 2)) / (2 * h),
            (of(a, -(a**2) / 2 + h) - of(a, -(a**2) / 2 - h)) / (2 * h),
        ]
    )
    deviation = np.sqrt(np.einsum("in,ij,jn->n", grad, covariance, grad))
    off = np.abs(velocity.numpy()[:, 0] - exact)
    assert (off <= 4 * deviation + 1e-3 * np.abs(exact)).all()


@pytest.mark.parametrize("name", ["w1", *PULLS, "alpha(0.5)"])
def test_a_network_critic_points_from_one_normal_law_to_another(name):
    torch.manual_seed(0)
    chance = torch.Generator().manual_seed(0)
    Y, Z = torch.randn(256, 2, generator=chance), torch.randn(256, 2, generator=chance) + 2.0
    critic = NetworkCritic(name, 2, torch.device("cpu"), steps=60)
    velocity, energy = critic.velocity(Z, Y, chance)
    assert energy > 0
    direction = velocity.mean(0) / velocity.mean(0).norm()
    assert float(direction @ torch.tensor([-1.0, -1.0])) / math.sqrt(2) > 0.9


def test_a_critic_of_normed_layers_is_nowhere_steeper_than_one():
    """The way between two shifted laws is 2 along one axis; the dual value of a 1-Lipschitz function is at most that."""
    torch.manual_seed(0)
    chance = torch.Generator().manual_seed(0)
    Y, Z = torch.randn(256, 2, generator=chance), torch.randn(256, 2, generator=chance)
    Z[:, 0] += 2
    critic = NetworkCritic("w1", 2, torch.device("cpu"), steps=120, spectral=True)
    velocity, energy = critic.velocity(Z, Y, chance)
    assert 1.0 < energy < 2.2
    assert (velocity[:, 0] < 0).all()
    anywhere = 3 * torch.randn(2_000, 2, generator=chance)
    z = anywhere.requires_grad_()
    (slope,) = torch.autograd.grad(critic.network.eval()(z).sum(), z)
    # norms are found by power iteration, some percent short
    assert slope.norm(dim=1).max() < 1.1
