"""The bandwidth of a kernel in any number of features and any unit, against closed forms."""

import numpy as np
import pytest

import gpukoop as gk
from gpukoop.spectrum.bandwidth import kernel_bandwidth

UNITS = (1e-9, 1.0, 1e9)


@pytest.mark.parametrize("scale", UNITS)
@pytest.mark.parametrize("d", [1, 2, 10, 256, 784, 3_072])
def test_closed_forms_in_any_dimension_and_unit(d, scale):
    assert kernel_bandwidth(gk.Gaussian(scale), d) == pytest.approx(scale**2, rel=1e-14)
    # exp(-r): r is Gamma(d), so E r^2 / d = (d + 1); scale 1 is exp(-r)
    assert kernel_bandwidth(gk.Laplace(scale), d) == pytest.approx((d + 1) * scale**2, rel=1e-9)


@pytest.mark.parametrize("d", [2, 784])
def test_sums_are_means_weighted_by_volume(d):
    a, b = 1.0, 1.0 + 1.0 / d
    share = 1 / (1 + 2 * (b / a) ** d)
    expected = share * a**2 + (1 - share) * b**2
    found = kernel_bandwidth(gk.Gaussian(a) + 2.0 * gk.Gaussian(b), d)
    assert found == pytest.approx(expected, rel=1e-12)
    assert kernel_bandwidth(0.1 * gk.Gaussian(a), d) == pytest.approx(a**2)


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS)
def test_a_diffusion_map_of_many_features(unit):
    rng = np.random.default_rng(0)
    X = unit * rng.normal(size=(120, 3)) @ rng.normal(size=(3, 784))
    fitted = gk.spectrum.DiffusionMap(n_components=3, random_state=0).fit(X)
    assert np.isfinite(fitted.eigenvalues_).all()
    assert fitted.bandwidth_ == pytest.approx(fitted.scale_**2)
    sampled = gk.KSWGD(n_components=3, random_state=0).fit(X).sample(50)
    assert np.abs(sampled.std() / X.std() - 1) < 0.15
