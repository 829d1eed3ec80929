"""Spectra: eigenpairs of lazy operators, and the generators of diffusions learned from data."""

from gpukoop.spectrum.dictionary import Monomials, Powers
from gpukoop.spectrum.diffusion import DiffusionMap
from gpukoop.spectrum.eigsh import eigsh
from gpukoop.spectrum.generator import GeneratorEDMD
from gpukoop.spectrum.koopman import KernelEDMD
from gpukoop.spectrum.linear_coordinates import LinearCoordinates

__all__ = [
    "DiffusionMap",
    "GeneratorEDMD",
    "KernelEDMD",
    "LinearCoordinates",
    "Monomials",
    "Powers",
    "eigsh",
]
