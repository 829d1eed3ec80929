"""Spectra: eigenpairs of lazy operators, and the generators of diffusions learned from data."""

from gpukoop.spectrum.diffusion import DiffusionMap
from gpukoop.spectrum.eigsh import eigsh

__all__ = ["DiffusionMap", "eigsh"]
