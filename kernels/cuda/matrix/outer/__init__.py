"""Sums over points of many features on CUDA cores: products of points in registers, no tile in memory."""
