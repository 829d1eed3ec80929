"""gpukoop: lazy kernel sums, their spectra, and the flows they drive, on CPU and GPU."""
