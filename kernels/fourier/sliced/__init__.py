"""Sums in many dimensions as means of sums along lines."""
