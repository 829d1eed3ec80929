"""How often the verdict calls good samples bad, and bad samples good; and what it costs at a million points."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

import gpukoop as gk
from bench.laws import CENTRES, LAWS, WRONG, fresh, haze
from bench.million import in_own_process

TITLE = (
    "Verdict: false alarms over fresh draws, misses over clouds that are wrong (2,000 particles, 2,000 samples), and a "
    "diagnosis of 10^6"
)
SIZE, FRESH, SEEDS = 2_000, 7, 2
NEEDS_MODES = ("mode dropped", "weights swapped")

MILLION = """
import json, time
from bench.million import peak_gb
import gpukoop as gk
from gpukoop import datasets

gk.diagnose(*(datasets.quadruple_well(500, random_state=k, independent=True)[0] for k in range(2)))  # compiles
X, Z = (datasets.quadruple_well(NUMBER, random_state=k, independent=True)[0] for k in range(2))
begin = time.perf_counter(), time.process_time()
report = gk.diagnose(Z, X)
print(json.dumps({
    "law": "quadruple well, NUMBER particles and samples", "fresh": "passed" if report.passed else "alarm",
    "CPU s a report": time.process_time() - begin[1], "clock s": time.perf_counter() - begin[0], "peak RSS GB": peak_gb(),
}))
"""


def rows(quick: bool = False, laws: Any = LAWS) -> list[dict[str, Any]]:
    """Return a row for each law: alarms of fresh draws, and what of each kind of wrong cloud was not seen."""
    kinds = {"fresh": fresh, **WRONG, "5 % haze": haze}
    table, total = [], dict[str, Any](law="all: alarms, and misses")
    for name in laws:
        row: dict[str, Any] = {"law": name}
        seconds = []
        for what, make in kinds.items():
            if what in NEEDS_MODES and name not in CENTRES:
                continue
            runs = 1 if quick else FRESH if what == "fresh" else SEEDS
            flagged, seen = 0, []
            for seed in range(runs):
                rng = np.random.default_rng([seed, sum(map(ord, name + what))])
                X = LAWS[name](SIZE, random_state=rng)
                Z = make(name, SIZE, rng, X)
                start = time.process_time()
                report = gk.diagnose(Z, X)
                seconds.append(time.process_time() - start)
                flagged += not report.passed
                seen += [line.name for line in report.failures[:1]]
            wrong = flagged if what == "fresh" else runs - flagged
            row[what] = f"{wrong} of {runs}" + (
                f" ({', '.join(sorted(set(seen)))})" if seen else ""
            )
            counts = total.get(what, (0, 0))
            total[what] = counts[0] + wrong, counts[1] + runs
        row["CPU s a report"] = round(float(np.median(seconds)), 2)
        table.append(row)
    summary = {
        key: f"{value[0]} of {value[1]}" if isinstance(value, tuple) else value
        for key, value in total.items()
    }
    number = "20_000" if quick else "1_000_000"
    return [summary, *table, in_own_process(MILLION.replace("NUMBER", number))]
