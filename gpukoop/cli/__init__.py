"""The command line: what it takes (parser), what it does (commands), and what it says (terminal)."""

from gpukoop.cli.parser import main

__all__ = ["main"]
