"""The verdict on growth: what passes, and what fails."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from typing import Final

import pytest

from bench.idle import anonymous
from tests.soak.growth import ALLOWED, BLOCKS, KIB, Sample, growth

_HOUR: Final = 3600
_MIB: Final = KIB * KIB
_PAGE: Final = 4 * KIB


def _hour(seed: int, *, leak: float = 0.0, steps: tuple[tuple[float, int], ...] = ()) -> list[Sample]:
    """Samples with peaks and a ``leak`` in bytes an hour; ``steps`` are shares of the hour and heights in bytes."""
    random_ = random.Random(seed)
    samples = []
    for number in range(400):
        at = number / 400
        peak = random_.choice([0, 0, 0, random_.randrange(4 * _MIB)])
        size = 50 * _MIB + peak + leak * at + sum(height for when, height in steps if at >= when)
        samples.append((at * _HOUR, int(size) // _PAGE * _PAGE))
    return samples


@pytest.mark.parametrize("seed", range(20))
def test_what_is_level_passes(seed: int) -> None:
    """Peaks do not count as growth, and neither does a single step of an allocator, at any time."""
    assert not growth(_hour(seed)).exceeds()
    for twentieth in range(1, 20):
        assert not growth(_hour(seed, steps=((twentieth / 20, 8 * _MIB),))).exceeds()


@pytest.mark.parametrize("seed", range(20))
def test_what_grows_does_not(seed: int) -> None:
    """A leak fails, also under peaks, with a step, and in lumps as large as an arena."""
    assert growth(_hour(seed, leak=2 * _MIB)).exceeds()
    assert growth(_hour(seed, leak=2 * _MIB, steps=((0.3, 4 * _MIB),))).exceeds()
    lumps = tuple((at / 10, _MIB) for at in range(1, 10))
    assert growth(_hour(seed, steps=lumps)).exceeds()


def test_too_few_samples_say_nothing() -> None:
    """A verdict needs samples for each of its blocks."""
    with pytest.raises(ValueError, match="say nothing"):
        growth(_hour(1)[: BLOCKS - 1])


_CHURN: Final = """
import random, sys
kept, alive, choice = [], [], random.Random(1)
leak = int(sys.argv[1])
for line in sys.stdin:
    for _ in range(500):
        alive.append({"a": bytes(choice.randrange(2000)), "b": [0] * choice.randrange(50)})
        if len(alive) > 1000:
            alive[choice.randrange(1000)] = alive.pop()
        if leak:
            kept.append(bytes(leak))
    print(flush=True)
"""


def _churned(leak: int) -> list[Sample]:
    """Samples of a real process that creates and drops 500 objects a round, and keeps ``leak`` bytes of each."""
    command = [sys.executable, "-c", _CHURN, str(leak)]
    samples = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for round_ in itertools.count():
            process.stdin.write(b"\n")
            process.stdin.flush()
            process.stdout.readline()
            if round_ >= 100:
                samples.append((float(round_), anonymous(process.pid)))
            if round_ == 300:
                process.stdin.close()
                return samples
    raise AssertionError


@pytest.mark.slow
def test_a_real_allocator_passes_and_a_real_leak_does_not() -> None:
    """A process that only churns objects passes, and one that keeps 16 bytes of each object fails."""
    assert not growth(_churned(0)).exceeds()
    leaking = growth(_churned(16))
    assert leaking.exceeds()
    assert leaking.grown > 2 * ALLOWED
