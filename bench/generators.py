"""Networks trained by flows on laws of the plane: persistence beside a WGAN, JKO steps on and off, kernels of the MMD and of drifting."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

import gpukoop as gk
from gpukoop import datasets
from gpukoop.generators import perceptron
from gpukoop.generators.samples import distance_multiple

TITLE = "Generators on laws of the plane: processor seconds, one seed; distance 1 is as good as fresh samples"
SAMPLES, JUDGED = 2_000, 2_000
# Looks of a run on its way.
LOOKS = 30
OBJECTIVES = (
    "sinkhorn",
    "w2",
    "sliced-w2",
    "mmd",
    "energy",
    "sliced-energy",
    "drmmd",
    "kale",
    "drift",
    "kl",
    "reverse-kl",
    "reverse-chi2",
    "js",
    "hellinger",
    "tv",
    "alpha(0.5)",
    "chi2",
    "w1",
)
# Objectives that a network may classify for in place of the closed form.
CRITICS = (
    "kl",
    "reverse-kl",
    "chi2",
    "reverse-chi2",
    "js",
    "hellinger",
    "tv",
    "alpha(0.5)",
)
LAWS = ("eight_gaussians", "banana", "checkerboard")
# Optimizer steps a batch, and processor seconds of each run and of the WGAN. The plan of a batch alone keeps points between the modes,
# fewer with larger batches (bench/results.md): batches are half of the samples.
PERSISTENCE, SECONDS = (1, 5, 10, 20), 25.0
PERSISTENT: dict[str, Any] = {"objective": "w2", "batch_size": 1_000, "learning_rate": 1e-2}
COMMON: dict[str, Any] = {
    "latent_dim": 2,
    "batch_size": 256,
    "random_state": 0,
    "network": lambda n, shape: perceptron(n, shape[0], hidden=128, layers=2),
}


def draw(law: str, n: int, seed: int) -> np.ndarray:
    """Return samples of a law of the plane."""
    return np.asarray(getattr(datasets, law)(n, random_state=seed), dtype=np.float32)


def off_mode(Z: np.ndarray) -> float:
    """Return the share of points farther than three deviations from all eight centres; 1.1 % of the law are."""
    centres = datasets.exact("eight_gaussians")["centres"]
    return float((np.linalg.norm(Z[:, None] - centres, axis=2).min(axis=1) > 0.3).mean())


class Watch:
    """Off-mode share and distance against processor seconds, the looking itself not counted."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.curve = seconds, []
        self.fresh = draw("eight_gaussians", JUDGED, 99)
        self.spent, self.since = 0.0, time.process_time()

    def __call__(self, sample: Any, loss: float) -> bool:
        """Look at every so many seconds; return whether they are all spent."""
        self.spent += time.process_time() - self.since
        if self.spent >= self.seconds / LOOKS * (1 + len(self.curve)):
            self.look(sample, loss)
        self.since = time.process_time()
        return self.spent >= self.seconds

    def look(self, sample: Any, loss: float) -> None:
        """Judge new samples."""
        Z = sample(JUDGED)
        self.curve.append((self.spent, off_mode(Z), distance_multiple(Z, self.fresh), loss))

    def row(self, who: str) -> dict[str, Any]:
        """Return what the curve says."""
        seconds, share, distance, _ = (np.asarray(x) for x in zip(*self.curve, strict=True))
        there = np.flatnonzero(share <= 0.05)
        return {
            "who": who,
            "CPU s": round(float(seconds[-1]), 1),
            "CPU s to 5 % off": round(float(seconds[there[0]]), 1) if len(there) else None,
            "off-mode %": round(100 * float(share[-1]), 1),
            "distance": round(float(distance[-1]), 2),
        }


def persistent(K: int, seconds: float) -> Watch:
    """Train by the exact W2 flow of batches with K optimizer steps each, as many batches as there is time for."""
    X = draw("eight_gaussians", SAMPLES, 0)
    given = COMMON | PERSISTENT | {"persistence": K, "validation_fraction": 0.0}
    clocks: list[float] = []
    # The rate falls to its end with the last batch: how many there are has to be known before.
    look = lambda *_: clocks.append(time.process_time())
    gk.Generator(**given, n_iter=16).fit(X, callback=look)
    n_iter = max(2, int(seconds / np.median(np.diff(clocks)[-8:])))
    watch = Watch(seconds)

    def seen(step: int, g: Any, measures: dict[str, float]) -> None:
        watch(g.sample, measures["energy"])

    g = gk.Generator(**given, n_iter=n_iter).fit(X, callback=seen)
    watch.look(g.sample, float(g.history_["energy"][-1]))
    return watch


