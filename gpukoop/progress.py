"""Progress bars, in a terminal or a notebook; elsewhere none."""

from __future__ import annotations

import sys
from typing import Any


def bar(total: int, description: str, verbose: int, *, initial: int = 0) -> Any:
    """Return a bar with the time left; it shows nothing where ``verbose`` is 0 or nobody watches.

    tqdm draws widgets in a notebook, whose standard error is no terminal: asking for one alone would hide them.
    """
    from tqdm.auto import tqdm  # here: it is a fifth of the time of `import gpukoop`

    notebook = any("notebook" in base.__module__ for base in tqdm.__mro__)
    shown = bool(verbose) and (notebook or sys.stderr.isatty())
    return tqdm(total=total, initial=initial, desc=description, disable=not shown, leave=False)
