"""JKO steps of f-divergences on the CPU: seconds, and energies beside those of slow steps that share no code with ours.

The slow steps (tests/slow_jko.py) are Barzilai-Borwein lengths with backtracking and one Newton step at a time, as the package made
them at first; features and gradients of the dictionary are typed again here.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import gpukoop as gk
from gpukoop.arrays import Array

TITLE = (
    "JKO steps on the CPU, 1,000 points of three features (float64), defaults: clock and processor seconds; "
    "energies beside those of slow steps"
)
OBJECTIVES = ("kl", "chi2", "js")
# Steps beside the slow ones, which take a minute; and those of a run at defaults.
FEW, DEFAULT = 2, 20
# What FEW steps may take.
SECONDS = 8.0


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """Return a row an objective."""
    n = 200 if quick else 1_000
    transport("kl", *clouds(50), 1)  # what is compiled is compiled before the clock starts
    return [row(objective, n) for objective in OBJECTIVES]


def failures(table: list[dict[str, Any]]) -> list[str]:
    """Return the rows that take too long or end elsewhere than slow steps do."""
    # Processor time: what others do on the machine does not count, and with nobody else the clock shows no more.
    late = [r for r in table if not r["CPU s"] < SECONDS]
    # Critics end at a promised gain of 1e-15 and steps at a residual of 1e-6 of the width: energies err by its square.
    off = [r for r in table if not r["largest difference of energies"] < 1e-6]
    return [f"JKO {r['objective']}: {r['CPU s']:.1f} CPU s" for r in late] + [
        f"JKO {r['objective']}: energies differ by {r['largest difference of energies']:.1e}"
        for r in off
    ]


def clouds(n: int) -> tuple[Array, Array]:
    """Return particles and samples, normal and shifted."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 3)), 0.5 * rng.normal(size=(n, 3)) + 1.0


def transport(objective: str, Z: Array, X: Array, steps: int) -> tuple[Any, float, float]:
    """Return the flow after its steps, and clock and processor seconds of fit and steps."""
    clock, processor = time.perf_counter(), time.process_time()
    flow = gk.JKOFlow(objective, n_steps=steps, random_state=0).fit(X)
    flow.transport(Z)
    return flow, time.perf_counter() - clock, time.process_time() - processor


def row(objective: str, n: int) -> dict[str, Any]:
    """Return seconds of few steps and of a default run, and how far the energies are from slow ones."""
    Z, X = clouds(n)
    _, whole, _ = transport(objective, Z, X, DEFAULT)
    flow, clock, processor = transport(objective, Z, X, FEW)
    began = time.process_time()
    slow = slow_energies(flow, objective, Z, X)
    ours = flow.history_["energy"]
    return {
        "objective": objective,
        "n = m": n,
        "steps": FEW,
        "s": clock,
        "CPU s": processor,
        "inner iterations": int(flow.history_["inner_iter"].sum()),
        f"s, {DEFAULT} steps": whole,
        "slow CPU s": time.process_time() - began,
        "energies": ", ".join(f"{a:.8g}" for a in ours),
        "slow energies": ", ".join(f"{a:.8g}" for a in slow),
        "largest difference of energies": float(np.max(np.abs(ours / slow - 1))),
    }


def slow_energies(flow: Any, objective: str, Z: Array, X: Array) -> Array:
    """Return the divergence at Z and after each slow step, with the dictionary of a fitted flow."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
    slow = importlib.import_module("slow_jko")
    kernel, polynomial = flow._dictionary().parts
    scale, marks = flow.kernel_.terms[0][1].length, kernel.landmarks
    penalty = np.concatenate([kernel.penalty, polynomial.penalty])
    rho = float(flow.regularization) * penalty
    centre, spread = X.mean(axis=0), X.std(axis=0)
    pairs = list(zip(*np.triu_indices(X.shape[1]), strict=True))

    def values(Y: Array) -> Array:
        """Return k(y, landmarks), dense and from differences."""
        squares = ((Y[:, None] - marks) ** 2).sum(axis=2)
        return np.exp(-squares / (2 * scale**2))

    def features(Y: Array) -> Array:
        y = (Y - centre) / spread
        products = np.stack([y[:, c] * y[:, e] for c, e in pairs], axis=1)
        return np.concatenate([values(Y) @ kernel.root, np.ones((len(y), 1)), y, products], axis=1)

    def slope(Y: Array, beta: Array) -> Array:
        """Return the gradient of the critic."""
        rank, d = kernel.root.shape[1], Y.shape[1]
        weighed = values(Y) * (kernel.root @ beta[:rank])
        found = (weighed @ marks - weighed.sum(axis=1)[:, None] * Y) / scale**2
        y, linear = (Y - centre) / spread, beta[rank + 1 : rank + 1 + d]
        found += linear / spread
        for weight, (c, e) in zip(beta[rank + 1 + d :], pairs, strict=True):
            found[:, c] += weight * y[:, e] / spread[c]
            found[:, e] += weight * y[:, c] / spread[e]
        return found

    at_samples, b = features(X), np.full(len(X), 1 / len(X))
    last: dict[str, Any] = {"beta": None}

    def energy(Y: Array) -> tuple[Array, float]:
        P = features(Y)
        beta, value = slow.critic(P, at_samples, b, rho, objective, last["beta"])
        last["beta"] = beta
        pull = np.exp(-np.logaddexp(0, P @ beta)) if objective == "js" else np.ones(len(Y))
        return -slope(Y, beta) * pull[:, None], value

    found = [energy(Z)[1]]
    for _ in range(FEW):
        Z, _ = slow.proximal_step(energy, Z, flow._length())
        found.append(energy(Z)[1])
    return np.array(found)
