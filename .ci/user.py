"""A user's script with one misspelt keyword, which a type checker must see."""

import numpy as np
from typing_extensions import assert_type

import gpukoop as gk

X = np.zeros((10, 2))
flow = gk.KSWGD(n_componets=3)  # the fault
spectrum = gk.KernelEDMD(gk.Gaussian(scale=1.0))
distance = gk.metrics.mmd(X, X)
assert_type(gk.Gaussian(scale=1.0)(X), gk.KernelOperator)
