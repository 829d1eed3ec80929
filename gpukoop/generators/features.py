"""Features in which generators of images are trained by default: pixels, and what two strided convolutions see in them.

========== ==============================================================================
kind       convolutions
========== ==============================================================================
random     filters of mean 0 and length 1; responses, and their mean sizes in 2 x 2 cells
classifier trained on the labels; responses, and the hidden layer behind them
========== ==============================================================================

Strides in place of pooling: a step of training costs as much as the network does, not four times as much. The scores of
:mod:`gpukoop.metrics` have other filters and other classifiers: a generator is not judged by what it was trained in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpukoop.generators.networks import library

KINDS = ("auto", "convolutions", "classifier")
# Filters of the two layers and their sides, width of the hidden layer.
FILTERS, SIDES, HIDDEN = (16, 32), (5, 3), 64
EPOCHS, BATCH, RATE = 8, 128, 2e-3
# Smallest side of an image, and images of a class below which no classifier is trained unless it is asked for.
SIDE, FEW = 8, 50


def check_kind(kind: str) -> None:
    """Raise unless there are features of this name."""
    if kind not in KINDS:
        raise ValueError(
            f"features is {kind!r}: choose one of {', '.join(KINDS)}, a function of tensors or None"
        )


def named_features(
    kind: str, X: np.ndarray, labels: np.ndarray | None, shape: tuple[int, ...], seed: int
) -> Any:
    """Return the features of that name for samples, or None where points are compared as they are.

    Parameters
    ----------
    kind : str
        "convolutions", "classifier", or "auto": the classifier for labelled images, convolutions for others, None for tables.
    X : array of shape (m, d)
    labels : integer array of shape (m,), optional
        Numbers of the classes from 0 on.
    shape : tuple
        Of a sample.
    seed : int
        Of the classifier's training.
    """
    check_kind(kind)
    seen = len(shape) > 1 and min(shape[:2]) >= SIDE
    if kind == "auto":
        if not seen:
            return None
        several = labels is not None and len(np.unique(labels)) > 1
        enough = several and np.bincount(np.asarray(labels)).min() >= FEW
        kind = "classifier" if enough else "convolutions"
    elif not seen:
        raise ValueError(
            f"features={kind!r} needs images of at least {SIDE} x {SIDE} pixels, not samples of shape {shape}"
        )
    lowest, highest = float(X.min()), float(X.max())
    return (
        _random(shape, lowest, highest)
        if kind == "convolutions"
        else _trained(X, labels, shape, lowest, highest, seed)
    )


def _layers(shape: tuple[int, ...]) -> tuple[Any, Any, int]:
    """Return both convolutions and how many responses the second has."""
    nn = library().nn
    into = (shape[2] if len(shape) > 2 else 1, FILTERS[0])
    first, second = (
        nn.Conv2d(a, b, side, stride=2, padding=side // 2)
        for a, b, side in zip(into, FILTERS, SIDES, strict=True)
    )
    cells = math.prod(-(-side // 4) for side in shape[:2])
    return first, second, FILTERS[1] * cells


def _planes(x: Any, lowest: float, highest: float) -> Any:
    """Return images (b, h, w) or (b, h, w, c) as (b, c, h, w) between 0 and 1."""
    planes = x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2)
    return (planes - lowest) / (highest - lowest)


def _random(shape: tuple[int, ...], lowest: float, highest: float) -> Callable[[Any], Any]:
    torch = library()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        first, second, _ = _layers(shape)
    for layer in (first, second):
        layer.requires_grad_(False)
        layer.bias.zero_()
        layer.weight -= layer.weight.mean((1, 2, 3), keepdim=True)
        layer.weight /= layer.weight.flatten(1).norm(dim=1)[:, None, None, None]
    leaky, pool = torch.nn.functional.leaky_relu, torch.nn.functional.adaptive_avg_pool2d

    def features(x: Any) -> Any:
        for layer in (first, second):
            layer.to(x.device)
        responses = leaky(second(leaky(first(_planes(x, lowest, highest)), 0.2)), 0.2)
        return x.flatten(1), responses.flatten(1), pool(responses.abs(), 2).flatten(1)

    return features


def _trained(
    X: np.ndarray,
    labels: np.ndarray | None,
    shape: tuple[int, ...],
    lowest: float,
    highest: float,
    seed: int,
) -> Callable[[Any], Any]:
    if labels is None or len(np.unique(labels)) < 2:
        raise ValueError(
            "features='classifier' needs labels of at least two classes: pass y, or features='convolutions'"
        )
    torch = library()
    nn = torch.nn
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, second, responses = _layers(shape)
        hidden, head = nn.Linear(responses, HIDDEN), nn.Linear(HIDDEN, int(labels.max()) + 1)
        body = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten())
        scores = nn.Sequential(
            body, nn.Dropout(0.3), hidden, nn.ReLU(), nn.Dropout(0.2), head
        ).train()
        optimizer = torch.optim.Adam(scores.parameters(), RATE)
        annealing = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, EPOCHS)
        pictures = _planes(torch.as_tensor(X).unflatten(1, shape), lowest, highest)
        classes = torch.as_tensor(labels)
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(X)).split(BATCH):
                optimizer.zero_grad()
                nn.functional.cross_entropy(scores(pictures[batch]), classes[batch]).backward()
                optimizer.step()
            annealing.step()
    scores.eval().requires_grad_(False)

    def features(x: Any) -> Any:
        scores.to(x.device)
        seen = body(_planes(x, lowest, highest))
        return x.flatten(1), seen, torch.relu(hidden(seen))

    return features
