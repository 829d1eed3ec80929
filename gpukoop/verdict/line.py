"""One line of a report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """What was looked at, how surprising it is for fresh samples of the law, and what that means.

    Attributes
    ----------
    name : str
    p_value : float
        Of this line alone; for fresh independent samples P(p_value <= a) is at most a.
    text : str
        One sentence.
    value, expected : float
        The measured number and what samples of the law show.
    """

    name: str
    p_value: float
    text: str
    value: float
    expected: float
