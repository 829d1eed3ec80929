"""Linear systems, log-determinants and traces of lazy operators, and how they change with the scales."""

from gpukoop.linear.conjugate import SolveInfo, solve
from gpukoop.linear.quadrature import Estimate, logdet, trace
from gpukoop.linear.slope import scale_derivative

__all__ = ["Estimate", "SolveInfo", "logdet", "scale_derivative", "solve", "trace"]
