"""A million samples and a million particles on one machine: seconds, memory, and how good the end state is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

TITLE = "Whole runs: KSWGD with as many particles as samples (float32, LAWGD time 8; 2,000 landmarks and 100 modes, torus 3,000 and 200)"

# Langevin time in a unit of LAWGD time, at the start.
LANGEVIN = 0.02
EXACT = {"coverage % (38.07)": 38.07, "mean V (.8345)": 0.8345}

# Each run has a process of its own, so that its peak memory is its own.
RUN = """
import json, sys, time
import numpy as np
import gpukoop as gk
from bench.million import peak_gb
from gpukoop import datasets, metrics

law, n, langevin, seed = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
rng = np.random.default_rng([1, seed])
if law == "quadruple_well":
    X, _ = datasets.quadruple_well(n, random_state=10 * seed, independent=True)
    reference, _ = datasets.quadruple_well(1_000_000, random_state=2, independent=True)
    floor, _ = datasets.quadruple_well(n, random_state=10 * seed + 3, independent=True)
    start = rng.uniform(-2, 2, (n, 2))
    options = {"n_components": 100}
else:
    X = datasets.torus(n, random_state=10 * seed)
    reference = datasets.torus(max(n, 100_000), random_state=2)
    floor = datasets.torus(n, random_state=10 * seed + 3)
    angle = np.array([0.0, np.pi / 2]) + rng.uniform(-0.3, 0.3, (n, 2))
    ring = 2.0 + 0.8 * np.cos(angle[:, 1])
    start = np.stack([ring * np.cos(angle[:, 0]), ring * np.sin(angle[:, 0]), 0.8 * np.sin(angle[:, 1])], 1)
    options = {"n_components": 200, "project": datasets.project_torus, "coarse": True,
               "kernel": gk.Gaussian(0.3), "n_landmarks": 3_000}
X, start = X.astype(np.float32), start.astype(np.float32)
flow = gk.KSWGD(step_size=0.1, random_state=0, langevin=langevin, units="absolute", **{"n_landmarks": 2_000, **options})
now = lambda: np.array([time.perf_counter(), time.process_time()])
t = [now()]
flow.fit(X); t.append(now())
Z = flow.transport(start); t.append(now())
(fit, fit_cpu), (moved, moved_cpu) = np.diff(t, axis=0).tolist()
row = {
    "law": law, "samples = particles": n, "langevin": langevin, "fit s": fit, "flow s": moved,
    "fit CPU s": fit_cpu, "flow CPU s": moved_cpu, "steps": flow.n_iter_,
    "peak RSS GB": peak_gb(),
    "sliced W2": metrics.sliced_wasserstein(Z, reference),
    "sliced W2 of iid": metrics.sliced_wasserstein(floor, reference),
}
if law == "quadruple_well":
    known = datasets.exact(law)
    row["coverage % (38.07)"] = metrics.coverage(Z, known["centres"], known["radius"])
    row["mean V (.8345)"] = float(datasets.potential(law, Z).mean())
print(json.dumps(row))
"""


# The same operator with every sample as a source, by Fourier sums: what landmarks are measured against.
FULL = """
import json, time
import numpy as np
import gpukoop as gk
from bench.million import peak_gb
from gpukoop import datasets
from gpukoop.spectrum import DiffusionMap

X, _ = datasets.quadruple_well(NUMBER, random_state=0, independent=True)
begin = time.perf_counter()
m = DiffusionMap(gk.Gaussian(0.3), n_components=32, tol=1e-4, random_state=0).fit(X.astype(np.float32))
print(json.dumps({
    "law": "quadruple_well, map of all samples, 32 modes, " + m.backend_, "samples = particles": NUMBER,
    "fit s": time.perf_counter() - begin,
    "peak RSS GB": peak_gb(),
    "eigenvalues (.749, .749, 1.497)": ", ".join(f"{x:.3f}" for x in m.eigenvalues_[:3]),
}))
"""


def peak_gb() -> float | None:
    """Return the peak resident memory of this process; ru_maxrss would start from that of its parent."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    found = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(found[0].split()[1]) / 1e6


def rows(quick: bool) -> list[dict[str, Any]]:
    """Return one row a law and size."""
    table = [_seeds("quadruple_well", 10_000, LANGEVIN, 1 if quick else 5)]
    if not quick:
        table.append(in_own_process(RUN, "torus", "10_000", str(LANGEVIN), "0"))
        for law in ("quadruple_well", "torus"):
            table += [
                in_own_process(RUN, law, "1_000_000", str(kappa), "0") for kappa in (LANGEVIN, 0.0)
            ]
    return [*table, in_own_process(FULL.replace("NUMBER", "20_000" if quick else "1_000_000"))]


def _seeds(law: str, n: int, langevin: float, count: int) -> dict[str, Any]:
    """Return a row of typical distances from the exact values: one run may be close by luck."""
    found = [in_own_process(RUN, law, str(n), str(langevin), str(seed)) for seed in range(count)]
    row = {"law": f"{law}, {count} seeds: means, and root mean square errors"}
    for name, value in found[0].items():
        if not isinstance(value, str):
            row[name] = float(np.mean([r[name] for r in found]))
    for name, exact in EXACT.items():
        errors = np.array([r[name] for r in found]) - exact
        row[f"{name} rms error"] = float(np.sqrt(np.mean(errors**2)))
    return row


def in_own_process(script: str, *arguments: str) -> dict[str, Any]:
    """Return the row that a script prints, run by a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    return json.loads(done.stdout.splitlines()[-1])
