"""A run's results as lines for a person and for docs/results.md."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Report", "Window"]

_TOLD: Final = 2  # faults named as the cause of the longest pause


@dataclass(frozen=True)
class Window:
    """A fault that happened: its begin and the end of its cause, in seconds from the start."""

    kind: str
    text: str
    begin: float
    end: float
    breaks: bool  # false for actions of users


@dataclass
class Report:
    """Figures of one run; ``failures`` is empty if the run passed."""

    seed: int
    seconds: float
    windows: list[Window] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    moved: int = 0  # compared bytes, over both directions
    streams: int = 0  # complete connections
    refused: int = 0  # connections reset before they were open, all during a fault
    codes: dict[str, int] = field(default_factory=dict)  # error codes in the agents' logs, with counts
    sessions: int = 0  # sessions lost and restored
    resumptions: int = 0  # open streams at each restored session, summed
    longest: float = 0.0  # longest time without a byte, in seconds
    longest_at: float = 0.0  # when that time ended
    memory: dict[str, int] = field(default_factory=dict)  # resident bytes of each process at the end

    def lines(self) -> Iterator[str]:
        """The lines of the report."""
        outcome = "everything held" if not self.failures else "FAILED"
        yield f"chaos, seed {self.seed}: {self.seconds / 60:.1f} minutes, {len(self.windows)} faults, {outcome}"
        for kind, times in collections.Counter(window.kind for window in self.windows).most_common():
            yield f"  {times:4} {kind}"
        rate = self.moved / self.seconds / 1e6 if self.seconds else 0.0
        yield f"  moved {self.moved / 1e9:.2f} GB in {self.streams} whole streams, {rate:.0f} MB/s, every byte compared"
        yield f"  {self.sessions} sessions resumed, {self.resumptions} times a stream went on over one"
        yield f"  longest pause of a stream {self.longest:.1f} s, ended at {self.longest_at:.1f} s: {self._why()}"
        codes = ", ".join(f"{code} {count}" for code, count in self.codes.items()) or "none"
        yield f"  {self.refused} connections refused while something was broken; codes told: {codes}"
        yield "  resident at the end, MiB: " + ", ".join(f"{who} {size >> 20}" for who, size in self.memory.items())
        for failure in self.failures:
            yield f"  FAILED: {failure}"

    def _why(self) -> str:
        """The faults during the longest pause, longest fault first."""
        begin = self.longest_at - self.longest
        met = [one for one in self.windows if one.breaks and one.begin < self.longest_at and one.end > begin - 1]
        met.sort(key=lambda one: one.begin - one.end)
        rest = [f"and {len(met) - _TOLD} more"] if len(met) > _TOLD else []
        return "; ".join([one.text for one in met[:_TOLD]] + rest) or "no fault"
