"""The demonstrations of the command line: data made, model fitted, particles moved, results judged.

Every quality figure stands beside its iid floor (the same figure of independent draws of the law, so what a
perfect sampler would score at this size), the training data's own value, and the exact value where one exists.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from gpukoop import datasets, metrics

# Points of the exact law that distances are measured to, and repetitions behind an iid floor.
REFERENCE = 10_000
REPEATS = 4


@dataclass(frozen=True)
class Row:
    """One line of the metrics table; None where a value does not apply."""

    name: str
    particles: float
    iid: tuple[float, float] | None = None
    data: float | None = None
    exact: float | None = None


@dataclass(frozen=True)
class Result:
    """What a demonstration leaves: clouds for the figure, the table, and lines of text."""

    law: str
    start: np.ndarray
    halfway: np.ndarray
    particles: np.ndarray
    rows: list[Row]
    notes: list[str]
    frames: list[np.ndarray] = field(default_factory=list)


class Watch:
    """A callback that keeps clouds for the figure and the animation.

    ``early`` is the cloud after a fortieth of the steps, while the particles still travel.
    """

    def __init__(self, n_iter: int, n_frames: int) -> None:
        self.every = max(1, n_iter // max(1, n_frames))
        self.first = max(1, n_iter // 40)
        self.early: np.ndarray = np.empty((0, 0))
        self.frames: list[np.ndarray] = []

    def __call__(self, i: int, Z: Any) -> None:
        """Keep a copy of every so-manieth cloud."""
        if i + 1 == self.first:
            self.early = np.array(Z)
        if (i + 1) % self.every == 0:
            self.frames.append(np.array(Z))


def judge(law: str, particles: np.ndarray, data: np.ndarray, seed: int) -> list[Row]:
    """Return the metrics of particles, of the data they were learnt from, and of iid draws of the law."""
    known = datasets.exact(law)
    make = getattr(datasets, law)
    if law in ("quadruple_well", "double_well"):
        make = partial(make, independent=True)
    n = len(particles)
    rng = np.random.default_rng([seed, 1])
    drawn = make(REFERENCE, random_state=rng)
    reference = drawn[0] if isinstance(drawn, tuple) else drawn
    shown = data[np.linspace(0, len(data) - 1, min(len(data), n)).astype(int)]

    def row(name: str, score: Callable[[np.ndarray], float], exact: float | None = None) -> Row:
        floor = metrics.iid_floor(
            lambda X, _: score(X), make, n, n_repeats=REPEATS, reference=reference, random_state=rng
        )
        return Row(name, score(particles), floor, score(shown), exact)

    both = np.concatenate([reference, shown])
    kernel = metrics.Gaussian(metrics.median_scale(both))
    rows = [
        row("MMD to the law (median scale)", lambda X: metrics.mmd(X, reference, kernel)),
        row("sliced W2 to the law", lambda X: metrics.sliced_wasserstein(X, reference)),
    ]
    if "coverage" in known:
        rows.append(
            row(
                f"coverage of the wells (radius {known['radius']:g}), per cent",
                lambda X: metrics.coverage(X, known["centres"], known["radius"]),
                known["coverage"],
            )
        )
    if "mean_potential" in known:
        rows.append(
            row(
                "mean potential",
                lambda X: float(datasets.potential(law, X).mean()),
                known["mean_potential"],
            )
        )
    rows += [
        row("nearest neighbour distance (diversity)", metrics.nearest_neighbour_distance),
        row(
            "trace of the covariance (diversity)",
            lambda X: float(np.trace(np.cov(X.T))),
            float(np.trace(known["covariance"])),
        ),
    ]
    return rows


def table(result: Result) -> str:
    """Return the metrics table as aligned text."""
    head = ("", "particles", "iid floor", "data", "exact")
    lines: list[tuple[str, ...]] = [head]
    for r in result.rows:
        iid = "-" if r.iid is None else f"{r.iid[0]:.4g} +- {r.iid[1]:.1g}"
        known = ["-" if v is None else f"{v:.4g}" for v in (r.data, r.exact)]
        lines.append((r.name, f"{r.particles:.4g}", iid, *known))
    widths = [max(len(line[c]) for line in lines) for c in range(len(head))]
    text = [
        "  ".join(
            cell.ljust(w) if c == 0 else cell.rjust(w)
            for c, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*text, "", *result.notes]) + "\n"


def kswgd(n_particles: int, *, seed: int, verbose: int, n_frames: int = 2) -> Result:
    """Quadruple well: learn from a trajectory of 10^5 steps, move particles from the barrier into the wells."""
    from gpukoop.estimators import KSWGD

    law = "quadruple_well"
    known = datasets.exact(law)
    X, Y = datasets.quadruple_well(100_000, lag_time=0.01, random_state=seed)
    X, Y = X.astype(np.float32), Y.astype(np.float32)
    flow = KSWGD(
        n_components=64, lag_time=0.01, n_landmarks=1_000, random_state=seed, verbose=verbose
    )
    flow.fit(X, successors=Y)
    # One cloud on the barrier between the wells: nothing of the answer is in it but the symmetry.
    rng = np.random.default_rng([seed, 2])
    start = 0.5 * rng.standard_normal((n_particles, 2)).astype(np.float32)
    n_iter = round(flow.total_time / flow.step_size)
    watch = Watch(n_iter, n_frames)
    particles = flow.transport(start, callback=watch)
    found, exact = flow.eigenvalues_[:3], known["eigenvalues"][:3]
    notes = [
        f"law: quadruple well; data: one trajectory of {len(X)} steps of .01; {n_particles} particles",
        "eigenvalues of the generator: "
        + ", ".join(f"{f:.3f} (exact {e:.3f})" for f, e in zip(found, exact, strict=True)),
        f"scale {flow.spectrum_.scale_:.3f}, {len(flow.eigenvalues_)} modes, {flow.n_iter_} steps, "
        f"backend {flow.backend_}, largest moment {np.abs(flow.history_['moments'][-1]).max():.2g}",
        "One trajectory has wells of slightly unequal weight: particles match their data, not more.",
    ]
    return Result(
        law, start, watch.early, particles, judge(law, particles, X, seed), notes, watch.frames
    )


def outside_wells(n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw uniformly from [-2, 2]^2 without the discs around the wells."""
    known = datasets.exact("quadruple_well")
    Z = rng.uniform(-2, 2, (4 * n + 100, 2))
    distance = np.linalg.norm(Z[:, None] - known["centres"], axis=2).min(axis=1)
    return Z[distance > known["radius"]][:n]


