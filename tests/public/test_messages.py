"""A message about an argument calls it by the name that the public callable has for it."""

import inspect
import re
import warnings

import numpy as np
import pytest
from hostile_calls import PARTS, REFUSED
from hostile_rooms import PARTS as ROOMS

import gpukoop as gk

CALLS = PARTS | ROOMS
# Where the sentence names what the argument stands for, and the name is that of a general part.
OTHERWISE = {
    ("sampler.as_teacher", "source"),  # "teacher is ...": what is given as ``teacher=``
    ("sampler.Latent", "spec"),  # "latent is ...": what is given as ``latent=``
    ("synthesize", "X"),  # the columns are named
}


def public(name):
    thing = gk
    for part in name.partition(",")[0].split("."):
        thing = getattr(thing, part)
    return thing


def named():
    """Return the calls whose argument is a parameter of the public callable of that name."""
    for name, (_, good) in CALLS.items():
        try:
            parameters = inspect.signature(public(name)).parameters
        except (AttributeError, TypeError, ValueError):
            continue
        for argument, value in good.items():
            if argument in parameters and not callable(value) and name not in REFUSED:
                yield name, argument


CASES = [case for case in named() if case not in OTHERWISE]


@pytest.mark.parametrize(("name", "argument"), CASES, ids=["-".join(case) for case in CASES])
def test_the_argument_is_named(name, argument):
    for room in ("torch", "generators"):
        if name.startswith(room) or name in ("maps.TorchMap", "metrics.ClassifierFeatures"):
            pytest.importorskip("torch")
    function, good = CALLS[name]
    value = good[argument]
    if isinstance(value, np.ndarray):
        bad = [np.full(value.shape, np.nan), np.full(value.shape, None)]
    else:
        bad = [object()]
    for wrong in bad:
        with warnings.catch_warnings(), gk.use_backend("numpy"):
            warnings.simplefilter("ignore")
            said = argument
            try:
                function(**{**good, argument: wrong})
            except (ValueError, TypeError, IndexError) as error:
                said = str(error)
        assert re.search(rf"\b{argument}\b", said), said


def test_kinetics_and_distances_are_among_them():
    assert len(CASES) > 60
    assert {("kinetics.forecast", "X0"), ("torch.energy_distance", "Y")} <= set(CASES)
