"""One line of the benchmark's table."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

__all__ = ["Row"]


@dataclass
class Row:
    """One line of the table.

    :param today: raw runs of what is done today
    :param efm_lb: raw runs of efm-lb
    :param target: for a person
    :param reached: None when nothing was to be reached, or it could not be measured
    """

    what: str
    unit: str
    today: list[float]
    efm_lb: list[float]
    target: str = ""
    reached: bool | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        """Median of efm-lb over median of today's."""
        if not self.today or not self.efm_lb or not median(self.today):
            return None
        return median(self.efm_lb) / median(self.today)

    def aim_ratio(self, limit: float) -> Row:
        self.target = f"ratio <= {limit:.2f}"
        self.reached = self.ratio is not None and self.ratio <= limit
        return self

    def aim_value(self, limit: float) -> Row:
        self.target = f"<= {limit:g} {self.unit}"
        self.reached = bool(self.efm_lb) and median(self.efm_lb) <= limit
        return self