def _eight(n_particles: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return samples of eight Gaussians and a small cloud between them."""
    X = datasets.eight_gaussians(20_000, random_state=seed).astype(np.float32)
    rng = np.random.default_rng([seed, 2])
    return X, 0.2 * rng.standard_normal((n_particles, 2)).astype(np.float32)


def _flow_on_eight(flow: Any, n_iter: int, n_particles: int, seed: int, n_frames: int) -> Result:
    X, start = _eight(n_particles, seed)
    watch = Watch(n_iter, n_frames)
    particles = flow.fit(X).transport(start, callback=watch)
    energy = flow.history_["energy"]
    notes = [
        f"law: eight Gaussians; data: {len(X)} samples; {n_particles} particles; {flow.n_iter_} steps, "
        f"backend {flow.backend_}",
        f"energy of the flow: {energy[0]:.3g} at the start, {energy[-1]:.3g} at the end",
    ]
    law = "eight_gaussians"
    return Result(
        law, start, watch.early, particles, judge(law, particles, X, seed), notes, watch.frames
    )


def mmd(n_particles: int, *, seed: int, verbose: int, n_frames: int = 2) -> Result:
    """Eight Gaussians: sliced energy-distance flow with momentum."""
    from gpukoop.estimators import MMDFlow

    flow = MMDFlow(
        n_projections=64,
        step_size=1.0,
        momentum=0.7,
        n_iter=100,
        random_state=seed,
        verbose=verbose,
    )
    return _flow_on_eight(flow, 100, n_particles, seed, n_frames)


def wasserstein(n_particles: int, *, seed: int, verbose: int, n_frames: int = 2) -> Result:
    """Eight Gaussians: sliced Wasserstein-2 flow."""
    from gpukoop.estimators import WassersteinFlow

    flow = WassersteinFlow(
        coupling="sliced",
        n_projections=64,
        step_size=1.0,
        n_iter=80,
        random_state=seed,
        verbose=verbose,
    )
    return _flow_on_eight(flow, 80, n_particles, seed, n_frames)


def koopman(n_particles: int, *, seed: int, verbose: int, n_frames: int = 2) -> Result:
    """Eight Gaussians: a generative flow as one matrix, sampled in one step."""
    from gpukoop.estimators import KoopmanSampler

    X, _ = _eight(n_particles, seed)
    sampler = KoopmanSampler(n_features=500, n_slabs=8, random_state=seed).fit(X)
    start = np.random.default_rng([seed, 2]).standard_normal((n_particles, 2)).astype(np.float32)
    times = np.linspace(0.0, 1.0, max(3, n_frames + 1))
    path = sampler.trajectory(start, times)
    particles = sampler.transport(start)
    notes = [
        f"law: eight Gaussians; data: {len(X)} samples; {n_particles} particles in one step",
        *str(sampler.spectral_report()).splitlines(),
    ]
    law = "eight_gaussians"
    rows = judge(law, particles, X, seed)
    return Result(
        law, start, np.asarray(path[len(path) // 2]), particles, rows, notes, [*path[1:], particles]
    )


DEMOS: dict[str, Callable[..., Result]] = {
    "kswgd": kswgd,
    "mmd": mmd,
    "wasserstein": wasserstein,
    "koopman": koopman,
}
