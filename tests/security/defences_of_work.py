"""Defences of the service itself against load, hostile frames and bad paths: threats 12 to 21."""

from __future__ import annotations

from typing import Final

from tests.security.defence import off

__all__ = ["OF_WORK"]

_RELAY: Final = "relay/kdispatch_relay"
_SWITCH: Final = f"{_RELAY}/switch/switch.py"
_PASSING: Final = f"{_RELAY}/switch/passing.py"
_CORE: Final = "shared/kdispatch_protocol"
_SECRET: Final = "            session.process = process_id(bytes.fromhex(hello.secret))"

#: By threat.
OF_WORK: Final = (
    off(
        12,
        "a connection has one deadline from accept to HELLO",
        "test_threat_12_slow_handshakes.py",
        (
            f"{_RELAY}/door/arrivals.py",
            "        self._idle[arrival] = None\n        self._alarm.set(deadline)",
            "        self._idle[arrival] = None",
        ),
    ),
    off(
        13,
        "each source has a limit of sessions, and so has the relay",
        "test_threat_13_exhaustion.py::test_sessions",
        (f"{_RELAY}/limiter.py", "if self._most and self._sessions >= self._most:", "if False:"),
        (
            f"{_RELAY}/limiter.py",
            "if source and self._most_of_source and of_source >= self._most_of_source:",
            "if False:",
        ),
    ),
    off(
        13,
        "connections that wait before HELLO make room for new ones",
        "test_threat_13_exhaustion.py::test_connections_before_hello",
        (
            f"{_RELAY}/door/arrivals.py",
            "return len(self._all) < self._limits.arrivals or self.make_room()",
            "return True",
        ),
    ),
    off(
        13,
        "each session has a limit of opens, streams and offers",
        "test_threat_13_exhaustion.py::test_one_session",
        (
            f"{_RELAY}/switch/opens.py",
            "if session.unanswered >= self._limits.opens or session.streams_opened >= self._limits.streams_client:",
            "if False:",
        ),
        (
            f"{_RELAY}/switch/offers.py",
            "if max(len(session.offers), session.offers_asked) >= self._limits.offers:",
            "if False:",
        ),
    ),
    off(
        13,
        "each account has quotas",
        "test_threat_13_exhaustion.py::test_an_account",
        (f"{_RELAY}/store/quotas.py", "    if count >= allowed:", "    if False:"),
    ),
    off(
        13,
        "strangers at a public service leave a part of the quota to its owner and to each other",
        "test_threat_13_exhaustion.py::test_strangers_at_a_public_service",
        (
            f"{_RELAY}/switch/claims.py",
            "left = terms.public_streams - self.public",
            "left = terms.streams - self.public",
        ),
        (
            f"{_RELAY}/switch/claims.py",
            "if source and mine and mine + 1 > terms.source_part * (left + mine):",
            "if False:",
        ),
    ),
    off(
        13,
        "the audit merges repeated actions into one entry with a count",
        "test_threat_13_exhaustion.py::test_the_audit",
        (
            f"{_RELAY}/store/audit.py",
            'merged = event.action in ROUTINE or event.actor.startswith("hst ")',
            "merged = False",
        ),
    ),
    off(
        14,
        "the relay enforces the credit of each stream",
        "test_threat_14_slow_readers.py::test_credit_is_enforced",
        (
            _SWITCH,
            "if value != leg.next or end > leg.limit or send_data is None",
            "if value != leg.next or send_data is None",
        ),
        (_PASSING, "if peer is None or value != leg.next or end > leg.limit:", "if peer is None or value != leg.next:"),
        (_PASSING, '        elif end > leg.limit:\n            self._violated(leg, "credit_exceeded", now)\n', ""),
    ),
    off(
        14,
        "the relay cuts an agent that does not read",
        "test_threat_14_slow_readers.py::test_who_never_reads_is_cut",
        (_SWITCH, "if session.outbox.control_size > self.limits.control:", "if False:"),
    ),
    off(
        15,
        "the head of a message is enough to refuse one that is too long",
        "test_threat_15_hostile_frames.py::test_a_violation_ends_its_session",
        (f"{_CORE}/wire/websocket.py", "if self._size > self.max_message:", "if False:"),
    ),
    off(
        15,
        "a receiver refuses compression and reserved bits",
        "test_threat_15_hostile_frames.py::test_a_violation_ends_its_session",
        (f"{_CORE}/wire/websocket.py", "if first & 0x70:", "if False:"),
    ),
    off(
        16,
        "an end checks the proof in its peer's ATTACH",
        "test_threat_16_impersonation.py::test_only_its_own_peer_takes_a_stream_up",
        (
            f"{_CORE}/endpoint/resume.py",
            "return hmac.compare_digest(expected, entry.proof) and entry.service == stream.service",
            "return bool(expected) and entry.service == stream.service",
        ),
    ),
    off(
        16,
        "the id of a process derives from its secret",
        "test_threat_16_impersonation.py::test_a_process_is_who_has_its_secret",
        (
            _SWITCH,
            "session.process = process_id(bytes.fromhex(hello.secret))",
            "session.process = hello.secret[:32]\n        if session.process not in self.by_process:\n" + _SECRET,
        ),
    ),
    off(
        17,
        "every wait has jitter",
        "test_threat_17_stampede.py::test_a_thousand_come_back_spread_out",
        (
            "agent/kdispatch/backoff.py",
            "random.uniform(least, max(doubled, min(self.spread, _MOST)))",
            "max(doubled, min(self.spread, _MOST))",
        ),
    ),
    off(
        17,
        "an agent waits after each end of a session",
        "test_threat_17_stampede.py::test_a_relay_that_closes",
        (
            "agent/kdispatch/backoff.py",
            "return at_least + random.uniform(least, max(doubled, min(self.spread, _MOST)))",
            "return at_least + random.uniform(0, min(doubled, 0.01))",
        ),
    ),
    off(
        17,
        "an agent stops at a final answer",
        "test_threat_17_stampede.py::test_a_final_answer_stops",
        (
            "agent/kdispatch/uplink.py",
            "        return error.final and (not connected_before or error.code in _FINAL)",
            "        return False",
        ),
    ),
    off(
        18,
        "the subprotocol names the protocol's version",
        "test_threat_18_version_skew.py::test_the_subprotocol",
        (f"{_RELAY}/gate/handshake.py", "if SUBPROTOCOL not in offered:", "if False:"),
    ),
    off(
        18,
        "the relay refuses a HELLO without a common version",
        "test_threat_18_version_skew.py::test_the_version_of_a_hello",
        (_SWITCH, "common = set(hello.versions) & set(VERSIONS)", "common = set(VERSIONS)"),
    ),
    off(
        19,
        "an agent verifies the certificate of its relay",
        "test_threat_19_tls.py::test_a_relay_that_can_not_be_verified",
        (
            "agent/kdispatch/network/trust.py",
            "        context.minimum_version = ssl.TLSVersion.TLSv1_2",
            "        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE",
        ),
    ),
    off(
        19,
        "without --insecure-plaintext an agent uses plain http on this machine only",
        "test_threat_19_tls.py::test_plain_http_is_for_this_machine",
        ("agent/kdispatch/relay_url.py", "if not (url.secure or insecure_plaintext or url.is_loopback):", "if False:"),
    ),
    off(
        19,
        "without --insecure-plaintext a relay listens without TLS for this machine only",
        "test_threat_19_tls.py::test_a_relay_listens_in_the_clear_for_this_machine_only",
        (
            f"{_RELAY}/settings.py",
            "if self.tls_cert is None and not self.insecure_plaintext and not is_loopback(host):",
            "if False:",
        ),
    ),
    off(
        20,
        "logs escape control characters",
        "test_threat_20_log_injection.py::test_raw_clients",
        (f"{_CORE}/process/logs.py", '    line = escaped(line, block=True).replace("\\n", "\\\\n")\n', ""),
    ),
    off(
        20,
        "an agent replaces control characters of a relay's text, and escapes them where it prints",
        "test_threat_20_log_injection.py::test_a_hostile_relays_words",
        (
            f"{_CORE}/wire/messages.py",
            'return "".join(c if c.isprintable() else "?" for c in text[:most])',
            "return text[:most]",
        ),
        (f"{_CORE}/console.py", "return text.translate(_IN_BLOCKS if block else _ESCAPES)", "return text"),
    ),
    off(
        21,
        "the relay answers 503 when the database fails",
        "test_threat_21_database_away.py::test_a_locked_file",
        (
            f"{_RELAY}/store/database.py",
            "            raise failure from error",
            "            raise",
        ),
    ),
    off(
        21,
        "running streams go on while the database fails",
        "test_threat_21_database_away.py::test_a_database_that_is_gone",
        (
            f"{_RELAY}/gate/access.py",
            '_PASSING: Final = frozenset({"storage_unavailable", "busy"})',
            "_PASSING: Final = frozenset[str]()",
        ),
    ),
)
