"""Checks of a generator's parameters."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpukoop.draws import check_count, check_positive
from gpukoop.generators.objectives import check_objective
from gpukoop.parameters import check_shared


def check_parameters(generator: Any) -> None:
    """Raise unless every parameter is one that a training can use."""
    check_shared(generator)
    check_objective(generator.objective, generator.critic)
    for name in ("latent_dim", "persistence", "batch_size", "n_iter"):
        check_count(getattr(generator, name), name, least=2 if name == "batch_size" else 1)
    for name in ("regularization", "step_size", "learning_rate"):
        check_positive(getattr(generator, name), name)
    for name in ("jko", "clip", "blur"):
        if getattr(generator, name) is not None:
            check_positive(getattr(generator, name), name)
    for length in () if generator.scale is None else np.atleast_1d(generator.scale):
        check_positive(float(length), "scale")
    for name, most in (("ema_decay", 0.99999), ("validation_fraction", 0.5)):
        if check_positive(getattr(generator, name), name, zero=True) > most:
            raise ValueError(f"{name} is {getattr(generator, name)}: pass a number in [0, {most}]")
