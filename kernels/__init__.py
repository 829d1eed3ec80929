"""Kernels and their sums: the only room that loops over pairs of points.

Installed as ``gpukoop.kernels``; it imports nothing else of gpukoop.
"""

# `import kernels` from the repository root would make a second copy of every class and registry.
if __name__ != "gpukoop.kernels":
    raise ImportError(
        "this folder is the package 'gpukoop.kernels': run 'pip install -e .' and "
        "import gpukoop.kernels"
    )

from gpukoop.kernels.formula.radial import radial

__all__ = ["radial"]
