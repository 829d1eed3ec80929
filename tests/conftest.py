"""Options and fixtures of the whole suite."""

import pytest

import gpukoop as gk
from gpukoop.backends import BACKENDS


def pytest_addoption(parser):
    parser.addoption(
        "--require",
        default="",
        metavar="BACKENDS",
        help="comma-separated backends that must run: a skip of one of them becomes a failure",
    )


@pytest.fixture
def require(request):
    """Return a function that skips unless a backend runs here, in the backend's own words."""
    required = [name.strip() for name in request.config.getoption("--require").split(",")]

    def check(name):
        reason = gk.backends()[name]
        if reason is None:
            return
        if name in required:
            pytest.fail(f"--require {name}: {reason}", pytrace=False)
        pytest.skip(f"{name}: {reason}")

    return check


def pytest_configure(config):
    unknown = set(config.getoption("--require").replace(" ", "").split(",")) - {"", *BACKENDS}
    if unknown:
        raise pytest.UsageError(
            f"--require: unknown backend {', '.join(sorted(unknown))}; known are {', '.join(BACKENDS)}"
        )
