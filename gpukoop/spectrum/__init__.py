"""spectrum."""
