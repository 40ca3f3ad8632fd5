"""Every bound and interval of the protocol, with unit and reason, in one place.

Sizes are in bytes, times in seconds. Values that only one program uses (the
relay's listen address, the agent's drain time) are settings of that program.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["DEFAULT_LIMITS", "KIB", "MIB", "Limits"]

KIB: Final = 1024
MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The defaults are the protocol's values; tests scale them."""

    # --- sizes on the wire
    message: int = 256 * KIB  #: one WebSocket message; larger ends the session
    data: int = 128 * KIB  #: payload of a DATA frame that we send: one whole read
    text: int = 512  #: characters of a RESET's or GOAWAY's text that are kept
    early: int = 16 * KIB  #: bytes a client may send before OPENED, held at the relay
    batch_min: int = 16 * KIB  #: smallest batch on a slow link
    batch_max: int = 128 * KIB  #: largest batch: one WebSocket message
    batch_time: float = 0.020  #: a batch should leave the socket in this time, so that control frames wait no longer
    quantum: int = 128 * KIB  #: deficit round robin: bytes that one stream may send before the next stream's turn

    control: int = 4 * MIB  #: control frames pending for one session; beyond it the relay cuts the session

    # --- credit
    window: int = 256 * KIB  #: a stream's first window while the budget is mostly free
    window_max: int = 16 * MIB  #: upper bound of a window: 160 MB/s over a round trip of 100 ms
    window_near: int = 768 * KIB  #: every window may grow to this: enough for ends whose round trip is 1.2 ms
    window_rate: int = 640 * MIB  #: bytes a second: over a longer round trip a window may grow to what this rate fills
    window_tight: int = 64 * KIB  #: first window once half of the budget is promised
    window_floor: int = 16 * KIB  #: grant that every stream gets, whatever the budget
    credit: int = 64 * MIB  #: a session's budget: the sum of limit - received over its streams
    replay: int = 128 * MIB  #: bytes that a process keeps until its peers acknowledge them
    unsent: int = 256 * KIB  #: bytes written but not sent, per stream, before the writer is paused
    dropped: int = 64 * MIB  #: bytes credited after a program's end, then dropped: an upload of 64 MB gets its answer
    ack_bytes: int = 1 * MIB  #: an ACK is due after min(window / 4, this) consumed bytes
    ack_delay: float = 0.100  #: and this long after unacknowledged bytes
    ack_company: float = 0.004  #: an ACK of OPENED or of an end waits for other frames: no program waits for it

    # --- counts
    streams_client: int = 1024  #: streams a session may open
    streams_host: int = 4096  #: streams a session may be given
    opens: int = 256  #: unanswered OPENs per session; more wait in the agent
    offers: int = 256  #: services offered by one session
    tries: int = 3  #: hosts tried for one OPEN

    arrivals: int = 1024  #: unauthenticated connections at a relay; beyond it the relay closes the longest idle one
    arrivals_source: int = 128  #: of one address or IPv6 /64; beyond it an idle one is closed, or the new one refused

    failed_opens_rate: float = 100.0  #: failed OPENs of a session, a second
    failed_opens_burst: float = 500.0  #: and at once; beyond that the relay answers `rate_limited`
    early_resets_rate: float = 100.0  #: streams that a session may reset before their answer, a second
    early_resets_burst: float = 2000.0  #: and at once; beyond that the session ends
    asks_rate: float = 100.0  #: ATTACHes of a session for which the relay must ask the other end, a second
    asks_burst: float = 6000.0  #: and at once: all streams of a session in a new one; beyond that the session ends
    look_ups: int = 512  #: pending store look-ups for the ATTACHes of one session
    # An agent pings once in 5 s. Some thousand frames may be in flight for a stream when its other end is lost.
    idle_rate: float = 500.0  #: frames of a session that change nothing, a second: PINGs, frames for unknown streams
    idle_burst: float = 10_000.0  #: and at once; beyond that the session ends
    # Counted only while the source exceeds its rate. The burst: all that a session can attach, in OPENs' worth, plus
    # one.
    storm_rate: float = 50.0  #: OPENs, OFFERs and ATTACHes of a session beyond its source's rate, a second
    storm_burst: float = 5120.0  #: and at once; beyond that the session ends
    gone_rate: float = 10.0  #: GONEs a second that answer DATA of an unknown stream
    attach_batch: int = 64  #: streams in one ATTACH: at 440 bytes each they fit into 32 KiB
    tombstones: int = 100_000  #: ended streams that a process remembers; the oldest are forgotten first

    # --- times
    dial: float = 4.0  #: the host's dial of its local service
    open_host: float = 5.0  #: one attempt of an OPEN, at one host
    open_total: float = 15.0  #: an OPEN in total, waits included
    open_wait_start: float = 10.0  #: after a relay's start an OPEN waits this long for hosts to return
    open_wait_lost: float = 3.0  #: after a host's session broke without WITHDRAW an OPEN waits this long
    open_wait: float = 30.0  #: a program's connection waits this long for relay and host, relay's waits included
    grace: float = 120.0  #: a detached stream waits this long for its peer
    attach_wait: float = 150.0  #: the relay keeps a pending ATTACH longer than a grace; then GONE asks for a new one
    tombstone_extra: float = 60.0  #: an ended stream is remembered for the grace, from its end or its loss, plus this
    confirm: float = 30.0  #: an OPENED stream is reset if its client says nothing for this long
    linger: float = 60.0  #: a closed transport waits this long for the peer's end
    last_words: float = 20.0  #: before a reset, a program's last bytes wait this long for the peer to take any of them
    last_chance: float = 2.0  #: the same once the peer has sent more than `dropped` and reads nothing
    hello: float = 10.0  #: the relay's deadline from accept to a valid HELLO
    keep_alive: float = 150.0  #: an idle HTTP connection: proxies keep theirs for up to 120 s
    handshake: float = 15.0  #: the agent's deadline for connect, TLS, upgrade and WELCOME
    ping: float = 15.0  #: an agent pings after this much silence either way
    ping_least: float = 5.0  #: shortest interval, whatever the path: 1,000 agents then ping 200 times a second
    dead_agent: float = 30.0  #: silence after which an agent gives up its session
    dead_relay: float = 45.0  #: silence after which the relay gives up a session
    quiet: float = 400.0  #: the same for a session that announced silence: longer than any path limit it measures
    rotate: float = 1800.0  #: an agent replaces a session at about this age: up to a sixth earlier or later
    rotate_least: float = 10.0  #: shortest interval, whatever the agent learns of its path: each time all streams move
    leave: float = 30.0  #: a session that the agent left is closed after this, even with streams on it
    slow_consumer: float = 20.0  #: a session is cut if its socket takes no byte for this long

    # --- marks (explicit congestion, set by the relay)
    mark_wait: float = 0.020  #: a frame that waited longer than this is late
    mark_time: float = 0.050  #: frames late for this long without a quiet gap: mark
    mark_rest: float = 0.250  #: a gap without late frames longer than this restarts the late period
    mark_round: float = 0.500  #: a window with marks is judged after this time, if it takes longer to arrive


DEFAULT_LIMITS: Final = Limits()
