"""Windows over paths of any rate and length: a model in simulated time, with the real ends and the real relay."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import pytest
from _pytest.mark import ParameterSet

from kdispatch_protocol.limits import KIB, MIB
from tests.core.paths import Paths

MB = 1e6


@dataclass(frozen=True)
class Case:
    """A bottleneck from the relay to the client, the end-to-end round trip, and the number of downloads."""

    rate: float
    round_trip: float
    streams: int
    settle: float  # seconds before the measurement
    queue: float  # the median of seconds that wait at the relay

    def __str__(self) -> str:
        return f"{self.rate / MB:g} MB/s, {self.round_trip * 1000:g} ms, {self.streams}"


_SMALL = [
    Case(1.25 * MB, 0.004, 1, 8, 0.050),
    Case(1.25 * MB, 0.100, 1, 8, 0.050),
    Case(1.25 * MB, 0.040, 20, 12, 0.200),  # twenty floors of 16 KiB
    Case(12.5 * MB, 0.020, 1, 4, 0.050),
    Case(12.5 * MB, 0.100, 1, 4, 0.050),
    Case(12.5 * MB, 0.100, 8, 4, 0.050),
    Case(125 * MB, 0.100, 1, 4, 0.050),
]
_FULL = [
    Case(1.25 * MB, 0.100, 20, 12, 0.200),
    Case(12.5 * MB, 0.004, 20, 4, 0.070),  # turns of 128 KiB, twenty of them
    Case(125 * MB, 0.020, 1, 4, 0.050),
    Case(125 * MB, 0.100, 8, 4, 0.050),
    Case(500 * MB, 0.004, 1, 3, 0.050),
    Case(500 * MB, 0.020, 8, 3, 0.050),
]


def cases() -> list[ParameterSet]:
    full = [pytest.param(case, marks=pytest.mark.accept, id=str(case)) for case in _FULL]
    return [*(pytest.param(case, id=str(case)) for case in _SMALL), *full]


def begun(rate: float, round_trip: float, streams: int = 1) -> Paths:
    """A path with downloads; a round trip crosses four ways."""
    paths = Paths(round_trip / 4)
    paths.client.down.rate = rate
    paths.download(streams)
    return paths


def rate(paths: Paths, seconds: float) -> float:
    """Bytes a second that arrive in this time."""
    before = paths.received
    paths.run(seconds)
    return (paths.received - before) / seconds


@pytest.mark.slow
@pytest.mark.parametrize("case", cases())
def test_a_path_is_filled_and_its_queue_short(case: Case) -> None:
    """On any path at least nine tenths of the rate are used, and only milliseconds of data wait at the relay."""
    paths = begun(case.rate, case.round_trip, case.streams)
    paths.run(case.settle)
    before, queues, windows = paths.received, [], []

    def look() -> None:
        queues.append(paths.queued / case.rate)
        windows.append(statistics.mean(download.window for download in paths.downloads))

    paths.run(5.0, look)
    share = (paths.received - before) / 5.0 / case.rate
    queues.sort()
    middle, most = statistics.median(queues), queues[len(queues) * 99 // 100]
    print(
        f"\n| {case.rate / MB:g} | {case.round_trip * 1000:g} | {case.streams} | {share:.2f} | {middle * 1000:.0f} "
        f"| {most * 1000:.0f} | {statistics.mean(windows) / KIB:,.0f} |"
    )
    assert share >= 0.9
    assert middle <= case.queue
    assert most <= 3 * case.queue


@pytest.mark.parametrize(("path", "after"), [(12.5 * MB, 2.0), (1.25 * MB, 4.0)])
def test_streams_of_different_age_come_to_share(path: float, after: float) -> None:
    """A stream that comes later gets as much as one that was alone on the path before, after a few seconds."""
    paths = begun(path, 0.040)
    paths.run(4.0)
    paths.download()
    paths.run(after)
    before = [download.received for download in paths.downloads]
    paths.run(10.0)
    older, younger = (download.received - had for download, had in zip(paths.downloads, before, strict=True))
    assert 0.75 < younger / older < 1.33
    assert older + younger > 0.9 * path * 10.0


@pytest.mark.slow
def test_windows_come_down_and_up_again() -> None:
    """A path that becomes slow has a short queue again once the granted bytes are through; fast again, it is filled."""
    paths = begun(125 * MB, 0.020)
    paths.run(2.0)
    assert paths.downloads[0].window > 2 * MIB
    paths.client.down.rate = slow = 12.5 * MB
    paths.run(3.0)
    assert rate(paths, 3.0) > 0.9 * slow
    assert paths.queued < 0.1 * slow
    assert paths.downloads[0].window < 2 * MIB
    paths.client.down.rate = 125 * MB
    paths.run(3.0)
    assert rate(paths, 1.0) > 0.9 * 125 * MB


def test_a_pause_of_the_receiver_is_no_congestion() -> None:
    """On a fast path, a short pause of the receiver's process causes no mark and shrinks no window."""
    paths = begun(1000 * MB, 0.004)
    paths.run(0.5)
    before = paths.downloads[0].window
    for seconds in (0.03, 0.1, 0.2):
        paths.client.down.pause(seconds)
        paths.run(0.3)
    assert paths.downloads[0].window >= before > 256 * KIB


def test_many_slow_downloads_settle() -> None:
    """Twenty downloads over 10 Mbit/s that begin with 5 MiB under way shrink to their floors in a few seconds."""
    paths = begun(1.25 * MB, 0.010, 20)
    paths.run(2.0)
    most = 0

    def look() -> None:
        nonlocal most
        most = max(most, paths.queued)

    paths.run(4.0)
    paths.run(4.0, look)
    assert most < 20 * 20 * KIB
    assert {download.window for download in paths.downloads} == {16 * KIB}
