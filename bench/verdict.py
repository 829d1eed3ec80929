"""How often the verdict calls good samples bad, and bad samples good; and what it costs at a million points."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

import gpukoop as gk
from bench.laws import CENTRES, LAWS, WRONG, Draw, fresh, haze
from bench.million import in_own_process
from bench.unseen import FRESH as UNSEEN

TITLE = (
    "Verdict: false alarms over fresh draws, misses over clouds that are wrong (2,000 particles, 2,000 samples), and a "
    "diagnosis of 10^6"
)
SIZE, FRESH, SEEDS = 2_000, 7, 2


def _fifty(n: int, random_state: Any = None) -> np.ndarray:
    return np.random.default_rng(random_state).standard_normal((n, 50))


NEW: dict[str, Draw] = UNSEEN | {"normal, 50-d": _fifty}
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


def rows(quick: bool = False, laws: Any = LAWS | NEW) -> list[dict[str, Any]]:
    """Return a row for each law: alarms of fresh draws, and what of each kind of wrong cloud was not seen."""
    LAWS.update(NEW)
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
    return [summary, *table, million("20_000" if quick else "1_000_000")]


def million(number: str = "1_000_000") -> dict[str, Any]:
    """Return CPU seconds, seconds by the clock and peak memory of one diagnosis of so many particles and samples."""
    return in_own_process(MILLION.replace("NUMBER", number))


def failures(table: list[dict[str, Any]]) -> list[str]:
    """Return what breaks a bar: more than 5 per cent of alarms, a miss, a diagnosis of 10^6 above 20 s of CPU or 1.5 GB.

    Haze is no bar: on some laws no test can see it.
    """
    total, million, found = table[0], table[-1], []
    alarms, runs = map(int, total["fresh"].split(" of "))
    if alarms > 0.05 * runs:
        found.append(f"verdict: {alarms} of {runs} fresh clouds raise an alarm")
    for kind in WRONG:
        missed = total[kind]
        if not missed.startswith("0 of "):
            found.append(f"verdict: {missed} clouds with {kind!r} were not seen")
    if million["fresh"] != "passed":
        found.append("verdict: a million fresh draws raise an alarm")
    if million["CPU s a report"] > 20 or million["peak RSS GB"] > 1.5:
        found.append(
            f"verdict: 10^6 take {million['CPU s a report']:.1f} s of CPU and {million['peak RSS GB']:.2f} GB, not 20 and 1.5"
        )
    return found
