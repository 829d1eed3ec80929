"""Checks of a generator's parameters."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpukoop.draws import check_count, check_flag, check_positive
from gpukoop.generators.features import check_kind
from gpukoop.generators.networks import library
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
    several = isinstance(generator.scale, tuple | list | np.ndarray) and np.ndim(generator.scale)
    lengths = generator.scale if several else (generator.scale,)
    if not len(lengths):
        raise ValueError("scale is empty: pass a number, several, or None for the median rule")
    for length in () if generator.scale is None else lengths:
        check_positive(length, "scale")
    for name in ("mixed_precision", "conditional"):
        check_flag(getattr(generator, name), name)
    network, features = generator.network, generator.features
    if network is not None and not callable(network):
        raise TypeError(
            f"network is {network!r}, expected a torch.nn.Module, or a function (n_inputs, shape) that returns one"
        )
    if isinstance(features, str):
        check_kind(features)
    elif features is not None and not (callable(features) or hasattr(features, "transform")):
        kind = type(features).__name__
        raise TypeError(f"features is a {kind}, expected a torch.nn.Module, a function or a name")
    device_of(generator.device)
    for name, most in (("ema_decay", 0.99999), ("validation_fraction", 0.5)):
        if check_positive(getattr(generator, name), name, zero=True) > most:
            raise ValueError(f"{name} is {getattr(generator, name)}: pass a number in [0, {most}]")


def check_callback(callback: Any) -> None:
    """Raise unless it is None or can be called."""
    if callback is not None and not callable(callback):
        kind = type(callback).__name__
        raise TypeError(f"callback is a {kind}, expected a function (step, generator, metrics)")


def device_of(device: Any) -> Any:
    """Return a torch device, the CPU for None; raise in words where there is none of this name."""
    torch = library()
    try:
        made = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError, ValueError):  # an unknown word, no word, beyond a long
        made = None
    if made is None or made.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device is {device!r}, expected 'cpu', 'cuda' or one such as 'cuda:1'")
    if made.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device is {device!r}, and this PyTorch finds no CUDA device: pass device='cpu', or install its CUDA build"
        )
    return made
