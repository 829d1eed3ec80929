"""Sums over points of many features: inner products first, kernel values from them."""
