"""Speed compared with three HAProxy processes, the ruler, in the same run (``bench/``).

``make test-all`` measures each point for a moment, with bounds ten times as wide. ``make accept`` takes the medians of
three rounds, with the bounds as they are.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from bench import chains
from bench.chains import Chain
from bench.sites import SITES
from bench.works import SESSIONS, Found, bulk, by_turns, first, opens, sessions, trips
from tests.net.harness import sizes

needs_ruler = pytest.mark.skipif(
    not chains.has_ruler(), reason="not installed: haproxy, the ruler (apt-get install haproxy, or make programs)"
)
pytestmark = [pytest.mark.slow, pytest.mark.unguarded]

_MB: Final = 1e6


@dataclass(frozen=True)
class _Size:
    """Seconds and rounds of a measurement, and a factor by which its bounds are wider."""

    seconds: float
    ramp: float
    rounds: int
    slack: float


_SIZES: Final = sizes(_Size(0.2, 0.2, rounds=1, slack=10), _Size(5.0, 1.0, rounds=3, slack=1))
_PATH_SIZES: Final = sizes(_Size(0.4, 1.2, rounds=1, slack=10), _Size(5.0, 3.0, rounds=3, slack=1))


@dataclass(frozen=True)
class _Pair:
    """The two chains: ruler and kdispatch."""

    ruler: Chain
    kdispatch: Chain

    def medians(self, size: _Size, measure: Callable[[Chain, float], Found]) -> tuple[Found, Found]:
        """The figures of kdispatch, and their ratios to the ruler's: medians of all rounds."""
        rounds = list(by_turns(measure, self.ruler, self.kdispatch, secs=size.seconds, rounds=size.rounds))
        ours = {key: statistics.median(found[key] for _, found in rounds) for key in rounds[0][1]}
        ratios = {
            key: statistics.median(found[key] / theirs[key] for theirs, found in rounds if theirs and theirs[key])
            for key in ours
            if all(theirs and theirs.get(key) for theirs, _ in rounds)
        }
        return ours, ratios


@contextmanager
def _running(site: str, folder: Path) -> Iterator[_Pair]:
    with chains.service(folder / "service") as service, SITES[site].running(folder / site, service) as (ruler, ours):
        assert ruler is not None
        yield _Pair(ruler, ours)


@pytest.fixture(scope="module")
def loopback(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Pair]:
    """Both chains, shared by all tests that change nothing of them."""
    with _running("loopback", tmp_path_factory.mktemp("loopback")) as pair:
        yield pair


#: Kind, streams, and the smallest ratio allowed.
_BULK: Final = {
    "down": ("d", 1, 0.7),
    "up": ("u", 1, 0.7),
    "down, 8 streams": ("d", 8, 0.7),
    "up, 8 streams": ("u", 8, 0.7),
    "both ways": ("b", 1, 0.6),
}


@needs_ruler
@pytest.mark.parametrize("size", _SIZES)
def test_bulk(loopback: _Pair, size: _Size) -> None:
    """Bulk has 0.7 of the ruler's rate, 0.6 with both directions at once, for at most twice its CPU time a GB."""
    works = _BULK if size.slack == 1 else {"down": _BULK["down"]}
    missed = []
    for name, (kind, streams, least) in works.items():
        ours, ratios = loopback.medians(size, partial(bulk, kind, streams, ramp=size.ramp))
        print(f"bulk {name}: {ours['rate'] / _MB:.0f} MB/s, ratio {ratios['rate']:.2f}, CPU {ratios.get('cpu', 0):.2f}")
        if ratios["rate"] < least / size.slack or ratios.get("cpu", 0.0) > 2.0 * size.slack:
            missed.append(name)
    assert not missed


@needs_ruler
@pytest.mark.parametrize("size", _SIZES)
def test_round_trip(loopback: _Pair, size: _Size) -> None:
    """A 64 B echo takes at most 1.3 times the ruler's time (p99: 1.5 times), and beside two downloads 5 ms."""
    ours, ratios = loopback.medians(size, partial(trips, 64, 0))
    beside = trips(64, 2, loopback.kdispatch, size.seconds)
    print(f"round trip: {ours['p50'] * 1e6:.0f} us, ratio {ratios['p50']:.2f}, p99 {ratios['p99']:.2f}")
    print(f"beside bulk: p50 {beside['p50'] * 1e3:.1f} ms, p99 {beside['p99'] * 1e3:.1f} ms")
    assert ratios["p50"] <= 1.3 * size.slack
    # In a short run p99 is a single trip, which proves nothing.
    worst = "p99" if size.slack == 1 else "p50"
    assert ratios[worst] <= 1.5 * size.slack
    assert beside[worst] <= 0.005 * size.slack


@needs_ruler
@pytest.mark.parametrize("size", _SIZES)
@pytest.mark.parametrize(("workers", "least"), [(1, 0.5), (32, 0.4)])
def test_opens(loopback: _Pair, workers: int, least: float, size: _Size) -> None:
    """Open, echo and close runs at 0.5 of the ruler's rate or more, with 32 workers at 0.4, and none fails."""
    ours, ratios = loopback.medians(size, partial(opens, workers))
    print(f"opens, {workers} workers: {ours['rate']:.0f} a second, ratio {ratios['rate']:.2f}")
    assert ours["failed"] == 0
    assert ratios["rate"] >= least / size.slack


@pytest.mark.parametrize("size", _PATH_SIZES)
def test_long_path(tmp_path: Path, size: _Size) -> None:
    """Over a round trip of 100 ms, bulk reaches 100 MB/s each way after 3 s, and the first echo takes 160 ms.

    The same rate holds for 8 streams. The 160 ms begin at connect().
    """
    site = SITES["path"]
    works = [(1, "d"), (1, "u"), (8, "d"), (8, "u")] if size.slack == 1 else [(1, "d")]
    missed = []
    with (
        chains.service(tmp_path / "service") as service,
        chains.kdispatch(tmp_path / "kdispatch", service, **site.kdispatch) as chain,
    ):
        took = first(chain, size.seconds)["p50"]
        print(f"connect to first echo: {took * 1e3:.0f} ms")
        for count, kind in works:
            found = [bulk(kind, count, chain, size.seconds, ramp=size.ramp)["rate"] for _ in range(size.rounds)]
            rate = statistics.median(found) / _MB
            print(f"bulk {kind}, {count} streams: {rate:.0f} MB/s")
            if rate < 100 / size.slack:
                missed.append((kind, count))
    assert took <= 0.16 * size.slack
    assert not missed


@pytest.mark.parametrize("size", _SIZES)
def test_many_sessions(tmp_path: Path, size: _Size) -> None:
    """20 + 20 sessions get at least 0.8 of the rate of one, and share it evenly: Jain's index is at least 0.9."""
    count = SESSIONS if size.slack == 1 else 4
    with (
        chains.service(tmp_path / "service") as service,
        chains.kdispatch(tmp_path / "kdispatch", service, sessions=count) as chain,
    ):
        found = [sessions(chain, size.seconds, ramp=size.ramp) for _ in range(size.rounds)]
    share, fairness = (statistics.median(round_[key] for round_ in found) for key in ("share", "jain"))
    print(f"{count} + {count} sessions: {share:.2f} of one session's, Jain's index {fairness:.2f}")
    assert share >= 0.8 / size.slack
    assert fairness >= 0.9 / size.slack
