"""Whether a process's memory grows, from samples of it: a slope of minima, and a limit for it.

A healthy process is never level. A transfer makes a temporary peak, and sometimes a new maximum of simultaneous
needs makes the allocator keep a little more for good: a step. Both must pass, but a few bytes per connection must
not.

So the time is split into ``BLOCKS``, and only the minimum of each counts, which removes peaks. The slope is a
quantile of the slopes between all pairs of blocks (Theil and Sen use their median). One step, at any place and of any
height, lies between at most 53 of 100 pairs, so it does not change the fortieth of 100. A leak, even or in lumps, lies
between all pairs. So no single step of an allocator spoils the verdict, and no leak over the whole time hides behind
one: with ``n`` connections the check detects a leak of ``allowed / n`` bytes per connection or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

__all__ = ["ALLOWED", "BLOCKS", "Growth", "Sample", "growth"]

KIB: Final = 1024
BLOCKS: Final = 20
_QUANTILE: Final = 0.4
#: Bytes that memory may grow in the watched time (some pools of 16 KiB, a larger table), and in addition per hour.
ALLOWED: Final = 512 * KIB
ALLOWED_PER_HOUR: Final = 1024 * KIB

#: Seconds of any clock, and bytes.
Sample = tuple[float, int]


@dataclass(frozen=True)
class Growth:
    """The result for one process, in bytes and seconds."""

    seconds: float
    levels: tuple[int, ...]  # the minimum of each block
    per_hour: float

    @property
    def grown(self) -> float:
        """Bytes of growth over the whole time, by the slope."""
        return self.per_hour * self.seconds / 3600

    @property
    def allowed(self) -> float:
        return ALLOWED + ALLOWED_PER_HOUR * self.seconds / 3600

    def exceeds(self, times: float = 1.0) -> bool:
        """Whether memory grew by more than ``times`` the allowed bytes."""
        return self.grown > times * self.allowed

    def __str__(self) -> str:
        mib, kib = KIB * KIB, KIB
        return (
            f"{self.levels[0] / mib:.2f} MiB, {self.levels[-1] / mib:.2f} at the end, "
            f"{self.per_hour / kib:+.0f} KiB an hour ({self.grown / kib:+.0f} of {self.allowed / kib:.0f} allowed); "
            f"KiB above the first: {' '.join(str((level - self.levels[0]) // kib) for level in self.levels)}"
        )


def growth(samples: Sequence[Sample]) -> Growth:
    """Judge samples, oldest first; each block should have several."""
    begin, end = samples[0][0], samples[-1][0]
    if len(samples) < BLOCKS or end <= begin:
        raise ValueError(f"{len(samples)} samples say nothing")
    width = (end - begin) / BLOCKS
    blocks: list[list[Sample]] = [[] for _ in range(BLOCKS)]
    for sample in samples:
        blocks[min(int((sample[0] - begin) / width), BLOCKS - 1)].append(sample)
    least = [min(block, key=lambda sample: sample[1]) for block in blocks if block]
    # A minimum stands for its whole block, so the distance of two blocks is that of their middles.
    middles = [begin + (number + 0.5) * width for number, block in enumerate(blocks) if block]
    points = [(at, size) for at, (_, size) in zip(middles, least, strict=True)]
    slopes = [(later[1] - one[1]) / (later[0] - one[0]) for one, later in combinations(points, 2)]
    slope = sorted(slopes)[int(_QUANTILE * len(slopes))]
    return Growth(end - begin, tuple(size for _, size in points), slope * 3600)
