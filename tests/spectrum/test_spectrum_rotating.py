"""KernelEDMD on pairs of processes that are not reversible, and of those that are."""

import logging

import numpy as np
import pytest
from scipy.linalg import expm

import gpukoop as gk
from gpukoop.spectrum import KernelEDMD
from gpukoop.spectrum.rotating import whole_pairs

LAG = 0.2


def rotating(m, turn, seed, dtype=float):
    """Pairs of dX = -(I + turn J) X dt + sqrt(2) dW, whose law is standard normal: eigenvalues j (1 + turn i) + k (1 - turn i)."""
    rng = np.random.default_rng(seed)
    step = expm(-LAG * np.array([[1.0, turn], [-turn, 1.0]]))
    X = rng.normal(size=(m, 2))
    Y = X @ step.T + np.sqrt(1 - np.exp(-2 * LAG)) * rng.normal(size=X.shape)
    return X.astype(dtype), Y.astype(dtype)


def edmd(**options):
    options = {"n_components": 5, "lag_time": LAG, "reg": 0.2, "n_landmarks": 200, **options}
    return KernelEDMD(gk.Gaussian("median"), random_state=0, **options)


def test_rotation_is_measured_and_warned_about():
    """A = exp(-lag) sin(3 lag) = .462; its error 1 / sqrt(2 m) = .013. The symmetrised answer is the known wrong one."""
    X, Y = rotating(3000, 3.0, 0)
    with pytest.warns(RuntimeWarning, match=r"antisymmetric moment of 0\.4.*reversible=False"):
        fitted = edmd().fit(X, successors=Y)
    assert fitted.asymmetry_ == pytest.approx(0.462, abs=4 * 0.013)
    assert 0.005 < fitted.asymmetry_error_ < 0.03
    symmetrised = 1 - np.log(np.cos(3 * LAG)) / LAG  # 1.96
    assert fitted.eigenvalues_[:2] == pytest.approx(symmetrised, rel=0.15)


@pytest.mark.parametrize("dtype", [float, np.float32])
def test_complex_eigenvalues_of_a_rotation(dtype):
    """sd of log(mu) / lag is sqrt(1 - |mu|^2) / (|mu| lag sqrt(m)) = .06 of independent pairs; four of them."""
    m = 6000
    X, Y = rotating(m, 3.0, 1, dtype)
    fitted = edmd(reversible=False).fit(X, successors=Y)
    lam = fitted.eigenvalues_
    error = np.sqrt(1 - np.exp(-2 * LAG)) / (np.exp(-LAG) * LAG * np.sqrt(m))
    assert abs(lam[0] - (1 + 3j)) < 4 * error
    assert lam[1] == lam[0].conj()
    assert fitted.diffusivity_ == pytest.approx(1.0, abs=4 * error)
    assert np.abs(fitted.mu_).max() < 1
    phi = fitted.transform(X)
    assert phi.dtype == np.result_type(dtype, np.complex64)
    close = 1e-9 if dtype is float else 1e-3
    assert np.abs(phi.mean(axis=0)).max() < close
    assert (np.abs(phi) ** 2).mean(axis=0) == pytest.approx(1.0, abs=close)
    # E[(x + i y)_t | x, y] turns by exp(-(1 + 3i) lag): the first eigenfunction is (x + i y) / sqrt(2) or its conjugate
    fits = [abs(np.vdot(phi[:, 0], X @ [1, i])) / m / np.sqrt(2) for i in (1j, -1j)]
    assert max(fits) > 0.97
    assert min(fits) < 0.1
    assert np.abs(fitted.moments(X)).max() < close


def test_complex_gradients_are_those_of_the_functions():
    X, Y = rotating(1500, 2.0, 2)
    fitted = edmd(reversible=False).fit(X, successors=Y)
    Z, h = X[:20], 1e-5
    slopes = fitted.gradient(Z)
    for axis in range(2):
        step = h * np.eye(2)[axis]
        difference = (fitted.transform(Z + step) - fitted.transform(Z - step)) / (2 * h)
        assert np.abs(slopes[:, :, axis] - difference).max() < 1e-6 * np.abs(slopes).max()
    c = np.exp(1j * np.arange(slopes.shape[1]))
    combined = fitted.gradient(Z, c)
    assert np.abs(combined - np.einsum("nrd,r->nd", slopes, c)).max() < 1e-9 * np.abs(slopes).max()
    with pytest.raises(ValueError, match="one coefficient per mode"):
        fitted.gradient(Z, c[:1])


