"""The results, and the table that shows them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

from bench.works import Row

__all__ = ["Line", "table"]

_HEAD = ("work", "unit", "no proxies", "ruler", "kdispatch", "ratio", "spread", "CPU ruler", "CPU kdispatch", "MiB")


@dataclass
class Line:
    """All rounds of one row. ``cpu`` is CPU-seconds per GB; ``resident`` is final bytes of relay, host and client."""

    site: str
    title: str
    unit: str
    bare: float | None = None
    ruler: list[float] = field(default_factory=list)
    kdispatch: list[float] = field(default_factory=list)
    ruler_cpu: list[float] = field(default_factory=list)
    kdispatch_cpu: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, site: str, row: Row) -> Line:
        """Return a line without results."""
        return cls(site, row.title, row.unit)

    @property
    def ratios(self) -> list[float]:
        """kdispatch divided by ruler, for each round."""
        return [ours / theirs for theirs, ours in zip(self.ruler, self.kdispatch, strict=False) if theirs]

    @property
    def ratio(self) -> float | None:
        """The median of the rounds' ratios."""
        return statistics.median(self.ratios) if self.ratios else None

    def cells(self) -> tuple[str, ...]:
        """The cells of the table's row."""
        ratios = self.ratios
        return (
            self.title,
            self.unit,
            "-" if self.bare is None else _number(self.bare),
            _median(self.ruler),
            _median(self.kdispatch),
            _median(ratios),
            f"{min(ratios):.2f}-{max(ratios):.2f}" if len(ratios) > 1 else "-",
            _median(self.ruler_cpu),
            _median(self.kdispatch_cpu),
            "+".join(str(size >> 20) for size in self.resident) or "-",
        )


def table(lines: Iterable[Line], titles: dict[str, str]) -> str:
    """Return a Markdown table with aligned columns, and a title line for each site above its benchmarks."""
    rows: list[tuple[str, ...]] = [_HEAD]
    site = ""
    for line in lines:
        if line.site != site:
            site = line.site
            rows.append((f"**{titles[site]}**", *[""] * (len(_HEAD) - 1)))
        rows.append(line.cells())
    # A site's title is alone in its line, so it may be wider than its column.
    widths = [max(len(row[column]) for row in rows if column or row[4]) for column in range(len(_HEAD))]
    shown = [_padded(row, widths) for row in rows]
    shown.insert(1, "|".join(["", "-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:]), ""]))
    return "\n".join(shown)


def _padded(row: tuple[str, ...], widths: list[int]) -> str:
    cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
    return f"| {' | '.join(cells)} |"


def _median(values: list[float]) -> str:
    return _number(statistics.median(values)) if values else "-"


def _number(value: float) -> str:
    """Format with about three significant digits, never with an exponent."""
    if value == 0 or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
