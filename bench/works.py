"""The benchmarks: their names, their chains, and how they measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from bench import load
from bench.chains import Chain

__all__ = [
    "SESSIONS",
    "WORKS",
    "Found",
    "Row",
    "Work",
    "bulk",
    "by_turns",
    "first",
    "jain",
    "opens",
    "sessions",
    "trips",
]

SESSIONS: Final = 20  # of each role, in the benchmark of that name
_SLOW_STREAMS: Final = 20
_RAMP: Final = 1.0  # seconds for windows to grow; on the long path 3
_LONG_RAMP: Final = 3.0
_SETTLED: Final = 5.0  # seconds until a slow leg's queues are stable
_BESIDE: Final = 600.0  # seconds; more than needed, because a load beside another one ends with that

#: The value of each row; "cpu" is CPU-seconds per GB of the chain's processes.
Found = dict[str, float]


@dataclass(frozen=True)
class Row:
    """A row of the table; ``unit`` is that of the value divided by ``scale``."""

    title: str
    unit: str
    scale: float = 1.0


@dataclass(frozen=True)
class Work:
    """A benchmark. ``name`` is for ONLY, and ``site`` is the pair of chains that it needs."""

    name: str
    site: str
    rows: Mapping[str, Row]
    measure: Callable[[Chain, float], Found]
    bare: bool = False  # whether a run without proxies makes sense


def bulk(kind: str, streams: int, chain: Chain, seconds: float, *, ramp: float = _RAMP) -> Found:
    """Return the rate in bytes per second."""
    found = load.run(
        "bulk",
        ports=[chain.port],
        kind=kind,
        streams=streams,
        service=chain.service,
        seconds=seconds,
        ramp=ramp,
        pids=chain.pids,
    )
    return {"rate": found["rate"], "cpu": found["cpu"]}


def trips(size: int, streams: int, chain: Chain, seconds: float, *, ramp: float = 0.5) -> Found:
    """Measure round trips, beside ``streams`` downloads in the same session."""
    if not streams:
        return load.run("trips", port=chain.port, size=size, seconds=seconds)
    with load.beside(
        "bulk",
        ports=[chain.port],
        kind="d",
        streams=streams,
        service=chain.service,
        seconds=_BESIDE,
        ramp=0.0,
        pids=[],
    ):
        time.sleep(ramp)
        # Trips that take a tenth of a second longer need more time for enough samples.
        found = load.run("trips", port=chain.port, size=size, seconds=seconds * 2 if ramp == _SETTLED else seconds)
        return {**found, "relay": float(chain.resident[0]) if chain.programs else 0.0}


def opens(workers: int, chain: Chain, seconds: float) -> Found:
    """Return connections per second, each with an echo, by ``workers`` workers at once."""
    return load.run("opens", port=chain.port, workers=workers, seconds=seconds)


def first(chain: Chain, seconds: float) -> Found:
    """Return the seconds from connect() to the first echo."""
    pause = 0.2  # until no frame of the last connection is in flight
    return load.run("first", port=chain.port, times=max(3, int(seconds / (pause + 0.2))), pause=pause)


def jain(rates: list[float]) -> float:
    """Jain's index of fairness: 1 if all rates are equal, 1/n if one has everything."""
    return sum(rates) ** 2 / (len(rates) * sum(rate * rate for rate in rates) or 1.0)


def sessions(chain: Chain, seconds: float, *, ramp: float = _RAMP) -> Found:
    """Measure one session's rate, the rate of all together, and the fairness."""

    def down(ports: list[int]) -> dict[str, list[float]]:
        return load.run(
            "bulk",
            ports=ports,
            kind="d",
            streams=1,
            service=chain.service,
            seconds=seconds,
            ramp=ramp,
            pids=chain.pids,
        )

    all_ports = chain.ports if len(chain.ports) > 1 else chain.ports * SESSIONS
    one, together = down(all_ports[:1]), down(all_ports)
    total, alone = sum(together["each"]), sum(one["each"])
    return {"one": alone, "all": total, "share": total / alone, "jain": jain(together["each"])}


_KINDS: Final = {"d": "down", "u": "up", "b": "both ways"}


def by_turns(
    measure: Callable[[Chain, float], Found], ruler: Chain | None, kdispatch: Chain, *, secs: float, rounds: int
) -> Iterator[tuple[Found | None, Found]]:
    """Yield results of the ruler, if there is one, and of kdispatch, round after round."""
    for _ in range(rounds):
        theirs = measure(ruler, secs) if ruler is not None else None
        yield theirs, measure(kdispatch, secs)


def _bulk_work(kind: str, streams: int, *, site: str = "loopback", ramp: float = _RAMP) -> Work:
    title = f"bulk {_KINDS[kind]}, {streams} stream{'s' if streams > 1 else ''}"
    measure = partial(bulk, kind, streams, ramp=ramp)
    name = "bulk" if site == "loopback" else site
    return Work(name, site, {"rate": Row(title, "MB/s", 1e6)}, measure, bare=site == "loopback")


def _trip_work(size: int, streams: int, *, site: str = "loopback") -> Work:
    what = f"{size} B" if size < 1024 else f"{size // 1024} KB"
    title = f"round trip of {what}" + (f" beside {streams} bulk down" if streams else "")
    rows = {name: Row(f"{title}, {name}", "us", 1e-6) for name in ("p50", "p99", "p99.9")}
    if site in ("path", "slow"):
        rows = {name: Row(f"{title}, {name}", "ms", 1e-3) for name in ("p50", "p99")}
    if site == "slow":
        rows["relay"] = Row("relay's memory meanwhile", "MiB", 2**20)
    name = "rtt" if site == "loopback" else site
    measure = partial(trips, size, streams, ramp=_SETTLED if site == "slow" else 0.5)
    return Work(name, site, rows, measure, bare=site == "loopback" and not streams)


def _open_work(workers: int) -> Work:
    title = f"open + 64 B echo + close, {workers} worker{'s' if workers > 1 else ''}"
    rows = {"rate": Row(title, "1/s"), "failed": Row("failures among them", "")}
    return Work("opens", "loopback", rows, partial(opens, workers), bare=True)


WORKS: Final[tuple[Work, ...]] = (
    *(_bulk_work(kind, streams) for kind in "dub" for streams in (1, 8, 64)),
    *(_trip_work(size, streams) for streams in (0, 2) for size in (64, 16 * 1024)),
    *(_open_work(workers) for workers in (1, 32)),
    *(_bulk_work(kind, streams, site="path", ramp=_LONG_RAMP) for streams in (1, 8) for kind in "du"),
    _trip_work(64, 0, site="path"),
    Work("path", "path", {"p50": Row("connect to first echo", "ms", 1e-3)}, first),
    _trip_work(64, _SLOW_STREAMS, site="slow"),
    Work(
        "sessions",
        "sessions",
        {
            "one": Row("bulk down, 1 session", "MB/s", 1e6),
            "all": Row(f"bulk down, {SESSIONS} + {SESSIONS} sessions", "MB/s", 1e6),
            "share": Row("all of them beside one", ""),
            "jain": Row("Jain's index of fairness", ""),
        },
        sessions,
    ),
    *(
        work
        for site in ("tls", "caddy")
        for work in (_bulk_work("d", 1, site=site), _bulk_work("u", 1, site=site), _trip_work(64, 0, site=site))
    ),
)
