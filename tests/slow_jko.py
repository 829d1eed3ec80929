"""JKO steps the slow way: Barzilai-Borwein lengths with backtracking, and critics by a Newton step at a time.

This is how the package made them at first; it shares no code with what it does now.
"""

import numpy as np


def critic(P, S, b, rho, divergence, start=None):
    """Return beta and the divergence, from features of particles (n, q) and samples (m, q), both in float64."""
    beta = np.zeros(P.shape[1]) if start is None else start
    value, slope, curvature = objective(P, S, b, rho, divergence, beta)
    for _ in range(100):
        direction = np.linalg.solve(curvature + np.diag(rho + 1e-14 * np.trace(curvature)), slope)
        gain = slope @ direction
        if not gain > 1e-15 * max(1.0, abs(value)):
            break
        step = 1.0
        for _ in range(40):
            trial = objective(P, S, b, rho, divergence, beta + step * direction)
            if trial[0] >= value + 1e-4 * step * gain:
                break
            step /= 2
        else:
            break
        beta = beta + step * direction
        value, slope, curvature = trial
    return beta, value


def objective(P, S, b, rho, divergence, beta):
    """Return value, gradient and minus the Hessian."""
    n, hy, hx = len(P), P @ beta, S @ beta
    value, mean_y, outer = hy.mean(), P.mean(axis=0), 0.0
    if divergence == "kl":
        p = b * np.exp(hx - hx.max())
        value -= hx.max() + np.log(p.sum())
        slope = bend = p / p.sum()
        outer = np.outer(S.T @ slope, S.T @ slope)
    elif divergence == "kl-dual":
        if hx.max() > 500:
            return -np.inf, beta, np.eye(len(beta))
        slope = bend = b * np.exp(hx)
        value -= (b * np.expm1(hx)).sum()
    elif divergence == "chi2":
        slope, bend = b * (1 + hx / 2), b / 2
        value -= (b * (hx + hx**2 / 4)).sum()
    else:
        pull, own = np.exp(-np.logaddexp(0, hy)), np.exp(-np.logaddexp(0, -hx))
        mean_y = P.T @ pull / n
        slope, bend = b * own, b * own * np.exp(-np.logaddexp(0, hx))
        outer = -P.T @ ((pull * (1 - pull))[:, None] * P) / n
        value = 2 * np.log(2.0) - np.logaddexp(0, -hy).mean() - (b * np.logaddexp(0, hx)).sum()
    curvature = S.T @ (bend[:, None] * S) - outer
    value -= 0.5 * (rho * beta**2).sum()
    return value, mean_y - S.T @ slope - rho * beta, curvature


def proximal_step(energy, Z, tau, n_iter=400, tol=1e-7):
    """Return where a proximal step ends and the objective there; ``energy(Y)`` returns the velocity and the energy."""
    n = len(Z)
    wide = np.sqrt(((Z - Z.mean(axis=0)) ** 2).sum(axis=1).mean())
    velocity, value = energy(Z)
    Y, slope, length = Z, -velocity, tau
    for _ in range(n_iter):
        square = (slope**2).sum(axis=1).mean()
        if tau * np.sqrt(square) <= tol * wide:
            break
        for _ in range(30):
            trial = Y - length * slope
            velocity, there = energy(trial)
            new = there + ((trial - Z) ** 2).sum() / (2 * tau * n)
            if new <= value - 1e-4 * length * square:
                break
            length /= 4
        else:
            break
        new_slope = (trial - Z) / tau - velocity
        moved, curvature = trial - Y, ((trial - Y) * (new_slope - slope)).sum()
        Y, value, slope = trial, new, new_slope
        length = min((moved * moved).sum() / curvature if curvature > 0 else tau, 10 * tau)
    return Y, value
