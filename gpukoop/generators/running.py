"""The loop of a training: history, looks at samples kept aside, checkpoints, callbacks, and an end by Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from gpukoop.generators.saved import Saved
    from gpukoop.generators.training import Training

# Looks of a run at the samples kept aside, and points of a look.
LOOKS, LOOKED_AT = 20, 1_000


def run(
    training: Training,
    n_iter: int,
    look: Callable[[], float] | None,
    callback: Callable[[int, dict[str, float]], Any] | None,
    saved: Saved | None,
    verbose: bool,
) -> dict[str, np.ndarray]:
    """Take the steps that are left and return the history.

    Parameters
    ----------
    training : Training
    n_iter : int
        Steps of the whole run.
    look : callable, optional
        Returns the distance of new samples to those kept aside.
    callback : callable, optional
        ``callback(step, metrics)``; True ends the run.
    saved : Saved, optional
        The checkpoint; a run that it holds is continued.
    verbose : bool
        Whether a progress bar is shown.
    """
    history: dict[str, list[float]] = {} if saved is None else saved.begin(training)
    before = history["seconds"][-1] if history.get("seconds") else 0.0
    started = time.perf_counter()
    every = max(1, n_iter // LOOKS)
    bar = tqdm(total=n_iter, initial=training.iteration, disable=not verbose)
    try:
        while training.iteration < n_iter:
            measures = training.step()
            done = training.iteration
            measures["seconds"] = before + time.perf_counter() - started
            for name in ("energy", "velocity", "regression_error", "seconds"):
                history.setdefault(name, []).append(float(measures[name]))
            if look is not None and (done % every == 0 or done == n_iter):
                measures["distance"] = look()
                history.setdefault("step", []).append(float(done))
                history.setdefault("distance", []).append(measures["distance"])
                bar.set_postfix(distance=f"{measures['distance']:.2f}")
            bar.update()
            if saved is not None and (done % saved.every == 0 or done == n_iter):
                saved.write(training, history)
            if callback is not None and callback(done - 1, measures):
                if saved is not None and done % saved.every and done != n_iter:
                    saved.write(training, history)
                break
    except KeyboardInterrupt:
        # Hours of training are worth more than the exception: what is there is kept, and n_iter_ says how far it came.
        pass
    finally:
        bar.close()
    return {name: np.asarray(values) for name, values in history.items()}
