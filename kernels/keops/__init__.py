"""Kernel sums by KeOps, from formulas printed from the same profile."""
