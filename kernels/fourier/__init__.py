"""Near-linear sums to a tolerance, by nonuniform Fourier transforms."""
