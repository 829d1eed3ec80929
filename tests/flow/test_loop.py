"""The loop that every flow shares: history, stopping, divergence, checkpoints."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from gpukoop.flow.loop import Info, State, run_flow, seed_from

NOISY = """
import sys, time
import numpy as np
from dataclasses import dataclass
from gpukoop.flow.loop import Info, State, run_flow

@dataclass(frozen=True)
class Sum:
    total: np.ndarray | None = None

def step(state, rng):
    Z = 0.9 * state.particles + 0.1 * rng.standard_normal(state.particles.shape)
    time.sleep(float(sys.argv[2]))
    before = np.zeros(2) if state.memory.total is None else state.memory.total
    memory = Sum(before + Z.mean(axis=0))
    return State(Z, memory=memory), Info({"mean": float(Z.mean())})

out = run_flow(step, State(np.ones((500, 2)), memory=Sum()), 60, seed=3, step_size=0.1, checkpoint=sys.argv[1],
               checkpoint_every=1, fingerprint="noisy")
np.savez(sys.argv[3], Z=out.particles, mean=out.history["mean"])
"""


def shrink(state, rng):
    return State(0.5 * state.particles), Info({"size": float(abs(state.particles).max())})


def test_history_and_count():
    out = run_flow(shrink, State(np.full((3, 2), 8.0)), 3, seed=0, step_size=1.0)
    assert out.n_iter == 3
    assert not out.converged
    assert out.history["size"].tolist() == [8.0, 4.0, 2.0]
    assert (out.particles == 1.0).all()


def test_convergence_leaves_the_particles_as_measured():
    def step(state, rng):
        following, info = shrink(state, rng)
        return following, Info(info.measures, converged=info.measures["size"] < 3)

    out = run_flow(step, State(np.full((3, 2), 8.0)), 50, seed=0, step_size=1.0)
    assert out.converged
    assert out.n_iter == 2
    assert (out.particles == 2.0).all()


def test_callback_sees_copies_in_order_and_can_stop():
    seen = []

    def callback(i, Z):
        seen.append((i, float(Z[0, 0])))
        return i == 1

    out = run_flow(
        shrink, State(np.full((3, 2), 8.0)), 50, seed=0, step_size=1.0, callback=callback
    )
    assert seen == [(0, 4.0), (1, 2.0)]
    assert out.n_iter == 2


def test_divergence_is_named_and_the_last_finite_particles_are_kept():
    def step(state, rng):
        Z = state.particles.copy()
        if state.iteration == 4:
            Z[1, 0] = np.nan
        return State(Z + 1), Info({"x": 0.0})

    with pytest.warns(
        ConvergenceWarning, match=r"step 4 of 9 diverged: 1 of 3 particles.*step_size"
    ):
        out = run_flow(step, State(np.zeros((3, 2))), 9, seed=0, step_size=7.0)
    assert (out.particles == 4.0).all()
    assert not out.converged


def test_streams_depend_on_seed_and_step_only():
    def draw(state, rng):
        return State(state.particles + rng.standard_normal(state.particles.shape)), Info({})

    runs = [
        run_flow(draw, State(np.zeros((4, 2))), 5, seed=s, step_size=1.0).particles
        for s in (1, 1, 2)
    ]
    assert (runs[0] == runs[1]).all()
    assert (runs[0] != runs[2]).any()


@pytest.mark.parametrize("bad", [-1, 1.5, "1", True])
def test_bad_random_state(bad):
    with pytest.raises((TypeError, ValueError), match="random_state"):
        seed_from(bad)


def test_generator_of_the_caller_is_undisturbed():
    rng, twin = np.random.default_rng(5), np.random.default_rng(5)
    seed_from(rng)
    assert rng.random() == twin.random()


def start(path: Path, pause: float, out: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", NOISY, str(path), str(pause), str(out)])


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path):
    whole = start(tmp_path / "whole.ckpt", 0.0, tmp_path / "whole.npz")
    assert whole.wait(60) == 0
    path, out = tmp_path / "killed.ckpt", tmp_path / "killed.npz"
    rng = np.random.default_rng(0)
    kills = 0
    for _ in range(10):
        process = start(path, 0.02, out)
        deadline = time.monotonic() + 30
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.15))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        assert not list(tmp_path.glob("killed.ckpt*.npz"))
    assert kills >= 5
    assert start(path, 0.0, out).wait(60) == 0
    with np.load(tmp_path / "whole.npz") as a, np.load(out) as b:
        assert (a["Z"] == b["Z"]).all()
        assert (a["mean"] == b["mean"]).all()


def checkpointed(path, fingerprint="a", every=1, n_iter=3):
    return run_flow(
        shrink,
        State(np.full((3, 2), 8.0)),
        n_iter,
        seed=0,
        step_size=1.0,
        checkpoint=path,
        checkpoint_every=every,
        fingerprint=fingerprint,
    )


def test_damaged_checkpoints_are_refused(tmp_path):
    path = tmp_path / "run.ckpt"
    checkpointed(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(20):
        flipped = bytearray(whole)
        flipped[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(flipped))
        with pytest.raises(ValueError, match=r"run\.ckpt is damaged"):
            checkpointed(path)
    for size in (0, 10, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"run\.ckpt is damaged"):
            checkpointed(path)


def test_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.ckpt"
    checkpointed(path, "a")
    with pytest.raises(ValueError, match=r"run\.ckpt belongs to another run"):
        checkpointed(path, "b")


def test_finished_run_is_returned_again(tmp_path):
    path = tmp_path / "run.ckpt"
    first, second = checkpointed(path), checkpointed(path)
    assert (first.particles == second.particles).all()
    assert second.history["size"].tolist() == [8.0, 4.0, 2.0]


def test_unwritable_paths_are_reported_before_the_first_step(tmp_path):
    def never(state, rng):
        raise AssertionError("a step was taken")

    for path, words in (
        (tmp_path / "no" / "run.ckpt", "does not exist"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(ValueError, match=words):
            run_flow(never, State(np.ones((2, 2))), 3, seed=0, step_size=1.0, checkpoint=path)


def test_full_disk_is_reported_before_the_first_step(tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(OSError, match="MB free"):
        checkpointed(tmp_path / "run.ckpt")


def test_failed_write_keeps_the_file_and_leaves_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "run.ckpt"
    checkpointed(path)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"run\.ckpt"):
        checkpointed(path, n_iter=3)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.ckpt"]


def test_checkpoint_every_without_path():
    with pytest.raises(ValueError, match="checkpoint=PATH"):
        run_flow(shrink, State(np.ones((2, 2))), 3, seed=0, step_size=1.0, checkpoint_every=2)


def test_only_true_stops():
    start = State(np.ones((3, 2)))
    for answer, steps in ((None, 4), (np.ones(3), 4), (1, 4), (True, 1), (np.True_, 1)):
        out = run_flow(shrink, start, 4, seed=0, step_size=1.0, callback=lambda i, Z, a=answer: a)
        assert out.n_iter == steps
    with pytest.raises(TypeError, match="callback is of type int, expected a function"):
        run_flow(shrink, start, 4, seed=0, step_size=1.0, callback=3)


def test_bad_paths_and_intervals(tmp_path):
    start = State(np.ones((3, 2)))
    for path in (3, b"run"):
        with pytest.raises(TypeError, match=r"checkpoint is .*expected the path"):
            run_flow(shrink, start, 4, seed=0, step_size=1.0, checkpoint=path)
    for every in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="checkpoint_every must be an int >= 1"):
            run_flow(
                shrink,
                start,
                4,
                seed=0,
                step_size=1.0,
                checkpoint=tmp_path / "run",
                checkpoint_every=every,
            )
    assert not list(tmp_path.iterdir())