def wgan(seconds: float, *, critic_steps: int = 5, penalty: float = 0.1) -> Watch:
    """Train a WGAN-GP in plain PyTorch: the same generator, a critic of its size, five critic steps each, the penalty of its toy tasks."""
    import torch

    torch.manual_seed(0)
    X = torch.as_tensor(draw("eight_gaussians", SAMPLES, 0))
    network, critic = (perceptron(2, out, hidden=128, layers=2) for out in (2, 1))
    a, b = (torch.optim.Adam(net.parameters(), 1e-3, betas=(0.5, 0.9)) for net in (network, critic))
    size = COMMON["batch_size"]

    def sample(n: int) -> np.ndarray:
        with torch.no_grad():
            return network(torch.randn(n, 2)).numpy()

    watch, over = Watch(seconds), False
    while not over:
        for _ in range(critic_steps):
            x, z = X[torch.randint(len(X), (size,))], network(torch.randn(size, 2)).detach()
            between = (z + torch.rand(size, 1) * (x - z)).requires_grad_()
            slope = torch.autograd.grad(critic(between).sum(), between, create_graph=True)[0]
            gap = critic(x).mean() - critic(z).mean()
            loss = -gap + penalty * ((slope.norm(dim=1) - 1) ** 2).mean()
            b.zero_grad()
            loss.backward()
            b.step()
        a.zero_grad()
        (-critic(network(torch.randn(size, 2))).mean()).backward()
        a.step()
        over = watch(sample, float(gap.detach()))
    watch.look(sample, float(gap.detach()))
    return watch


def persistence_rows(seconds: float = SECONDS) -> tuple[list[dict[str, Any]], dict[str, Watch]]:
    """Return the rows of the persistence table, and the curves behind them."""
    curves = {f"W2 flow, K = {K}": persistent(K, seconds) for K in PERSISTENCE}
    curves["WGAN-GP"] = wgan(seconds)
    return [watch.row(who) for who, watch in curves.items()], curves


def figure(curves: dict[str, Watch]) -> Any:
    """Return off-mode share and loss against processor seconds."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = made.subplots(1, 2)
    for who, watch in curves.items():
        seconds, share, distance, _ = (np.asarray(x) for x in zip(*watch.curve, strict=True))
        left.plot(seconds, 100 * share, label=who)
        right.plot(seconds, distance, label=who)
    left.axhline(100 * np.exp(-4.5), color="k", lw=0.8, ls=":")
    right.axhline(1, color="k", lw=0.8, ls=":")
    left.set(xlabel="processor seconds", ylabel="beyond three deviations of all modes, %")
    right.set(xlabel="processor seconds", ylabel="energy distance / that of fresh samples")
    right.set_yscale("log")
    left.legend(frameon=False, fontsize=8, title="K: optimizer steps a batch", title_fontsize=8)
    return made


def trained(law: str, n_iter: int, seed: int = 0, **given: Any) -> dict[str, Any]:
    """Return distance to fresh samples and processor seconds of one training."""
    start = time.process_time()
    own = {
        "batch_size": 128,
        "n_iter": n_iter,
        "validation_fraction": 0.0,
        "random_state": seed,
    }
    g = gk.Generator(**(COMMON | own | given))
    try:
        g.fit(draw(law, SAMPLES, seed))
    except FloatingPointError:
        return {"distance": float("inf"), "CPU s": round(time.process_time() - start, 1)}
    spent = time.process_time() - start
    distance = distance_multiple(g.sample(JUDGED), draw(law, JUDGED, 99))
    return {"distance": round(distance, 2), "CPU s": round(spent, 1)}


def jko_row(
    objective: str,
    law: str,
    n_iter: int = 100,
    K: int = 4,
    *,
    critic: str = "kernel",
    seed: int = 0,
) -> dict[str, Any]:
    """Return forward Euler beside JKO steps, as many optimizer steps each."""
    given = {"objective": objective, "critic": critic, "persistence": K, "seed": seed}
    off = trained(law, n_iter, **given)
    on = trained(law, n_iter, jko=0.5, **given)
    return {
        "objective": objective if critic == "kernel" else f"{objective}, network",
        "law": law,
        "seed": seed,
        **{f"Euler {k}": v for k, v in off.items()},
        **{f"JKO {k}": v for k, v in on.items()},
    }


def kernel_rows(law: str, n_iter: int = 400) -> list[dict[str, Any]]:
    """Return the MMD and drifting with one narrow scale, one wide, the mixture, and persistence."""
    X = draw(law, SAMPLES, 0)
    width = float(np.sqrt(X.var(axis=0).sum()))
    ways: dict[str, dict[str, Any]] = {
        "one narrow scale, .03 widths": {"scale": 0.03 * width},
        "one wide scale, 1 width": {"scale": width},
        "mixture (default)": {},
        "mixture, persistence 5": {"persistence": 5},
    }
    table = []
    for way, given in ways.items():
        row: dict[str, Any] = {"law": law, "kernel": way}
        steps = n_iter // given.get("persistence", 1)
        for objective in ("mmd", "drift"):
            found = trained(law, steps, objective=objective, **given)
            row |= {f"{objective} {k}": v for k, v in found.items()}
        table.append(row)
    return table


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Return all three tables one after the other; without PyTorch one row that says so."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return [{"who": "PyTorch is not installed"}]
    if quick:
        return [
            *persistence_rows(0.2)[0],
            jko_row("energy", LAWS[0], 5),
            *kernel_rows(LAWS[0], 10),
        ]
    return [
        *persistence_rows()[0],
        *(
            jko_row(objective, law, critic=critic, seed=seed)
            for critic, objectives in (("kernel", OBJECTIVES), ("network", CRITICS))
            for objective in objectives
            for law in LAWS
            for seed in (0, 1)
        ),
        *(row for law in LAWS for row in kernel_rows(law)),
    ]
