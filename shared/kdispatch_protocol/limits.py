"""Every bound and interval of the protocol, with unit and reason, in one place.

Sizes are bytes, times are seconds. What only one program uses (the relay's
listen address, the agent's drain time) is a setting of that program.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["DEFAULT_LIMITS", "KIB", "MIB", "Limits"]

KIB: Final = 1024
MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The defaults are the protocol's; tests scale them."""

    # --- sizes on the wire
    message: int = 256 * KIB  #: one WebSocket message; larger ends the session
    data: int = 128 * KIB  #: payload of a DATA frame as we send it: a whole read
    text: int = 512  #: characters of a RESET's or GOAWAY's text that are kept
    early: int = 16 * KIB  #: bytes a client may send before OPENED, held at the relay
    batch_min: int = 16 * KIB  #: smallest batch on a slow link
    batch_max: int = 128 * KIB  #: largest batch: one WebSocket message
    batch_time: float = 0.020  #: a batch should drain in this time, so that control frames wait no longer
    quantum: int = 128 * KIB  #: deficit round robin: what one stream may send before the next one's turn

    control: int = 4 * MIB  #: control frames that wait for one session; beyond it the relay cuts the session

    # --- credit
    window: int = 256 * KIB  #: a stream's first window while the budget is mostly free
    window_max: int = 16 * MIB  #: what it may grow to: 160 MB/s over a round trip of 100 ms
    window_near: int = 768 * KIB  #: what it may always grow to: enough for ends whose round trip is 1.2 ms
    window_rate: int = 640 * MIB  #: bytes a second: over a longer round trip it may grow to what this fills
    window_tight: int = 64 * KIB  #: first window once half of the budget is promised
    window_floor: int = 16 * KIB  #: what every stream may always be granted
    credit: int = 64 * MIB  #: a session's budget: the sum of limit - received over its streams
    replay: int = 128 * MIB  #: bytes a process keeps for its peers' acknowledgement
    unsent: int = 256 * KIB  #: written but not sent, per stream, before the writer is paused
    dropped: int = 64 * MIB  #: credited of what arrives behind a program's end: an upload of 64 MB gets to its answer
    ack_bytes: int = 1 * MIB  #: an ACK is due at min(window / 4, this) consumed
    ack_delay: float = 0.100  #: and this long after bytes that are not acknowledged
    ack_company: float = 0.004  #: an ACK of OPENED or of an end, for which no program waits, waits for other frames

    # --- counts
    streams_client: int = 1024  #: streams a session may open
    streams_host: int = 4096  #: streams a session may be given
    opens: int = 256  #: OPENs without an answer, per session; more wait in the agent
    offers: int = 256  #: services offered by one session
    tries: int = 3  #: hosts tried for one OPEN

    arrivals: int = 1024  #: sockets at a relay that have said no HELLO; then the one that waits longest goes
    arrivals_source: int = 128  #: of one address, or 64 bits of an IPv6 one; more are refused, if none of them rests

    failed_opens_rate: float = 100.0  #: OPENs of a session that may fail, a second
    failed_opens_burst: float = 500.0  #: and at once; beyond that they are answered `rate_limited`
    early_resets_rate: float = 100.0  #: streams that a session may reset before they were answered, a second
    early_resets_burst: float = 2000.0  #: and at once; beyond that the session ends
    asks_rate: float = 100.0  #: ATTACHes of a session for which the other end has to be asked, a second
    asks_burst: float = 6000.0  #: and at once: all its streams in a new session; beyond that the session ends
    look_ups: int = 512  #: look-ups into the store that one session's ATTACHes may have under way
    # An agent pings once in 5 s. What is under way for a stream when its other end is lost may be some thousand frames.
    idle_rate: float = 500.0  #: frames of a session that change nothing, a second: PINGs, what is for no stream
    idle_burst: float = 10_000.0  #: and at once; beyond that the session ends
    # Counted while its source asks faster than it may: all that a session can attach, in OPENs' worth, and once more.
    storm_rate: float = 50.0  #: OPENs, OFFERs and ATTACHes of a session beyond its source's rate, a second
    storm_burst: float = 5120.0  #: and at once; beyond that the session ends
    gone_rate: float = 10.0  #: GONEs a second that answer DATA of an unknown stream
    attach_batch: int = 64  #: streams in one ATTACH: at 440 bytes each they fit into 32 KiB
    tombstones: int = 100_000  #: ended streams that a process remembers; the oldest go first

    # --- times
    dial: float = 4.0  #: the host's dial of its local service
    open_host: float = 5.0  #: an OPEN at one host
    open_total: float = 15.0  #: an OPEN in all, waits included
    open_wait_start: float = 10.0  #: after a relay's start an OPEN waits for hosts to come back
    open_wait_lost: float = 3.0  #: after a host's session broke without WITHDRAW likewise
    open_wait: float = 30.0  #: what a program's connection waits for a relay and a host in all, relay's waits included
    grace: float = 120.0  #: a detached stream waits this long for its peer
    attach_wait: float = 150.0  #: the relay keeps an ATTACH for so long, more than a grace; then GONE asks for it anew
    tombstone_extra: float = 60.0  #: an ended stream is remembered for the grace, from its end or its loss, and this
    confirm: float = 30.0  #: an OPENED stream whose client says nothing is reset
    linger: float = 60.0  #: a closed transport waits this long for its peer's end
    last_words: float = 20.0  #: what a program said before a reset waits so long without a byte of it being taken
    last_chance: float = 2.0  #: the same once its peer has sent more than `dropped`, and reads nothing meanwhile
    hello: float = 10.0  #: the relay's deadline from accept to a valid HELLO
    keep_alive: float = 150.0  #: an HTTP connection without a request: proxies keep theirs for up to 120 s
    handshake: float = 15.0  #: the agent's deadline for connect, TLS, upgrade and WELCOME
    ping: float = 15.0  #: an agent pings after this much silence either way
    ping_least: float = 5.0  #: and no sooner, whatever it learns of its path: 1,000 agents then ask 200 times a second
    dead_agent: float = 30.0  #: silence after which an agent gives its session up
    dead_relay: float = 45.0  #: silence after which the relay does
    quiet: float = 400.0  #: the same of a session that said it would be quiet: above every limit that it looks for
    rotate: float = 1800.0  #: an agent takes a new session when one is about so old: a sixth less, up to a sixth more
    rotate_least: float = 10.0  #: no sooner for what it learns of its path: all streams go over each time
    leave: float = 30.0  #: a session that was left is closed after this, be there streams on it or not
    slow_consumer: float = 20.0  #: a session whose socket takes no byte for this long is cut

    # --- marks (explicit congestion, set by the relay)
    mark_wait: float = 0.020  #: a frame that waited longer is late
    mark_time: float = 0.050  #: late for this long without a pause: mark
    mark_rest: float = 0.250  #: late, nothing for longer than this, and late again is not late for long
    mark_round: float = 0.500  #: a window with marks is judged after this, if it takes longer to arrive


DEFAULT_LIMITS: Final = Limits()
