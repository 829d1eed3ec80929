"""The classifier behind :class:`gpukoop.metrics.ClassifierFeatures`: two convolutions, one hidden layer, trained by Adam."""

from __future__ import annotations

import io
import logging
from typing import Any

import numpy as np

from gpukoop.flow.identity import identity
from gpukoop.kernels import compiled
from gpukoop.torch.sums import library

RATE, BATCH, BLOCK = 2e-3, 128, 1_000
CHANNELS = (16, 32)
# Folder of the cache; its files carry their digest and belong to this user, as compiled code does.
ROOM = "classifiers"
_FORMAT = "gpukoop classifier 1"
_logger = logging.getLogger("gpukoop")


class Classifier:
    """A trained classifier.

    Parameters
    ----------
    body : torch.nn.Module
        Images (n, colours, height, width) -> features.
    head : torch.nn.Module
        Features -> scores of the classes.
    accuracy : float
        On images that it was not trained on.
    """

    def __init__(self, body: Any, head: Any, accuracy: float) -> None:
        self.body, self.head, self.accuracy = body, head, accuracy

    def __call__(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return features and scores of images (n, height, width, colours)."""
        torch = library()
        parts: list[tuple[Any, Any]] = []
        with torch.no_grad():
            for start in range(0, len(pictures), BLOCK):
                phi = self.body(_tensor(pictures[start : start + BLOCK]))
                parts.append((phi.numpy(), self.head(phi).numpy()))
        return np.concatenate([p for p, _ in parts]), np.concatenate([s for _, s in parts])


def train(
    pictures: np.ndarray,
    labels: np.ndarray,
    *,
    n_features: int,
    n_epochs: int,
    validation_fraction: float,
    rng: np.random.Generator,
    cache: bool,
) -> Classifier:
    """Train a classifier, or read the one that the same call has trained before.

    Parameters
    ----------
    pictures : array of shape (n, height, width, colours)
    labels : integer array of shape (n,)
    n_features, n_epochs, validation_fraction, cache
        As for :class:`gpukoop.metrics.ClassifierFeatures`.
    rng : numpy.random.Generator
    """
    torch = library()
    order, seed = rng.permutation(len(pictures)), int(rng.integers(2**31))
    n_aside = max(1, round(validation_fraction * len(pictures)))
    aside, rows = order[:n_aside], order[n_aside:]
    if not len(rows):
        raise ValueError(f"X has {len(pictures)} images: too few to keep some aside")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body, head = _networks(pictures.shape[1:], n_features, int(labels.max()) + 1)
    made = Classifier(body, head, float("nan"))
    name = None
    if cache:
        about = (
            pictures,
            labels,
            order,
            n_features,
            n_epochs,
            validation_fraction,
            seed,
            str(torch.__version__),
        )
        name = f"{identity(about)}.pt"
        if _read(name, made):
            return made
    _fit(made, _tensor(pictures[rows]), torch.as_tensor(labels[rows]), n_epochs, seed)
    made.accuracy = float((made(pictures[aside])[1].argmax(axis=1) == labels[aside]).mean())
    _logger.info(
        "classifier of %d classes trained: held-out accuracy %.3f", labels.max() + 1, made.accuracy
    )
    if name is not None:
        compiled.keep(ROOM, name, _content(made))
    return made


def _tensor(pictures: np.ndarray) -> Any:
    return library().from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))


def _networks(shape: tuple[int, ...], n_features: int, n_classes: int) -> tuple[Any, Any]:
    nn = library().nn
    height, width, colours = shape
    first, second = CHANNELS
    body = nn.Sequential(
        nn.Conv2d(colours, first, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(second * -(-height // 4) * -(-width // 4), n_features),
        nn.ReLU(),
    )
    return body, nn.Linear(n_features, n_classes)


def _fit(made: Classifier, X: Any, labels: Any, n_epochs: int, seed: int) -> None:
    torch = library()
    both = torch.nn.Sequential(made.body, made.head).train()
    optimizer = torch.optim.Adam(both.parameters(), RATE)
    n_batches = -(-len(X) // BATCH)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_epochs * n_batches)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout
        for _ in range(n_epochs):
            for batch in torch.randperm(len(X)).split(BATCH):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(both(X[batch]), labels[batch]).backward()
                optimizer.step()
                annealing.step()
    both.eval().requires_grad_(False)


def _read(name: str, made: Classifier) -> bool:
    """Take over what was kept under a name; a missing or damaged one is trained anew."""
    data = compiled.read(ROOM, name)
    if data is None:
        return False
    try:
        content = library().load(io.BytesIO(data), weights_only=True)
        if content["format"] != _FORMAT:
            return False
        made.body.load_state_dict(content["body"])
        made.head.load_state_dict(content["head"])
        made.accuracy = float(content["accuracy"])
    except Exception as error:  # noqa: BLE001
        # The digest fits, so another version wrote it; whatever is wrong, the answer is to train again.
        _logger.info("%s cannot be read (%s): the classifier is trained anew", name, error)
        return False
    library().nn.Sequential(made.body, made.head).eval().requires_grad_(False)
    return True


def _content(made: Classifier) -> bytes:
    buffer = io.BytesIO()
    content = {
        "format": _FORMAT,
        "body": made.body.state_dict(),
        "head": made.head.state_dict(),
        "accuracy": made.accuracy,
    }
    library().save(content, buffer)
    return buffer.getvalue()
