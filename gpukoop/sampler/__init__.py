"""The Koopman exponential sampler: lifts, teachers, streaming moments, solves, spectra.

``gpukoop.KoopmanSampler`` is its face; the parts are public for those who want another teacher, another dictionary, or the
generator of a field of their own.
"""

from gpukoop.sampler.clock import Clock, Frame
from gpukoop.sampler.evolution import Evolution, Options, Stage
from gpukoop.sampler.expm import ExponentialOverflow, expm_action
from gpukoop.sampler.forecast import Relaxation
from gpukoop.sampler.fourier import FourierFeatures
from gpukoop.sampler.integration import integrate
from gpukoop.sampler.latent import Latent
from gpukoop.sampler.lifting import AbstractFeatures, Lift, UserFeatures
from gpukoop.sampler.moments import Moments, assemble
from gpukoop.sampler.nystroem import NystroemFeatures
from gpukoop.sampler.pictures import images, picture
from gpukoop.sampler.polynomial import EndpointFeatures, PolynomialFeatures
from gpukoop.sampler.report import SpectralReport, mode_projector, spectral_report
from gpukoop.sampler.solves import (
    denoiser,
    energy_ratio,
    generator,
    growth_bound,
    ridge,
    sat,
    sat_inverse,
)
from gpukoop.sampler.teacher import (
    AbstractTeacher,
    AffineTeacher,
    CallableTeacher,
    EmpiricalTeacher,
    GaussianTeacher,
    MixtureTeacher,
    as_teacher,
)
from gpukoop.sampler.triples import Triples

__all__ = [
    "AbstractFeatures",
    "AbstractTeacher",
    "AffineTeacher",
    "CallableTeacher",
    "Clock",
    "EmpiricalTeacher",
    "EndpointFeatures",
    "Evolution",
    "ExponentialOverflow",
    "FourierFeatures",
    "Frame",
    "GaussianTeacher",
    "Latent",
    "Lift",
    "MixtureTeacher",
    "Moments",
    "NystroemFeatures",
    "Options",
    "PolynomialFeatures",
    "Relaxation",
    "SpectralReport",
    "Stage",
    "Triples",
    "UserFeatures",
    "as_teacher",
    "assemble",
    "denoiser",
    "energy_ratio",
    "expm_action",
    "generator",
    "growth_bound",
    "images",
    "integrate",
    "mode_projector",
    "picture",
    "ridge",
    "sat",
    "sat_inverse",
    "spectral_report",
]
