"""How often the verdict calls good samples bad, and bad samples good."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np

import gpukoop as gk
from bench.laws import CENTRES, LAWS, WRONG, fresh

TITLE = "Verdict: false alarms over fresh draws, misses over clouds that are wrong (2,000 particles, 2,000 samples)"
SIZE = 2_000


def rows(quick: bool = False, runs: int | None = None, laws: Any = LAWS) -> list[dict[str, Any]]:
    """Return a row for each law: alarms of fresh draws, and what of each kind of wrong cloud was not seen."""
    runs = runs or (2 if quick else 100)
    table = []
    for name in laws:
        row: dict[str, Any] = {"law": name, "runs": runs}
        seconds = []
        for what, make in {"fresh": fresh, **WRONG}.items():
            if what in ("mode dropped", "weights swapped") and name not in CENTRES:
                continue
            lines, flagged = Counter(), 0
            for seed in range(runs):
                rng = np.random.default_rng([seed, sum(map(ord, name + what))])
                X = LAWS[name](SIZE, random_state=rng)
                Z = make(name, SIZE, rng, X)
                start = time.process_time()
                report = gk.diagnose(Z, X)
                seconds.append(time.process_time() - start)
                flagged += not report.passed
                lines.update(line.name for line in report.failures)
            row[what] = f"{flagged} alarms" if what == "fresh" else f"{runs - flagged} missed"
            row[what] += (
                f" ({', '.join(f'{k} {v}' for k, v in lines.most_common(3))})" if lines else ""
            )
        row["CPU s a report"] = round(float(np.median(seconds)), 2)
        table.append(row)
    return table