def test_conjugate_pairs_stay_whole():
    X, Y = rotating(1500, 3.0, 3)
    mu = np.array([0.9, 0.8 - 0.1j, 0.8 + 0.1j, 0.5])
    assert whole_pairs(mu, np.arange(4), 2).tolist() == [0]
    assert whole_pairs(mu, np.arange(4), 3).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="cuts a conjugate pair"):
        edmd(n_components=1, reversible=False).fit(X, successors=Y)


def test_a_quarter_turn_a_lag_is_seen():
    """cos(turn lag) = 0: symmetrised moments vanish, so that modes of theirs would show nothing."""
    X, Y = rotating(3000, np.pi / 2 / LAG, 4)
    with pytest.warns(RuntimeWarning, match="antisymmetric moment"):
        fitted = edmd().fit(X, successors=Y)
    assert fitted.asymmetry_ == pytest.approx(np.exp(-LAG), abs=0.1)


def trajectory(m, seed):
    rng = np.random.default_rng(seed)
    kicks = np.sqrt(1 - np.exp(-2 * LAG)) * rng.normal(size=(m + 1, 2))
    path = np.empty((m + 1, 2))
    path[0] = rng.normal(size=2)
    for i in range(m):
        path[i + 1] = np.exp(-LAG) * path[i] + kicks[i]
    return path[:-1], path[1:]


@pytest.mark.parametrize("kind", ["pairs", "trajectory", "wells"])
def test_reversible_data_do_not_warn(kind):
    """Level .001 a run: of 12 runs none may warn, and the moments stay within some four errors.

    Measured with 60 seeds each of these and two more: none of 300 warned, the largest ratio was 4.4 of 5.0 allowed.
    """
    for seed in range(12):
        if kind == "pairs":
            X, Y = rotating(400, 0.0, seed)
        elif kind == "trajectory":
            X, Y = trajectory(800, seed)
        else:
            X, Y = gk.datasets.quadruple_well(800, lag_time=LAG, random_state=seed)
        fitted = edmd(n_landmarks=100).fit(X, successors=Y)  # a warning is an error here
        assert fitted.asymmetry_ < 5.2 * fitted.asymmetry_error_


def test_modes_of_noise_are_flagged_and_logged(caplog):
    """Pairs four relaxation times apart know nothing; at a fifth the two leading modes are sound."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2000, 1))
    decay = np.exp(-0.2)
    Y = decay * X + np.sqrt(1 - decay**2) * rng.normal(size=X.shape)
    fitted = edmd(n_components=8, reg=0.02).fit(X, successors=Y)
    assert not fitted.is_noise_[:2].any()
    decay = np.exp(-4.0)
    Y = decay * X + np.sqrt(1 - decay**2) * rng.normal(size=X.shape)
    with caplog.at_level(logging.INFO, logger="gpukoop"):
        fitted = edmd(n_components=8, reg=0.02, lag_time=4.0).fit(X, successors=Y)
    assert fitted.is_noise_.all()
    assert f"{len(fitted.mu_)} of {len(fitted.mu_)} modes are noise" in caplog.text


def test_kswgd_refuses_complex_eigenvalues_in_words():
    X, Y = rotating(500, 3.0, 5)
    spectrum = edmd(reversible=False, n_landmarks=100).fit(X, successors=Y)
    with pytest.raises(ValueError, match="complex eigenvalues, those of a process that is not rev"):
        gk.KSWGD(spectrum=spectrum).fit(X)
    with pytest.raises(TypeError, match="reversible is 'no', expected True or False"):
        edmd(reversible="no").fit(X, successors=Y)


def test_short_data_are_not_judged():
    X, Y = rotating(150, 3.0, 6)
    fitted = edmd(n_components=2).fit(X, successors=Y)
    assert np.isnan(fitted.asymmetry_)
