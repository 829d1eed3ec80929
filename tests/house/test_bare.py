"""A machine with the base dependencies only: no GPU, no compiler, no optional package."""

import os
import subprocess
import sys
import textwrap

SCRIPT = """
    import sys

    ABSENT = {"pykeops", "keopscore", "cupy", "cupyx", "finufft", "cufinufft", "matplotlib", "torch", "dask",
              "distributed", "numba_cuda", "array_api_strict"}

    class Blocker:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ABSENT:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Blocker())
    import numpy as np
    import gpukoop as gk
    from gpukoop.cli import main

    X = np.random.default_rng(0).standard_normal((300, 2))
    reasons = gk.backends()
    assert reasons["numpy"] is None and reasons["numba-cpu"] is None, reasons
    for name in ("keops", "numba-cuda", "fourier"):
        assert reasons[name], name
        try:
            gk.Gaussian(1.0)(X, backend=name, tol=1e-3) @ X
        except gk.BackendError as error:
            assert reasons[name] in str(error)
        else:
            raise AssertionError(name)
    ends = []
    for name in ("numpy", "numba-cpu"):
        flow = gk.KSWGD(n_components=8, total_time=1.0, backend=name, random_state=0).fit(X)
        ends.append(flow.sample(19))
        assert flow.backend_ == name
    assert np.abs(ends[0] - ends[1]).max() < 1e-6
    gk.MMDFlow(n_iter=3, random_state=0).fit(X).sample(19)
    gk.WassersteinFlow(n_iter=2, random_state=0).fit(X).sample(19)
    np.save(sys.argv[1] + "/X.npy", X)
    common = ["sample", "kswgd", "--data", sys.argv[1] + "/X.npy", "--particles", "9", "--components", "4", "--quiet"]
    assert main([*common, "--out", sys.argv[1] + "/Z.npz"]) == 0
    assert main([*common, "--out", sys.argv[1] + "/Z.npz", "--figure", sys.argv[1] + "/F.png"]) == 2
    assert main(["info"]) == 0
    print("done")
"""


def test_everything_runs_on_the_base_dependencies(tmp_path):
    environment = {**os.environ, "PATH": "", "CXX": "no-such-compiler"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(SCRIPT), str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("done")
    assert "pip install gpukoop[plot]" in done.stderr
