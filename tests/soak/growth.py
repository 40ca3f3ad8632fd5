"""Whether a process's memory grows, from samples of it: a slope of minima, and what it may be.

What a healthy process has is never level. A transfer makes a peak that goes again, and now and then the most that was
ever needed at once is needed again and a little more, which the allocator does not give back: a step that stays. Both
must pass, while a few bytes a connection must not.

So the time is cut into ``BLOCKS``, and of each only the minimum counts: peaks are gone, what stays is not. The slope
is a quantile of the slopes between all pairs of blocks (Theil and Sen take their median). One step, wherever it is and
however high, lies between 53 of 100 pairs at most; so at the fortieth of 100 it is as if it had not been. A leak, be it
even or in lumps, lies between all of them. Therefore no step of an allocator makes the verdict wrong, and no leak that
goes on for the whole time hides behind one: with ``n`` connections it is told from ``allowed / n`` bytes of each on.
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
#: Bytes that may have come to be in the time that is watched: some pools of 16 KiB, a larger table. And each hour.
ALLOWED: Final = 512 * KIB
ALLOWED_PER_HOUR: Final = 1024 * KIB

#: When, in seconds of any clock, and how many bytes.
Sample = tuple[float, int]


@dataclass(frozen=True)
class Growth:
    """What the samples of one process say; bytes and seconds."""

    seconds: float
    levels: tuple[int, ...]  # the smallest of each block
    per_hour: float

    @property
    def grown(self) -> float:
        """What the slope makes of the whole time."""
        return self.per_hour * self.seconds / 3600

    @property
    def allowed(self) -> float:
        return ALLOWED + ALLOWED_PER_HOUR * self.seconds / 3600

    def exceeds(self, times: float = 1.0) -> bool:
        """Whether that is more than ``times`` what may be."""
        return self.grown > times * self.allowed

    def __str__(self) -> str:
        mib, kib = KIB * KIB, KIB
        return (
            f"{self.levels[0] / mib:.2f} MiB, {self.levels[-1] / mib:.2f} at the end, "
            f"{self.per_hour / kib:+.0f} KiB an hour ({self.grown / kib:+.0f} of {self.allowed / kib:.0f} allowed); "
            f"KiB above the first: {' '.join(str((level - self.levels[0]) // kib) for level in self.levels)}"
        )


def growth(samples: Sequence[Sample]) -> Growth:
    """Judge samples, the oldest first; there should be several for each block."""
    begin, end = samples[0][0], samples[-1][0]
    if len(samples) < BLOCKS or end <= begin:
        raise ValueError(f"{len(samples)} samples say nothing")
    width = (end - begin) / BLOCKS
    blocks: list[list[Sample]] = [[] for _ in range(BLOCKS)]
    for sample in samples:
        blocks[min(int((sample[0] - begin) / width), BLOCKS - 1)].append(sample)
    least = [min(block, key=lambda sample: sample[1]) for block in blocks if block]
    # A minimum stands for its whole block, so blocks are as far apart as their middles.
    middles = [begin + (number + 0.5) * width for number, block in enumerate(blocks) if block]
    points = [(at, size) for at, (_, size) in zip(middles, least, strict=True)]
    slopes = [(later[1] - one[1]) / (later[0] - one[0]) for one, later in combinations(points, 2)]
    slope = sorted(slopes)[int(_QUANTILE * len(slopes))]
    return Growth(end - begin, tuple(size for _, size in points), slope * 3600)
