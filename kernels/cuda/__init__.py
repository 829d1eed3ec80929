"""Kernel sums on NVIDIA GPUs: device functions compiled by numba-cuda."""
