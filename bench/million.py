"""A million samples and a million particles on one machine: seconds, memory, and how good the end state is."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

TITLE = (
    "Whole runs: KSWGD with as many particles as samples (float32, 2,000 landmarks, LAWGD time 8)"
)

# Each run has a process of its own, so that its peak memory is its own.
RUN = """
import json, resource, sys, time
import numpy as np
import gpukoop as gk
from gpukoop import datasets, metrics

law, n = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(1)
if law == "quadruple_well":
    X, _ = datasets.quadruple_well(n, random_state=0, independent=True)
    reference, _ = datasets.quadruple_well(1_000_000, random_state=2, independent=True)
    floor, _ = datasets.quadruple_well(n, random_state=3, independent=True)
    start = rng.uniform(-2, 2, (n, 2))
    options = {"n_components": 32}
else:
    X = datasets.torus(n, random_state=0)
    reference = datasets.torus(n, random_state=2)
    floor = datasets.torus(n, random_state=3)
    angle = np.array([0.0, np.pi / 2]) + rng.uniform(-0.3, 0.3, (n, 2))
    ring = 2.0 + 0.8 * np.cos(angle[:, 1])
    start = np.stack([ring * np.cos(angle[:, 0]), ring * np.sin(angle[:, 0]), 0.8 * np.sin(angle[:, 1])], 1)
    options = {"n_components": 60, "project": datasets.project_torus}
X, start = X.astype(np.float32), start.astype(np.float32)
flow = gk.KSWGD(n_landmarks=2_000, step_size=0.1, random_state=0, **options)
t = [time.perf_counter()]
flow.fit(X); t.append(time.perf_counter())
Z = flow.transport(start); t.append(time.perf_counter())
row = {
    "law": law, "samples = particles": n, "fit s": t[1] - t[0], "flow s": t[2] - t[1], "steps": flow.n_iter_,
    "peak RSS GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    "sliced W2": metrics.sliced_wasserstein(Z, reference),
    "sliced W2 of iid": metrics.sliced_wasserstein(floor, reference),
}
if law == "quadruple_well":
    known = datasets.exact(law)
    row["coverage % (38.07)"] = metrics.coverage(Z, known["centres"], known["radius"])
    row["mean V (.8345)"] = float(datasets.potential(law, Z).mean())
print(json.dumps(row))
"""


def rows(quick: bool) -> list[dict[str, Any]]:
    """Return one row a law and size."""
    cases = [("quadruple_well", 10_000), ("torus", 10_000)]
    if not quick:
        cases += [("quadruple_well", 1_000_000), ("torus", 1_000_000)]
    return [_row(law, n) for law, n in cases]


def _row(law: str, n: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, law, str(n)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])
