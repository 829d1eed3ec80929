"""Kernel sums on the CPU: loops compiled by Numba."""
