"""Sums over all pairs of targets and sources, or over listed tiles of them."""
