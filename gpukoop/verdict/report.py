"""What a diagnosis says: lines, and one verdict over them."""

from __future__ import annotations

import html
from dataclasses import dataclass, field

import numpy as np

from gpukoop.verdict.counts import holm, least_stray
from gpukoop.verdict.line import Line

# Lines that are about the particles as a set and not about their law.
ABOUT_COPIES = ("memorisation", "diversity")
# Fewer particles or data than this tell little: 25 per cent of 60 particles, 16 of 100 must be off the law of as many samples to be seen.
FEW = 100
# Measures among which the line about the support takes the worst.
MEASURES = 4


@dataclass(frozen=True)
class Report:
    """Lines of a diagnosis and the verdict over all of them; ``print(report)`` is a page of text.

    Attributes
    ----------
    lines : tuple of Line
        Each with ``name``, ``p_value``, ``text``, ``value`` and ``expected``.
    level : float
        At most this share of fresh independent samples fails.
    sizes : tuple of two ints
        Particles and data, after weights.
    adjusted : dict of str to float
        p-values by line, adjusted for their number (Holm).
    advice : str
        What to try, if an estimator was judged that is off its law.
    remark : str
        What an estimator says of its fit.
    """

    lines: tuple[Line, ...]
    level: float
    sizes: tuple[int, int]
    particles: np.ndarray = field(repr=False)
    data: np.ndarray = field(repr=False)
    advice: str = ""
    remark: str = ""

    @property
    def adjusted(self) -> dict[str, float]:
        """p-values by line, adjusted for their number."""
        p = holm(np.array([line.p_value for line in self.lines]))
        return {line.name: float(q) for line, q in zip(self.lines, p, strict=True)}

    @property
    def failures(self) -> tuple[Line, ...]:
        """Lines that fail, the worst first."""
        adjusted = self.adjusted
        failed = [line for line in self.lines if adjusted[line.name] < self.level]
        return tuple(sorted(failed, key=lambda line: line.p_value))

    @property
    def passed(self) -> bool:
        """Whether the particles cannot be told from samples of the law."""
        return not self.failures

    @property
    def on_law(self) -> bool:
        """Whether the law is right, be the particles copies of the data or not."""
        return all(line.name in ABOUT_COPIES for line in self.failures)

    @property
    def conclusive(self) -> bool:
        """Whether there are enough points, 100 of either, that no difference found means something; a failure always does."""
        return min(self.sizes) >= FEW or not self.passed

    @property
    def least_seen(self) -> float:
        """The share of particles that would have to lie farther off than all data for the line about the support to fail."""
        return least_stray(*self.sizes, self.level / (MEASURES * max(1, len(self.lines))))

    @property
    def worst(self) -> Line:
        """The line with the smallest p-value."""
        return min(self.lines, key=lambda line: line.p_value)

    @property
    def statistic(self) -> float:
        """The energy distance to the data in units of what as many samples of the law show: 1 is a perfect match."""
        return self["distance"].value

    def __getitem__(self, name: str) -> Line:
        """Return the line of this name."""
        for line in self.lines:
            if line.name == name:
                return line
        known = ", ".join(line.name for line in self.lines)
        raise KeyError(f"the report has no line {name!r}: its lines are {known}")

    @property
    def verdict(self) -> str:
        """The verdict in one sentence."""
        n, m = self.sizes
        if self.passed:
            found = f"No difference found: {n:,} particles look like fresh samples of the law of {m:,} points"
            if self.conclusive:
                return f"{found}."
            return f"{found}, but so few points tell little: less than {self.least_seen:.0%} of the particles off the law are not seen."
        names = ", ".join(line.name for line in self.failures)
        return f"Off the law ({names}): fresh samples would differ so much in less than {self.level:.0%} of all cases."

    def __str__(self) -> str:
        adjusted, failed = self.adjusted, {line.name for line in self.failures}
        width = max(len(line.name) for line in self.lines)
        rows = [
            f"  {'OFF' if line.name in failed else 'ok ':3} {line.name:{width}}  p = {adjusted[line.name]:<8.2g} {line.text}"
            for line in self.lines
        ]
        return "\n".join([self.verdict, *rows, *self._words()])

    def _words(self) -> list[str]:
        remark = [f"{self.remark}."] if self.remark else []
        return remark + ([f"What to try: {self.advice}."] if self.advice else [])

    def _repr_html_(self) -> str:
        adjusted, failed = self.adjusted, {line.name for line in self.failures}
        rows = "".join(
            f"<tr><td>{'<b>off</b>' if line.name in failed else 'ok'}</td><td>{line.name}</td>"
            f"<td>{adjusted[line.name]:.2g}</td><td style='text-align:left'>{html.escape(line.text)}</td></tr>"
            for line in self.lines
        )
        head = "<tr><th></th><th>line</th><th>p, adjusted</th><th>what it means</th></tr>"
        after = "".join(f"<p>{html.escape(line)}</p>" for line in self._words())
        return f"<p>{html.escape(self.verdict)}</p><table>{head}{rows}</table>{after}"
