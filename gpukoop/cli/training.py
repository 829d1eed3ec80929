"""``gpukoop train`` and ``gpukoop sample --model DIR``: a folder with the model, its checkpoint, pictures, curves and metrics."""

from __future__ import annotations

import argparse
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gpukoop import metrics
from gpukoop.cli.terminal import folder, say, writable
from gpukoop.datasets import images
from gpukoop.draws import random_generator
from gpukoop.files import write_atomically
from gpukoop.generators.generator import Generator
from gpukoop.generators.samples import distance_multiple
from gpukoop.tables import ENDINGS, read_table, require_writer, table_bytes

MODEL, CHECKPOINT = "model.pt", "checkpoint.pt"
# Images of the grid along a side; points that metrics are computed from, at most.
GRID, SCORED = 10, 2_000


def train(arguments: argparse.Namespace) -> int:
    """Train a generator on images or a table, and write the folder."""
    from gpukoop import plot

    plot.require_matplotlib()
    out: Path = arguments.out
    folder(out)
    X, y = samples(arguments.data)
    if arguments.classifier and (y is None or min(X.shape[1:3]) < 8):
        raise ValueError("--classifier needs images of at least 8 x 8 pixels with labels: drop it")
    generator = Generator(
        objective=arguments.objective,
        n_iter=arguments.steps,
        batch_size=arguments.batch,
        latent_dim=arguments.latent,
        persistence=arguments.persistence,
        conditional=not arguments.no_labels,
        learning_rate=arguments.rate,
        device=arguments.device,
        random_state=arguments.seed,
        verbose=0 if arguments.quiet else 1,
    )
    with made(out), interruptions() as asked:
        generator.fit(X, y, callback=lambda *_: bool(asked), checkpoint=out / CHECKPOINT)
    generator.save(out / MODEL)
    facts = report(generator, X, y, arguments)
    write_atomically(out / "metrics.json", (json.dumps(facts, indent=1) + "\n").encode())
    write_atomically(out / "training.png", plot.png(plot.training(generator.history_)))
    write_atomically(out / "samples.png", plot.png(_figure(plot, generator, arguments.seed)))
    if not arguments.quiet:
        done = f"{generator.n_iter_} of {generator.n_iter} steps"
        again = "" if generator.n_iter_ == generator.n_iter else "; the same command continues"
        say(f"{done}, written to {out}{again}")
    return 130 if asked else 0


def sample(arguments: argparse.Namespace) -> int:
    """Draw from a trained generator."""
    if arguments.checkpoint is not None:
        raise ValueError("--checkpoint belongs to runs of particles; a generator samples in one go")
    writable(arguments.out, *ENDINGS)
    require_writer(arguments.out)
    plot: Any = None
    if arguments.figure is not None:
        from gpukoop import plot

        writable(arguments.figure, ".png")
        plot.require_matplotlib()
    generator = Generator.load(arguments.model / MODEL)
    label = arguments.label
    if (
        label is not None
        and generator.classes_ is not None
        and generator.classes_.dtype.kind in "iu"
    ):
        label = int(label) if label.lstrip("-").isdigit() else label
    names = getattr(generator, "feature_names_in_", None)
    Z = np.asarray(generator.sample(arguments.particles, label, random_state=arguments.seed))
    if arguments.out.suffix not in (".npz", ".npy"):
        Z = Z.reshape(len(Z), -1)
    write_atomically(arguments.out, table_bytes(arguments.out, Z, names))
    if plot is not None:
        Z = Z.reshape(len(Z), *generator.shape_)
        figure = plot.pictures(Z[: GRID**2]) if Z.ndim > 2 else plot.particles(Z)
        write_atomically(arguments.figure, plot.png(figure))
    if not arguments.quiet:
        say(f"{len(Z)} samples written to {arguments.out}")
    return 0


def samples(path: Path) -> tuple[Any, Any]:
    """Return images and their labels, if there are any, or the rows of a table and None."""
    if path.suffix in (".csv", ".parquet"):
        return read_table(path), None
    if path.is_file() and path.suffix in (".npy", ".npz"):
        try:
            rows = read_table(path)
        except ValueError:
            rows = None  # several arrays: images and their labels
        if rows is not None and np.ndim(rows) == 2:
            return rows, None
    try:
        return images(path, return_labels=True)
    except ValueError as error:
        if "no labels" not in str(error):
            raise
        return images(path), None


@contextmanager
def made(out: Path) -> Iterator[None]:
    """Make a folder; where the work in it fails before it wrote anything, take it and its new parents away again."""
    new = [p for p in (out, *out.parents) if not p.exists()]  # upwards
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in new:
            if any(path.iterdir()):
                break
            path.rmdir()
        raise


@contextmanager
def interruptions() -> Iterator[list[int]]:
    """Collect the first Ctrl-C in a list, so that a step ends before the run does; the second one is not caught."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked  # signals belong to the main thread
        return

    def note(number: int, frame: Any) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def report(generator: Generator, X: Any, y: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what ``metrics.json`` holds: scores of new samples, and the same of real ones, against samples kept aside."""
    aside = generator.X_held_out_
    facts: dict[str, Any] = {
        "data": str(arguments.data),
        "objective": generator.objective,
        "conditional": generator.classes_ is not None,
        "steps": generator.n_iter_,
        "steps_asked": generator.n_iter,
        "seconds": float(generator.history_["seconds"][-1]) if generator.n_iter_ else 0.0,
        "seed": arguments.seed,
    }
    if aside is None:
        return facts
    aside = aside[:SCORED]
    n = len(aside)
    made = np.asarray(generator.sample(n, random_state=arguments.seed + 1)).reshape(n, -1)
    rows = random_generator(arguments.seed).permutation(len(generator.X_))[:n]
    real = generator.X_[rows]
    facts |= {"scored": n, "distance": distance_multiple(made, aside)}
    shape = generator.shape_
    if len(shape) < 2 or min(shape[:2]) < 8 or n < 2:
        return facts
    stack = lambda Z: np.asarray(Z).reshape(len(Z), *shape)
    kinds: dict[str, Any] = {"convolutions": metrics.RandomConvolutions().fit(stack(generator.X_))}
    if arguments.classifier and y is not None:
        kinds["classifier"] = metrics.ClassifierFeatures().fit(X, y)
        facts["classifier_accuracy"] = kinds["classifier"].accuracy_
    for name, features in kinds.items():
        clouds = [features.transform(stack(Z)) for Z in (made, real, aside)]
        kid = metrics.kernel_distance(clouds[0], clouds[2])
        facts[name] = {
            "frechet": metrics.frechet_distance(clouds[0], clouds[2]),
            "frechet_real": metrics.frechet_distance(clouds[1], clouds[2]),
            "kernel_distance": kid.value,
            "kernel_distance_error": kid.error,
        }
    return facts


def _figure(plot: Any, generator: Generator, seed: int) -> Any:
    if len(generator.shape_) < 2:
        return plot.particles(generator.sample(SCORED, random_state=seed), data=generator.X_)
    classes = generator.classes_
    if classes is None:
        return plot.pictures(generator.sample(GRID**2, random_state=seed), columns=GRID)
    shown = classes[: 2 * GRID]
    made = generator.sample(GRID * len(shown), np.repeat(shown, GRID), random_state=seed)
    return plot.pictures(made, columns=GRID)
