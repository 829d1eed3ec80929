"""Differentiable sums: one training iteration (distance and gradient) beside plain PyTorch and GeomLoss, same run, same cores."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TITLE = "Autograd: one training iteration, value and gradient in X (float32, CPU tensors)"

BLUR = 0.5
# Objectives of a training step, and how many scales their kernel has.
STEPS = {"sinkhorn": 0, "mmd, one scale": 1, "mmd": 3, "energy": 0}


def rows(quick: bool) -> list[dict[str, Any]]:
    """Return a row a distance and size; without PyTorch one row that says so."""
    try:
        import torch
    except ImportError:
        return [{"sum": "PyTorch is not installed"}]
    sizes = [(1_000, 3)] if quick else [(1_000, 3), (5_000, 3), (1_024, 784)]
    table = [row(torch, n, d, name) for n, d in sizes for name in ("mmd", "sinkhorn")]
    return table + [
        step_row(torch, name, *((256, 64) if quick else (1_024, 784))) for name in STEPS
    ]


def row(torch: Any, n: int, d: int, name: str) -> dict[str, Any]:
    """Time ours and the peers; the error is that of the gradient against plain PyTorch in float64."""
    import gpukoop as gk

    generator = torch.Generator().manual_seed(0)
    X, Y = (torch.randn(n, d, generator=generator) for _ in "xy")
    Y = 0.5 * Y + 1 / d**0.5
    scale = d**0.5
    blur = BLUR * scale
    ours: Callable[[Any], Any]
    if name == "mmd":
        kernel = gk.Gaussian(scale)
        ours = lambda X: gk.torch.mmd(X, Y, kernel, squared=True)
        plain = lambda X, Y: dense_mmd(torch, X, Y, scale)
    else:
        ours = lambda X: gk.torch.sinkhorn_divergence(X, Y, blur=blur, tol=1e-2)
        plain = lambda X, Y: dense_sinkhorn(torch, X, Y, blur)
    start = time.perf_counter()
    slope = gradient(torch, ours, X)
    first = time.perf_counter() - start
    runs = {"ours": lambda: gradient(torch, ours, X)}
    runs["torch"] = lambda: gradient(torch, lambda X: plain(X, Y), X)
    found = geomloss(torch, name, Y, blur, scale)
    if found is not None:
        runs["GeomLoss"] = lambda: gradient(torch, found, X)
    # A hundred dense iterations between 5,000 points take minutes: once is enough there.
    repetitions = 1 if name == "sinkhorn" and n > 2_000 else 3 if n > 2_000 else 5
    seconds = interleaved(runs, repetitions, clock=time.process_time)
    exact = gradient(torch, lambda X: plain(X, Y.double()), X.double()) if n <= 1_100 else None
    extra = {name: peak(run) for name, run in runs.items()}
    return {
        "sum": name,
        "n = m": n,
        "d": d,
        "first ms": round(1e3 * first, 1),
        **{f"{k} ms": round(1e3 * s, 2) for k, s in seconds.items()},
        **{f"{k} / ours": round(s / seconds["ours"], 1) for k, s in seconds.items() if k != "ours"},
        **{f"{k} MB": m for k, m in extra.items()},
        "gradient error": None
        if exact is None
        else f"{float((slope - exact).abs().max() / exact.abs().max()):.1e}",
    }


def gradient(torch: Any, distance: Callable[[Any], Any], X: Any) -> Any:
    """Return the gradient of a distance in X."""
    X = X.detach().clone().requires_grad_()
    return torch.autograd.grad(distance(X), X)[0]


def peak(run: Callable[[], Any]) -> int | None:
    """Return the megabytes that a run takes at its highest beyond what is held before it; None where the system does not say."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the mark of the highest starts anew
        before = _resident("VmRSS")
        run()
        return round((_resident("VmHWM") - before) / 1e6)
    except OSError:
        return None


