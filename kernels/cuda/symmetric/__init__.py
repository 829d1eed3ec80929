"""Products with one cloud of points that visit each pair once."""
