"""What a kernel is: expressions, their printers, profiles, the catalogue. Knows no backend."""
