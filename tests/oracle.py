"""Truth for every kernel, typed by hand from the literature in r = |x - y|; imports nothing of gpukoop.

The library writes its kernels in s = r^2 / scale^2 and prints every backend from that, so a wrong formula would be
wrong everywhere alike; here the same kernels stand in r, with the derivative in r, as the books have them.
Sums are dense and in long double (80 bits where the machine has them): slow, and meant to be.

A kernel is a list of terms ``(coefficient, name, {"scale": l, ...})``; see :func:`terms_of`.
"""

import dataclasses
import re

import numpy as np

real = np.longdouble
exp, log, sqrt, log1p = np.exp, np.log, np.sqrt, np.log1p

# name: (k(r), dk/dr). RW: Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006.
TRUTH = {
    # RW 4.9: exp(-r^2 / (2 l^2))
    "gaussian": (
        lambda r, scale: exp(-(r**2) / (2 * scale**2)),
        lambda r, scale: -r / scale**2 * exp(-(r**2) / (2 * scale**2)),
    ),
    # RW 4.18 with gamma = 1: exp(-r / l)
    "laplace": (
        lambda r, scale: exp(-r / scale),
        lambda r, scale: -exp(-r / scale) / scale,
    ),
    # RW 4.17, nu = 3/2: (1 + a r) exp(-a r), a = sqrt(3) / l
    "matern32": (
        lambda r, scale: (1 + sqrt(real(3)) * r / scale) * exp(-sqrt(real(3)) * r / scale),
        lambda r, scale: -3 * r / scale**2 * exp(-sqrt(real(3)) * r / scale),
    ),
    # RW 4.17, nu = 5/2: (1 + a r + (a r)^2 / 3) exp(-a r), a = sqrt(5) / l; derivative -a^2 r (1 + a r) / 3 exp(-a r)
    "matern52": (
        lambda r, scale: (
            (1 + sqrt(real(5)) * r / scale + 5 * r**2 / (3 * scale**2))
            * exp(-sqrt(real(5)) * r / scale)
        ),
        lambda r, scale: (
            -5
            * r
            / (3 * scale**2)
            * (1 + sqrt(real(5)) * r / scale)
            * exp(-sqrt(real(5)) * r / scale)
        ),
    ),
    # Wendland, Scattered Data Approximation, 2005, theorem 6.13 with beta = -1/2: 1 / sqrt(1 + (r / l)^2)
    "inverse_multiquadric": (
        lambda r, scale: 1 / sqrt(1 + (r / scale) ** 2),
        lambda r, scale: -r / scale**2 / sqrt(1 + (r / scale) ** 2) ** 3,
    ),
    # RW 4.19: (1 + r^2 / (2 alpha l^2))^-alpha
    "rational_quadratic": (
        lambda r, scale, alpha: exp(-alpha * log1p(r**2 / (2 * alpha * scale**2))),
        lambda r, scale, alpha: (
            -r / scale**2 * exp(-(alpha + 1) * log1p(r**2 / (2 * alpha * scale**2)))
        ),
    ),
    # Szekely & Rizzo, J. Statist. Plann. Inference 143, 2013: minus the distance to a power; it has no length
    "riesz": (
        lambda r, scale, exponent: -(r**exponent),
        lambda r, scale, exponent: -exponent * r ** (exponent - 1),
    ),
}


def terms_of(kernel):
    """Return a gpukoop kernel as terms; reads the names and numbers of the public object, no formula.

    ``InverseMultiquadric(scale=2.0)`` is ``[(1, "inverse_multiquadric", {"scale": 2})]``.
    """
    terms = []
    for coefficient, radial in getattr(kernel, "parts", ((1.0, kernel),)):
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(radial).__name__).lower()
        numbers = {f.name: real(getattr(radial, f.name)) for f in dataclasses.fields(radial)}
        terms.append((real(coefficient), name, numbers))
    return terms


def _pairs(X, Y):
    """Return x_i - y_j, (n, m, d), and r, (n, m)."""
    D = np.asarray(X, real)[:, None, :] - np.asarray(Y, real)[None, :, :]
    return D, sqrt((D**2).sum(axis=-1))


def _matrix(terms, r):
    return sum(c * TRUTH[name][0](r, **p) for c, name, p in terms)


def _radial_derivative(terms, r):
    """Return dk/dr / r, (n, m); a pair at r = 0 has x - y = 0 and contributes nothing."""
    apart = r > 0
    safe = np.where(apart, r, 1)
    return np.where(apart, sum(c * TRUTH[name][1](safe, **p) for c, name, p in terms) / safe, 0)


def matrix(terms, X, Y):
    """Return k(x_i, y_j), (n, m)."""
    return _matrix(terms, _pairs(X, Y)[1])


def product(terms, X, Y, V):
    """Return sum_j k(x_i, y_j) V_jc, (n,) or (n, t)."""
    return matrix(terms, X, Y) @ np.asarray(V, real)


def gradient(terms, X, Y, V):
    """Return its gradient in x_i, (n, d) or (n, t, d)."""
    D, r = _pairs(X, Y)
    W = np.asarray(V, real)
    columns = W.reshape(len(W), -1)
    G = np.einsum("ijt,ijd->itd", _radial_derivative(terms, r)[:, :, None] * columns, D)
    return G[:, 0] if W.ndim == 1 else G


def value_and_gradient(terms, X, Y, V):
    """Return both."""
    return product(terms, X, Y, V), gradient(terms, X, Y, V)


def logsumexp(terms, X, Y, b):
    """Return log sum_j k(x_i, y_j) exp(b_j), (n,)."""
    return logsumexp_and_gradient(terms, X, Y, b)[0]


def logsumexp_and_gradient(terms, X, Y, b):
    """Return the log-sum-exp, (n,), and its gradient in x_i, (n, d)."""
    D, r = _pairs(X, Y)
    B = np.asarray(b, real)
    K = _matrix(terms, r)
    with np.errstate(divide="ignore", invalid="ignore"):
        logits = log(K) + B
        if (K == 0).any():
            raise ValueError("the oracle's long double has underflowed: bring the points closer")
        top = logits.max(axis=1, keepdims=True)
        top = np.where(np.isneginf(top), 0, top)
        p = exp(logits - top)
        total = p.sum(axis=1, keepdims=True)
        L = (top + log(total))[:, 0]
        p = p / np.where(total == 0, 1, total)
    return L, np.einsum("ij,ijd->id", p * _radial_derivative(terms, r) / K, D)
