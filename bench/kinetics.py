"""Kinetics: real trajectories beside deeptime and kooplearn, ten million frames.

``python -m bench.kinetics PATH`` with the path of an alanine dipeptide file (arrays ``torsions`` (2, n, 2) in radians, of two
independent runs) adds its rows; GPUKOOP_ALANINE names it too. Times are processor seconds of one process, the second of two calls.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import gpukoop as gk
from gpukoop import kinetics, maps

TITLE = "Kinetics: peers on alanine dipeptide, frames that stream"
LAG, FRAME = 10, 0.5  # frames; ps
LANDMARKS = 300
STREAM = """
import resource, sys, tempfile, time
import numpy as np
import gpukoop as gk
n = int(sys.argv[1])
rng = np.random.default_rng(0)
decay, size = np.exp(-0.1), 10**6
with tempfile.TemporaryDirectory() as folder:
    path = np.lib.format.open_memmap(folder + "/x.npy", "w+", np.float64, (n, 1))
    from scipy.signal import lfilter
    state = rng.normal()
    for i in range(0, n, size):
        kicks = np.sqrt(1 - decay**2) * rng.normal(size=min(size, n - i))
        part, last = lfilter([1.0], [1.0, -decay], kicks, zi=[decay * state])
        path[i:i + len(part), 0] = part
        state = part[-1]
    path.flush()
    del path
    run = np.load(folder + "/x.npy", mmap_mode="r")
    settings = dict(n_components=3, n_landmarks=50, reg=0.3, random_state=0)
    start = time.process_time()
    if sys.argv[2] == "fit":
        edmd = gk.KernelEDMD(**settings).fit(run, lag=5, frame_time=0.1)
    else:
        chunks = (np.array(run[i:i + 100_000]) for i in range(0, n, 100_000))
        edmd = gk.KernelEDMD(**settings).partial_fit(chunks, lag=5, frame_time=0.1)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(seconds, peak, *edmd.timescales_[:2])
"""


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a function returns at its second call, and the processor seconds of that."""
    function()
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def stream_rows(quick: bool) -> list[dict[str, Any]]:
    """An Ornstein-Uhlenbeck run in a file of 80 MB: timescales 1 and 1/2."""
    found = []
    for how in ("fit", "partial_fit"):
        n = 200_000 if quick else 10_000_000
        done = subprocess.run(
            [sys.executable, "-c", STREAM, str(n), how], capture_output=True, text=True, check=True
        )
        seconds, peak, first, second = map(float, done.stdout.split())
        row = {"bench": f"stream, {how}", "frames": n, "cpu_s": seconds, "peak_mb": peak}
        found.append({**row, "timescale": first, "second": second, "exact": "1, 0.5"})
    return found


# --- alanine dipeptide: the same question in three packages; lines are counted in these functions


def with_gpukoop(runs: list[np.ndarray], lag: int) -> tuple[np.ndarray, tuple[float, float]]:
    estimator = gk.KernelEDMD(n_components=3, n_landmarks=LANDMARKS, random_state=0)
    model = kinetics.KineticModel(estimator, lag=lag, frame_time=FRAME).fit(runs)
    return model.timescales_, (model.timescales_lower_[0], model.timescales_upper_[0])


def with_deeptime(runs: list[np.ndarray], lag: int) -> tuple[np.ndarray, tuple[float, float]]:
    from deeptime.clustering import KMeans
    from deeptime.markov import TransitionCountEstimator
    from deeptime.markov.msm import BayesianMSM

    clusters = KMeans(100, max_iter=50, fixed_seed=0).fit_fetch(np.concatenate(runs))
    states = [clusters.transform(run) for run in runs]
    counts = TransitionCountEstimator(lag, "effective").fit_fetch(states).submodel_largest()
    posterior = BayesianMSM(n_samples=100, reversible=True).fit_fetch(counts)
    times = posterior.prior.timescales(3) * FRAME
    samples = [model.timescales(1)[0] * FRAME for model in posterior.samples]
    low, high = np.quantile(samples, [0.025, 0.975])
    return times, (float(low), float(high))


def with_kooplearn(runs: list[np.ndarray], lag: int) -> tuple[np.ndarray, tuple[float, float]]:
    from kooplearn.kernel import NystroemKernelRidge

    X = np.concatenate([run[:-lag] for run in runs])
    Y = np.concatenate([run[lag:] for run in runs])
    model = NystroemKernelRidge(
        n_components=5,
        kernel="rbf",
        gamma=1 / (2 * 0.44**2),
        alpha=1e-6,
        n_centers=LANDMARKS,
        random_state=0,
    ).fit(X, Y)
    mu = np.sort(np.abs(model.eig()))[::-1]
    # its first eigenvalue, .999, is the constant; its second, .951, belongs to no mode of the other two; the third is psi
    return -lag * FRAME / np.log(mu[2:5]), (float("nan"), float("nan"))


