"""Where each threat's defence stands in the code, what switches it off, and the test that then fails."""
# A file of data may be longer than 400 lines.

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["DEFENCES", "THREATS", "Defence", "Edit"]

#: What a relay and its agents are up against, by the numbers of docs/security.md.
THREATS: Final = {
    1: "the relay as an open proxy",
    2: "access to another service on an open session",
    3: "a hostile relay drives an agent into its LAN",
    4: "a stranger hosts or changes somebody's service",
    5: "tokens in logs, URLs, the process list",
    6: "a stolen database",
    7: "guessing names or tokens",
    8: "revoked but still connected",
    9: "a web page in its visitor's place",
    10: "script in names and errors",
    11: "a forged X-Forwarded-For",
    12: "slow handshakes",
    13: "exhaustion of connections, streams, memory",
    14: "slow readers",
    15: "hostile frames",
    16: "impersonating a peer or a process",
    17: "a stampede, or a storm after a refusal",
    18: "version skew",
    19: "TLS that nobody has verified",
    20: "log injection",
    21: "the database locked or away",
}


@dataclass(frozen=True, slots=True)
class Edit:
    """In ``file`` the text ``old``, which stands there once, becomes ``new``."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Defence:
    """``edits`` switch it off, all together: it may stand in several places, one behind the other."""

    threat: int
    what: str
    test: str  # below tests/security
    edits: tuple[Edit, ...]


_RELAY: Final = "relay/kdispatch_relay"
_AUTH: Final = f"{_RELAY}/auth.py"
_SWITCH: Final = f"{_RELAY}/switch/switch.py"
_PASSING: Final = f"{_RELAY}/switch/passing.py"
_CORE: Final = "shared/kdispatch_protocol"
_SECRET: Final = "            session.process = process_id(bytes.fromhex(hello.secret))"
_HIDDEN: Final = (
    "    if record is None or _is_hidden(action, identity, handle, service, record):\n"
    '        raise KdispatchError("unknown_service")'
)


def _off(threat: int, what: str, test: str, *edits: tuple[str, str, str]) -> Defence:
    return Defence(threat, what, test, tuple(Edit(*edit) for edit in edits))


#: By threat.
DEFENCES: Final = (
    _off(
        1,
        "what the store does not know is refused before any host is asked",
        "test_threat_01_open_proxy.py::test_only_what_is_registered_is_reached",
        (
            _AUTH,
            _HIDDEN,
            _HIDDEN.replace(
                'raise KdispatchError("unknown_service")',
                'return Grant(record or ServiceRecord(service=service, access="public"))',
            ),
        ),
    ),
    _off(
        1,
        "an agent refuses services that it did not offer",
        "test_threat_01_open_proxy.py::test_an_agent_serves_what_it_offered",
        (
            f"{_CORE}/endpoint.py",
            "        if offer is None:\n            table.reset(",
            "        if False:\n            table.reset(",
        ),
    ),
    _off(
        2,
        "a token is compared with the service of each OFFER and OPEN",
        "test_threat_02_another_service.py",
        (_AUTH, "identity.service is None or identity.service.service != service:", "identity.service is None:"),
    ),
    _off(
        3,
        "an agent refuses services that it did not offer",
        "test_threat_03_hostile_relay.py",
        (
            f"{_CORE}/endpoint.py",
            "        if offer is None:\n            table.reset(",
            "        if False:\n            table.reset(",
        ),
    ),
    _off(
        4,
        "writes under a handle are its owner's",
        "test_threat_04_strangers.py::test_writes_under_another_handle",
        (_AUTH, 'if _party(identity, handle, "") not in RIGHTS[action].parties:', "if False:"),
    ),
    _off(
        4,
        "hosting needs a token for it",
        "test_threat_04_strangers.py::test_who_hosts",
        (_AUTH, 'if _party(identity, handle, service) not in RIGHTS["host"].parties:', "if identity.kind == 'inv':"),
    ),
    _off(
        5,
        "what looks like a token is redacted in errors and logs",
        "test_threat_05_tokens_in_logs.py::test_a_token_in_a_names_place",
        (f"{_CORE}/tokens.py", 'return _LIKE_A_TOKEN.sub(r"\\1_[redacted]", text)', "return text"),
    ),
    _off(
        5,
        "a token among the arguments is overwritten there",
        "test_threat_05_tokens_in_logs.py::test_an_argument_is_hidden",
        ("agent/kdispatch/hidden_arguments.py", 'memory.write(b"x" * len(hidden))', "pass"),
    ),
    _off(
        6,
        "only digests are stored",
        "test_threat_06_stolen_database.py",
        (
            f"{_CORE}/tokens.py",
            'return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()',
            'return token.encode("utf-8", "surrogatepass")[-32:].rjust(32)',
        ),
    ),
    _off(
        7,
        "no such and not yours have one answer",
        "test_threat_07_guessing.py::test_no_such_and_not_yours_are_the_same",
        (
            _AUTH,
            _HIDDEN,
            _HIDDEN.replace('"unknown_service"', '"unknown_service" if record is None else "not_permitted"'),
        ),
    ),
    _off(
        7,
        "bad tokens of a source are counted",
        "test_threat_07_guessing.py::test_bad_tokens_of_one_source",
        (f"{_RELAY}/limiter.py", 'self.take("bad_tokens", source)', "pass"),
    ),
    _off(
        8,
        "after a change everything that runs is asked for again",
        "test_threat_08_still_connected.py::test_what_runs_ends",
        (f"{_RELAY}/switch/access.py", "        self._do(self._recheck(scope))", "        pass"),
    ),
    _off(
        8,
        "each relay hears what the others changed",
        "test_threat_08_still_connected.py::test_what_runs_ends",
        (f"{_RELAY}/feed.py", "            self._live.recheck(scope)", "            pass"),
    ),
    _off(
        8,
        "what has expired is asked for again",
        "test_threat_08_still_connected.py::test_a_token_that_expires",
        (f"{_RELAY}/feed.py", "        self._live.expire(time.time())", "        pass"),
    ),
    _off(
        9,
        "an Origin is refused, at the door and at the upgrade",
        "test_threat_09_web_pages.py::test_any_origin_is_refused",
        (f"{_RELAY}/screen.py", "if hdrs.ORIGIN in request.headers:", "if False:"),
        (f"{_RELAY}/handshake.py", "if hdrs.ORIGIN in headers:", "if False:"),
    ),
    _off(
        10,
        "names are DNS labels",
        "test_threat_10_script_in_names.py::test_a_script_is_no_name",
        (f"{_CORE}/names.py", "if _NAME.fullmatch(name) is None:", "if not name:"),
    ),
    _off(
        10,
        "titles have no controls",
        "test_threat_10_script_in_names.py::test_titles_are_plain",
        (f"{_RELAY}/api/fields.py", "if _TITLED.fullmatch(value) is None:", "if False:"),
    ),
    _off(
        11,
        "only a trusted proxy is believed",
        "test_threat_11_forged_forwarding.py::test_direct",
        (f"{_RELAY}/arrivals.py", "if not (arrival.trusted and forwarded):", "if not forwarded:"),
        (f"{_RELAY}/sources.py", "while hops and is_trusted(source, trusted) and (hop", "while hops and (hop"),
    ),
    _off(
        11,
        "of its list the rightmost hop that is none of ours counts",
        "test_threat_11_forged_forwarding.py::test_behind_a_trusted_proxy",
        (f"{_RELAY}/sources.py", "address_of(hops.pop())) is not None:", "address_of(hops.pop(0))) is not None:"),
    ),
    _off(
        12,
        "one deadline from accept to HELLO",
        "test_threat_12_slow_handshakes.py",
        (
            f"{_RELAY}/arrivals.py",
            "        self._idle[arrival] = None\n        self._alarm.set(deadline)",
            "        self._idle[arrival] = None",
        ),
    ),
    _off(
        13,
        "a source has so many sessions, and a relay",
        "test_threat_13_exhaustion.py::test_sessions",
        (f"{_RELAY}/limiter.py", "if self._most and self._sessions >= self._most:", "if False:"),
        (
            f"{_RELAY}/limiter.py",
            "if source and self._most_of_source and of_source >= self._most_of_source:",
            "if False:",
        ),
    ),
    _off(
        13,
        "connections before HELLO make room for new ones",
        "test_threat_13_exhaustion.py::test_connections_before_hello",
        (
            f"{_RELAY}/arrivals.py",
            "return len(self._all) < self._limits.arrivals or self.make_room()",
            "return True",
        ),
    ),
    _off(
        13,
        "a session has so many opens, streams and offers",
        "test_threat_13_exhaustion.py::test_one_session",
        (
            f"{_RELAY}/switch/opens.py",
            "if session.unanswered > self._limits.opens or session.streams_opened > self._limits.streams_client:",
            "if False:",
        ),
        (f"{_RELAY}/switch/offers.py", "if len(session.offers) >= self._limits.offers:", "if False:"),
    ),
    _off(
        13,
        "an account has its quotas",
        "test_threat_13_exhaustion.py::test_an_account",
        (f"{_RELAY}/store/quotas.py", "    if count >= allowed:", "    if False:"),
    ),
    _off(
        13,
        "the audit counts what repeats in one entry",
        "test_threat_13_exhaustion.py::test_the_audit",
        (
            f"{_RELAY}/store/audit.py",
            'merged = event.action in ROUTINE or event.actor.startswith("hst ")',
            "merged = False",
        ),
    ),
    _off(
        14,
        "credit is enforced for each stream",
        "test_threat_14_slow_readers.py::test_credit_is_enforced",
        (
            _SWITCH,
            "if value != leg.next or end > leg.limit or send_data is None",
            "if value != leg.next or send_data is None",
        ),
        (_PASSING, "if peer is None or value != leg.next or end > leg.limit:", "if peer is None or value != leg.next:"),
        (_PASSING, '        elif end > leg.limit:\n            self._violated(leg, "credit_exceeded", now)\n', ""),
    ),
    _off(
        14,
        "an agent that does not read is cut",
        "test_threat_14_slow_readers.py::test_who_never_reads_is_cut",
        (_SWITCH, "if session.outbox.control_size > self.limits.control:", "if False:"),
    ),
    _off(
        15,
        "a message's length is bounded by its head alone",
        "test_threat_15_hostile_frames.py::test_a_violation_ends_its_session",
        (f"{_CORE}/websocket.py", "if self._size > self.max_message:", "if False:"),
    ),
    _off(
        15,
        "no compression, no reserved bit",
        "test_threat_15_hostile_frames.py::test_a_violation_ends_its_session",
        (f"{_CORE}/websocket.py", "if first & 0x70:", "if False:"),
    ),
    _off(
        16,
        "an ATTACH has its peer's proof",
        "test_threat_16_impersonation.py::test_only_its_own_peer_takes_a_stream_up",
        (
            f"{_CORE}/resume.py",
            "return hmac.compare_digest(expected, entry.proof) and entry.service == stream.service",
            "return bool(expected) and entry.service == stream.service",
        ),
    ),
    _off(
        16,
        "a process's id is made of its secret",
        "test_threat_16_impersonation.py::test_a_process_is_who_has_its_secret",
        (
            _SWITCH,
            "session.process = process_id(bytes.fromhex(hello.secret))",
            "session.process = hello.secret[:32]\n        if session.process not in self.by_process:\n" + _SECRET,
        ),
    ),
    _off(
        17,
        "every wait has jitter",
        "test_threat_17_stampede.py::test_a_thousand_come_back_spread_out",
        (
            "agent/kdispatch/backoff.py",
            "random.uniform(least, max(doubled, min(self.spread, _MOST)))",
            "max(doubled, min(self.spread, _MOST))",
        ),
    ),
    _off(
        17,
        "there is a wait after each end",
        "test_threat_17_stampede.py::test_a_relay_that_closes",
        (
            "agent/kdispatch/backoff.py",
            "return at_least + random.uniform(least, max(doubled, min(self.spread, _MOST)))",
            "return at_least + random.uniform(0, min(doubled, 0.01))",
        ),
    ),
    _off(
        17,
        "final answers stop",
        "test_threat_17_stampede.py::test_a_final_answer_stops",
        (
            "agent/kdispatch/uplink.py",
            "        return error.final and (not connected_before or error.code in _FINAL)",
            "        return False",
        ),
    ),
    _off(
        18,
        "the subprotocol names the protocol's version",
        "test_threat_18_version_skew.py::test_the_subprotocol",
        (f"{_RELAY}/handshake.py", "if SUBPROTOCOL not in offered:", "if False:"),
    ),
    _off(
        18,
        "a HELLO without a version in common is refused",
        "test_threat_18_version_skew.py::test_the_version_of_a_hello",
        (_SWITCH, "common = set(hello.versions) & set(VERSIONS)", "common = set(VERSIONS)"),
    ),
    _off(
        19,
        "certificates are verified",
        "test_threat_19_tls.py::test_a_relay_that_can_not_be_verified",
        (
            "agent/kdispatch/network/trust.py",
            "        context.minimum_version = ssl.TLSVersion.TLSv1_2",
            "        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE",
        ),
    ),
    _off(
        19,
        "plain http is for this machine",
        "test_threat_19_tls.py::test_plain_http_is_for_this_machine",
        ("agent/kdispatch/relay_url.py", "if not (url.secure or insecure_plaintext or url.is_loopback):", "if False:"),
    ),
    _off(
        19,
        "a relay listens in the clear for this machine only",
        "test_threat_19_tls.py::test_a_relay_listens_in_the_clear_for_this_machine_only",
        (
            f"{_RELAY}/settings.py",
            "if self.tls_cert is None and not self.insecure_plaintext and not is_loopback(host):",
            "if False:",
        ),
    ),
    _off(
        20,
        "control characters in logs are escaped",
        "test_threat_20_log_injection.py::test_raw_clients",
        (f"{_CORE}/aio/logs.py", '    line = escaped(line, block=True).replace("\\n", "\\\\n")\n', ""),
    ),
    _off(
        20,
        "what a relay says is made plain, and escaped once more",
        "test_threat_20_log_injection.py::test_a_hostile_relays_words",
        (
            f"{_CORE}/messages.py",
            'return "".join(c if c.isprintable() else "?" for c in text[:most])',
            "return text[:most]",
        ),
        (f"{_CORE}/console.py", "return text.translate(_IN_BLOCKS if block else _ESCAPES)", "return text"),
    ),
    _off(
        21,
        "a failing database is 503",
        "test_threat_21_database_away.py::test_a_locked_file",
        (
            f"{_RELAY}/store/database.py",
            '            raise KdispatchError("storage_unavailable") from error',
            "            raise",
        ),
    ),
    _off(
        21,
        "what runs does not end for it",
        "test_threat_21_database_away.py::test_a_database_that_is_gone",
        (
            f"{_RELAY}/switch/access.py",
            '_PASSING: Final = frozenset({"storage_unavailable", "busy"})',
            "_PASSING: Final = frozenset[str]()",
        ),
    ),
)