def _resident(name: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return 1024 * int(line.split()[1])


def interleaved(
    runs: dict[str, Callable[[], Any]],
    repetitions: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return the best time of each, taken in turns so that a busy machine is busy for all."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(repetitions):
        for name, run in runs.items():
            start = clock()
            run()
            best[name] = min(best[name], clock() - start)
    return best


def dense_mmd(torch: Any, X: Any, Y: Any, scale: float) -> Any:
    """MMD^2 with three matrices in memory."""
    mean = lambda A, B: torch.exp(-(torch.cdist(A, B) ** 2) / (2 * scale**2)).mean()
    return mean(X, X) + mean(Y, Y) - 2 * mean(X, Y)


def dense_sinkhorn(torch: Any, X: Any, Y: Any, blur: float, n_iter: int = 100) -> Any:
    """Debiased divergence with matrices in memory: potentials without a graph, one last differentiable half step."""
    eps = blur**2
    log = -torch.log(torch.tensor(float(len(X)), dtype=X.dtype))
    cost = lambda A, B: torch.cdist(A, B) ** 2 / 2
    with torch.no_grad():
        C, A, B = cost(X, Y), cost(X, X), cost(Y, Y)
        soft = lambda C, g: -eps * torch.logsumexp((g[None] - C) / eps + log, 1)
        g, p, q = (torch.zeros(len(X), dtype=X.dtype) for _ in "gpq")
        for _ in range(n_iter):
            f = soft(C, g)
            g = soft(C.T, f)
            p, q = (p + soft(A, p)) / 2, (q + soft(B, q)) / 2
    f = -eps * torch.logsumexp((g[None] - cost(X, Y)) / eps + log, 1)
    # The own term is symmetric in X: its slope through the rows alone counts twice with the half in front.
    own = -eps * torch.logsumexp((p[None] - cost(X, X.detach())) / eps + log, 1)
    return f.mean() - own.mean() + (g.mean() - q.mean())


def geomloss(
    torch: Any, name: str, Y: Any, blur: float, scale: float, scaling: float = 0.8
) -> Callable[[Any], Any] | None:
    """Return GeomLoss's distance with matrices in memory (its fastest way at these sizes), or None."""
    try:
        from geomloss import SamplesLoss
    except ImportError:
        return None
    if name in ("mmd", "energy"):
        kind = "gaussian" if name == "mmd" else "energy"
        loss = SamplesLoss(kind, blur=scale, backend="tensorized")
        return lambda X: 2 * loss(X, Y)
    loss = SamplesLoss("sinkhorn", p=2, blur=blur, scaling=scaling, backend="tensorized")
    return lambda X: loss(X, Y)


def step_row(torch: Any, name: str, n: int, d: int) -> dict[str, Any]:
    """Time the velocity of a batch in a generator's training, its network aside, beside a loss of the same kernel and blur."""
    import numpy as np

    from gpukoop.generators.objectives import choices
    from gpukoop.generators.toward import toward

    chance = torch.Generator().manual_seed(0)
    Z, X = (torch.randn(n, d, generator=chance) for _ in "zx")
    Z = 1.1 * Z + 1 / d**0.5
    objective = name.partition(",")[0]
    chosen = choices(X.numpy(), d**0.5 if STEPS[name] == 1 else None, None, 1e-2, None)

    def ours() -> Any:
        """Each batch of a training is a new one: what is known of its samples is found out again."""
        return toward(objective, chosen, None, X, None, np.random.default_rng(0), chance)(Z, 0)[0]

    energy, by_kernel = objective == "energy", objective in ("mmd", "energy")
    plain = lambda Z, X: dense_mixture(torch, Z, X, chosen, energy)
    runs: dict[str, Callable[[], Any]] = {"ours": ours}
    if by_kernel:
        runs["torch"] = lambda: -n / 2 * gradient(torch, lambda Z: plain(Z, X), Z)
    # GeomLoss at its default scaling, the quicker and coarser one
    peer = geomloss(torch, objective, X, chosen.blur, chosen.scales[0], 0.5)
    if peer is not None and STEPS[name] < 2:
        runs["GeomLoss"] = lambda: gradient(torch, peer, Z)
    seconds = interleaved(runs, 5, time.process_time)
    found, exact = ours(), None
    if by_kernel:
        exact = -n / 2 * gradient(torch, lambda Z: plain(Z, X.double()), Z.double())
    return {
        "sum": f"training step, {name}",
        "n = m": n,
        "d": d,
        **{f"{k} ms": round(1e3 * s, 2) for k, s in seconds.items()},
        **{f"{k} / ours": round(s / seconds["ours"], 1) for k, s in seconds.items() if k != "ours"},
        "gradient error": None
        if exact is None
        else f"{float((found - exact).abs().max() / exact.abs().max()):.1e}",
    }


def dense_mixture(torch: Any, Z: Any, X: Any, chosen: Any, energy: bool = False) -> Any:
    """MMD^2 of a mixture or of -r, particles repelled by the others, with matrices in memory; what moves no particle is left out."""

    def total(A: Any, B: Any) -> Any:
        if energy:
            return -torch.cdist(A, B).sum()
        S = torch.cdist(A, B) ** 2
        pairs = zip(chosen.scales, chosen.weights, strict=True)
        return sum(w * torch.exp(S * (-0.5 / s**2)) for s, w in pairs).sum()

    n = len(Z)
    return total(Z, Z) / (n * (n - 1)) - 2 * total(Z, X) / n**2