PEERS = {"gpukoop": with_gpukoop, "deeptime": with_deeptime, "kooplearn": with_kooplearn}


def code_lines(function: Callable[..., Any]) -> int:
    """Return the lines of a function without its first."""
    return len([line for line in inspect.getsource(function).splitlines() if line.strip()]) - 1


def total_variation(A: np.ndarray, B: np.ndarray, bins: int = 24) -> float:
    """Return half the sum of differences of two histograms of angles, 15 degrees a side."""
    edges = [np.linspace(-np.pi, np.pi, bins + 1)] * 2
    a, b = (np.histogram2d(*Z.T, bins=edges)[0] / len(Z) for Z in (A, B))
    return float(np.abs(a - b).sum() / 2)


def samples(angles: np.ndarray) -> np.ndarray:
    """Return as many new angles as a run has frames, from the modes of that run."""
    flow = gk.KSWGD(n_landmarks=1_000, n_components=40, project=maps.project_torus, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the verdict takes frames for independent
        flow.fit([maps.torus(angles)], lag=2, frame_time=FRAME)
        return maps.angles(flow.sample(len(angles)))


def alanine_rows(path: Path) -> list[dict[str, Any]]:
    torsions = np.load(path)["torsions"].astype(float)
    runs = [maps.torus(run) for run in torsions]
    found = []
    for name, function in PEERS.items():
        for which, chosen in (
            ("first run", runs[:1]),
            ("second run", runs[1:]),
            ("both runs", runs),
        ):
            row = {"bench": f"alanine, {name}", "data": which, "lines": code_lines(function)}
            try:
                (times, band), seconds = timed(lambda f=function, c=chosen: f(c, LAG))
            except ImportError as error:
                found.append({**row, "note": f"not installed: {error.name}"})
                continue
            row |= {"timescale": float(times[0]), "band": f"{band[0]:.2f} to {band[1]:.2f}"}
            found.append({**row, "second": float(times[1]), "cpu_s": seconds})
    start = time.process_time()
    new = samples(torsions[0])
    row = {"bench": "alanine, new samples from the first run", "cpu_s": time.process_time() - start}
    run = total_variation(*torsions)
    fresh = total_variation(new, torsions[1])
    return [*found, {**row, "tv_to_second": fresh, "tv_run_to_run": run, "ratio": fresh / run}]


def figure(path: Path, out: Path) -> None:
    """Draw timescales with bands of each run, and the torsions of the second run beside new samples learned from the first."""
    from gpukoop.plot.canvas import new_figure, written

    torsions = np.load(path)["torsions"].astype(float)
    drawn = new_figure(11.0, 3.4)
    axes = [drawn.add_subplot(1, 3, i + 1) for i in range(3)]
    estimator = gk.KernelEDMD(n_components=3, n_landmarks=LANDMARKS, random_state=0)
    lags = [1, 2, 4, 10, 20, 30]
    for run, colour, name in zip(torsions, ("C0", "C1"), ("first run", "second run"), strict=True):
        found = kinetics.implied_timescales(
            maps.torus(run), lags, estimator=estimator, n_timescales=1, frame_time=FRAME
        )
        t, low, high = found.lag_times, found.lower[:, 0], found.upper[:, 0]
        axes[0].plot(t, found.timescales[:, 0], "o-", color=colour, markersize=3, label=name)
        axes[0].fill_between(t, low, high, color=colour, alpha=0.2, linewidth=0)
    axes[0].plot(t, t, "k--", linewidth=1, label="timescale = lag")
    axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    axes[0].set(xlabel="lag (ps)", ylabel="slowest timescale (ps)", ylim=(0, 18))
    axes[0].set_title("two runs, 95 % bands", fontsize=9)
    for panel, Z, title in (
        (axes[1], torsions[1], "second run"),
        (axes[2], samples(torsions[0]), "new samples, from the first run"),
    ):
        panel.plot(*np.degrees(Z).T, ".", markersize=1, alpha=0.3, color="C0")
        panel.set(
            xlabel="phi (degrees)", ylabel="psi (degrees)", xlim=(-180, 180), ylim=(-180, 180)
        )
        panel.set(xticks=range(-180, 181, 90), yticks=range(-180, 181, 90))
        panel.set_title(f"{title}, {len(Z):,} points", fontsize=9)
    written(drawn, out)


def rows(quick: bool, path: str | None = None) -> list[dict[str, Any]]:
    """Return all rows; ``quick`` takes sizes that fit a test."""
    path = path or os.environ.get("GPUKOOP_ALANINE")
    # First: the peak of a child counts from what its parent held when it was started.
    found = stream_rows(quick)
    return found + (alanine_rows(Path(path)) if path and not quick else [])


if __name__ == "__main__":
    paths = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    for row in rows("--quick" in sys.argv, *paths[:1]):
        print(
            ", ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
            ),
            flush=True,
        )
