"""The estimator: a network trained by a flow, with scikit-learn's verbs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpukoop.arrays import to_host
from gpukoop.draws import check_count
from gpukoop.estimators.verdict import set_aside
from gpukoop.fitted import own_points, remember_columns, whole
from gpukoop.flow.loop import seed_from
from gpukoop.generators.checked import check_callback, check_parameters, device_of
from gpukoop.generators.critics import NetworkCritic
from gpukoop.generators.drawing import DrawingMixin
from gpukoop.generators.features import named_features
from gpukoop.generators.networks import bounded, convolutional, library, perceptron
from gpukoop.generators.objectives import NETWORK_ONLY, REGULARIZATION, choices
from gpukoop.generators.running import LOOKED_AT, LOOKS, run
from gpukoop.generators.samples import checked_labels, distance_multiple, flat, rank, within
from gpukoop.generators.saved import Saved
from gpukoop.generators.seeing import Seen
from gpukoop.generators.training import Schedule, Training
from gpukoop.persistence import PersistentEstimator

if TYPE_CHECKING:
    import torch

Callback = Callable[[int, "Generator", dict[str, float]], Any]


class Generator(DrawingMixin, PersistentEstimator):
    r"""A neural generator that follows a flow: one network evaluation a sample.

    .. math:: \theta \leftarrow \arg\min_\theta \tfrac{1}{2b} \sum_i |G_{\theta_k}(y_i) + h\, v(G_{\theta_k}(y_i)) - G_\theta(y_i)|^2

    by K optimizer steps a batch, v the velocity of the objective (:mod:`gpukoop.generators.objectives`).

    Parameters
    ----------
    network : torch.nn.Module or callable, optional
        (b, latent_dim + number of classes) -> (b, d), or ``network(n_inputs, shape)`` that makes one. Copied, never changed. By
        default a perceptron for tables and transposed convolutions for images.
    objective : str
        "sinkhorn", "w2", "sliced-w2", "mmd", "energy", "sliced-energy", "drmmd", "kale", "drift", "w1", or an f-divergence:
        "kl", "reverse-kl", "chi2", "reverse-chi2", "js", "hellinger", "tv", "alpha(a)".
    critic : "kernel", "network" or "spectral"
        Who classifies particles against samples for an f-divergence; "spectral" norms the layers of the critic of w1.
    latent_dim : int
        Of the standard normal latent points.
    features : str, torch.nn.Module or callable, optional
        Where particles and samples are compared, and the network is regressed: tensor (b, ...) in the shape and units of the data
        -> (b, p), or a tuple of such, whose objectives are added; lengths are then in units of the first. None compares points as
        they are. "auto" does so for tables, takes "convolutions" (random ones) for images and "classifier" (a small one, trained on
        the labels first) for labelled images: ``gpukoop.generators.features``.
    conditional : bool
        False draws all classes alike: labels then serve the features alone.
    scale : float or sequence of float, optional
        Of the Gaussian kernels, in units of the data; by default a mixture around the median distance within a class.
    blur : float, optional
        sqrt(eps) of Sinkhorn, in units of the data; by default a twentieth of their width within a class, seven tenths of it in more
        than 30 dimensions, where all distances of a batch are alike.
    regularization : float
        Of drmmd, kale and the classifier in closed form.
    step_size : float
        h; 1 sends each particle all the way that the objective says.
    persistence : int
        K.
    jko : float, optional
        tau of a JKO step, None for forward Euler steps: the velocity is asked for at each of the K steps, and a pull 1 / tau
        keeps the particles near where the step began.
    batch_size, n_iter : int
        Samples (and particles) of a batch, and batches.
    learning_rate : float
        Of Adam at the start; it falls to 2 % along a cosine.
    ema_decay : float
        Of the running mean of the parameters, which is what samples.
    clip : float, optional
        Largest norm of a gradient.
    validation_fraction : float
        Share of the samples kept aside, at most half; their energy distance is in ``history_``.
    device : str or torch.device, optional
        "cpu", "cuda"; by default that of the data if they are tensors, else the network's.
    mixed_precision : bool
        Half precision inside the network, on CUDA.
    backend : str, optional
        Who computes kernel sums.
    random_state : None, int, Generator or RandomState
        One seed gives the same network on the same CPU and number of threads, bit for bit.
    verbose : int
        1 shows a progress bar.

    Attributes
    ----------
    history_ : dict of str to array
        "energy" (the objective on the batch), "velocity" (root mean square), "regression_error", "seconds" of each step, and
        "step", "distance" at the looks: energy distance to the samples kept aside, in units of what as many fresh samples
        show (about 1 is as good as data). Lengths are in units of the data.
    classes_ : array, optional
        Labels given to ``fit``, of a conditional generator.
    network_ : torch.nn.Module
        The running mean; it works in units of the data's width around their mean.
    n_features_in_, n_iter_ : int

    References
    ----------
    .. [1] Y.-J. Huang, Z. Malik, arXiv 2406.13619. .. [2] C. Caucheteux, C. Bonet, A. Korba, arXiv 2605.31369. .. [3] M. Deng et al., arXiv 2602.04770.
    """

    def __init__(
        self,
        network: Any = None,
        objective: str = "sinkhorn",
        critic: str = "kernel",
        latent_dim: int = 16,
        features: Any = "auto",
        conditional: bool = True,
        scale: float | tuple[float, ...] | None = None,
        blur: float | None = None,
        regularization: float = REGULARIZATION,
        step_size: float = 1.0,
        persistence: int = 1,
        jko: float | None = None,
        batch_size: int = 256,
        n_iter: int = 2_000,
        learning_rate: float = 2e-3,
        ema_decay: float = 0.995,
        clip: float | None = None,
        validation_fraction: float = 0.1,
        device: Any = None,
        mixed_precision: bool = False,
        backend: str | None = None,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.network = network
        self.objective = objective
        self.critic = critic
        self.latent_dim = latent_dim
        self.features = features
        self.conditional = conditional
        self.scale = scale
        self.blur = blur
        self.regularization = regularization
        self.step_size = step_size
        self.persistence = persistence
        self.jko = jko
        self.batch_size = batch_size
        self.n_iter = n_iter
        self.learning_rate = learning_rate
        self.ema_decay = ema_decay
        self.clip = clip
        self.validation_fraction = validation_fraction
        self.device = device
        self.mixed_precision = mixed_precision
        self.backend = backend
        self.random_state = random_state
        self.verbose = verbose

    @whole
    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        callback: Callback | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_every: int | None = None,
    ) -> Generator:
        """Train the network on samples.

        Parameters
        ----------
        X : array or tensor of shape (m, d), (m, height, width) or (m, height, width, colours)
            Images are flattened; ``sample`` gives them back in their shape.
        y : array of shape (m,), optional
            Labels: the generator is then conditional, ``sample(n, y=label)``, unless ``conditional`` is False.
        callback : callable, optional
            ``callback(step, generator, metrics)`` after each step; returning True stops. ``generator.sample`` works in it.
        checkpoint : path, optional
            State of the training, written atomically; if the file is there, the training that wrote it continues and, on a
            CPU, ends with the same bits.
        checkpoint_every : int, optional
            Steps between two writes; a twentieth of the run by default.

        Returns
        -------
        self

        Raises
        ------
        ImportError
            If PyTorch is not installed.
        ValueError, TypeError
            If the samples are no finite numbers, a parameter is out of range, or the checkpoint is of another training.
        FloatingPointError
            If the training diverges.

        Notes
        -----
        Ctrl-C ends the training and keeps what was trained. Cost of a step: one evaluation of the network and its gradient for
        each of K, and the objective on a batch.
        """
        check_parameters(self)
        check_callback(callback)
        training, aside = self._begin(X, y)
        saved = None
        if checkpoint is not None:
            every = max(1, self.n_iter // LOOKS) if checkpoint_every is None else checkpoint_every
            saved = Saved(
                checkpoint, self._identity(training), check_count(every, "checkpoint_every")
            )
        self._source = training.source
        self.history_ = run(
            training,
            self.n_iter,
            None if aside is None else lambda: self._look(aside),
            None if callback is None else lambda step, metrics: callback(step, self, metrics),
            saved,
            bool(self.verbose),
        )
        self.n_iter_, self.network_ = training.iteration, training.finished()
        return self

    def _begin(self, X: Any, y: Any) -> tuple[Training, np.ndarray | None]:
        """Return the training before its first step, and the samples kept aside in its units."""
        torch = library()
        device = self.device
        if isinstance(X, torch.Tensor):
            device = X.device if device is None else device
            X = (X.float() if X.dtype is torch.bfloat16 else X).detach().cpu().numpy()
        device = device_of(device)
        remember_columns(self, X)
        native = to_host(own_points(X, "X")[0]) if rank(X) == 2 else flat(X)
        self.shape_ = tuple(int(s) for s in np.shape(X)[1:])
        self.n_features_in_ = native.shape[1]
        labels = None if y is None else checked_labels(y, len(native))
        known = np.unique([] if labels is None else labels)
        self.classes_ = known if self.conditional and len(known) else None
        numbered = np.arange(len(native), dtype=float)[:, None]
        kept, _, aside = set_aside(numbered, None, self.validation_fraction)
        rows = kept[:, 0].astype(int)
        self._measure(native)
        self.X_, self.range_ = native, (float(native.min()), float(native.max()))
        self.X_held_out_ = None if aside is None else native[aside[:, 0].astype(int)]
        standard = ((native[rows] - self.centre_) / self.width_).astype(np.float32)
        numbers = None if labels is None else np.searchsorted(known, labels[rows])
        seed = seed_from(self.random_state)
        seen = features = None
        looks = self.features
        if isinstance(looks, str):
            looks = named_features(looks, native[rows], numbers, self.shape_, seed % 2**63)
        numbers = numbers if self.conditional else None
        classes = None if numbers is None else np.eye(len(known), dtype=np.float32)[numbers]
        if looks is not None:
            seen = Seen(looks, self.centre_, self.width_, self.shape_, device)
            features = seen.of_samples(standard, numbers)
        unit = self.width_ if seen is None else seen.width
        n_inputs = self.latent_dim + (0 if classes is None else classes.shape[1])
        scale = None if self.scale is None else tuple(np.atleast_1d(self.scale) / unit)
        blur = None if self.blur is None else self.blur / unit
        by_network = self.objective in NETWORK_ONLY or self.critic == "network"
        compared = standard if features is None else features
        settings = scale, blur, self.regularization, self.backend
        parts = [slice(None)] if seen is None or by_network else seen.spaces
        spaces = [(p, choices(within(compared[:, p], numbers), *settings)) for p in parts]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**63)
            network = self._network(n_inputs)
            critic = None
            if by_network:
                columns = compared.shape[1] + n_inputs - self.latent_dim
                normed = self.critic == "spectral"
                critic = NetworkCritic(self.objective, columns, device, spectral=normed)
        training = Training(
            network,
            standard,
            classes,
            self.objective,
            spaces,
            critic,
            Schedule.of(self, device),
            self.latent_dim,
            device,
            seed % 2**63,
            seen,
            features,
        )
        return training, self.X_held_out_

    def _network(self, n_inputs: int) -> torch.nn.Module:
        torch = library()
        if isinstance(self.network, torch.nn.Module):
            return copy.deepcopy(self.network)
        if self.network is not None:
            made = self.network(n_inputs, self.shape_)
            if not isinstance(made, torch.nn.Module):
                raise TypeError(
                    f"network(n_inputs, shape) returned a {type(made).__name__}, expected a torch.nn.Module"
                )
            return made
        if len(self.shape_) > 1:
            # Pixels stay in the range that they have in the data.
            bounds = ((edge - self.centre_) / self.width_ for edge in self.range_)
            return bounded(convolutional(n_inputs, self.shape_), *bounds)
        return perceptron(n_inputs, self.n_features_in_)

    def _look(self, aside: np.ndarray) -> float:
        size = min(LOOKED_AT, len(aside))
        return distance_multiple(self._draw(size, None, 0), aside[:size])

    def _identity(self, training: Training) -> str:
        from gpukoop.flow.identity import identity

        parameters = {
            k: v
            for k, v in self.get_params(deep=False).items()
            if k not in ("verbose", "network", "features")
        }
        weights = [t.detach().cpu().numpy() for t in training.network.state_dict().values()]
        classes = None if training.classes is None else training.classes.cpu().numpy()
        seen = None if training.seen is None else training.X.cpu().numpy()
        return identity((type(self).__qualname__, parameters, self.X_, classes, weights, seen))
