"""Defences against callers that exceed their rights: threats 1 to 11."""

from __future__ import annotations

from typing import Final

from tests.security.defence import off

__all__ = ["OF_RIGHTS"]

_RELAY: Final = "relay/kdispatch_relay"
_AUTH: Final = f"{_RELAY}/auth.py"
_CORE: Final = "shared/kdispatch_protocol"
_HIDDEN: Final = (
    "    if record is None or _is_hidden(action, identity, handle, service, record):\n"
    '        raise KdispatchError("unknown_service")'
)

#: By threat.
OF_RIGHTS: Final = (
    off(
        1,
        "the relay refuses a service that the store does not know, before it asks a host",
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
    off(
        1,
        "an agent refuses services that it did not offer",
        "test_threat_01_open_proxy.py::test_an_agent_serves_what_it_offered",
        (
            f"{_CORE}/endpoint/endpoint.py",
            "        if offer is None:\n            table.reset(",
            "        if False:\n            table.reset(",
        ),
    ),
    off(
        2,
        "the relay compares the token with the service of each OFFER and OPEN",
        "test_threat_02_another_service.py",
        (_AUTH, "identity.service is None or identity.service.service != service:", "identity.service is None:"),
    ),
    off(
        3,
        "an agent refuses services that it did not offer",
        "test_threat_03_hostile_relay.py",
        (
            f"{_CORE}/endpoint/endpoint.py",
            "        if offer is None:\n            table.reset(",
            "        if False:\n            table.reset(",
        ),
    ),
    off(
        4,
        "only the owner of a handle writes under it",
        "test_threat_04_strangers.py::test_writes_under_another_handle",
        (_AUTH, 'if _party(identity, handle, "") not in RIGHTS[action].parties:', "if False:"),
    ),
    off(
        4,
        "a host needs the token of the service or of its owner",
        "test_threat_04_strangers.py::test_who_hosts",
        (_AUTH, 'if _party(identity, handle, service) not in RIGHTS["host"].parties:', "if identity.kind == 'inv':"),
    ),
    off(
        5,
        "errors and logs redact text that looks like a token",
        "test_threat_05_tokens_in_logs.py::test_a_token_in_a_names_place",
        (f"{_CORE}/tokens.py", 'return _LIKE_A_TOKEN.sub(r"\\1_[redacted]", text)', "return text"),
    ),
    off(
        5,
        "a command overwrites a token among its arguments",
        "test_threat_05_tokens_in_logs.py::test_an_argument_is_hidden",
        ("agent/kdispatch/machine/hidden_arguments.py", 'memory.write(b"x" * len(hidden))', "pass"),
    ),
    off(
        6,
        "the store keeps only digests of tokens",
        "test_threat_06_stolen_database.py",
        (
            f"{_CORE}/tokens.py",
            'return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()',
            'return token.encode("utf-8", "surrogatepass")[-32:].rjust(32)',
        ),
    ),
    off(
        7,
        "a service that does not exist and one of another user get the same answer",
        "test_threat_07_guessing.py::test_no_such_and_not_yours_are_the_same",
        (
            _AUTH,
            _HIDDEN,
            _HIDDEN.replace('"unknown_service"', '"unknown_service" if record is None else "not_permitted"'),
        ),
    ),
    off(
        7,
        "the relay limits the bad tokens of a source",
        "test_threat_07_guessing.py::test_bad_tokens_of_one_source",
        (f"{_RELAY}/limiter.py", 'self.take("bad_tokens", source)', "pass"),
    ),
    off(
        8,
        "after a change of rights the relay checks again everything that runs",
        "test_threat_08_still_connected.py::test_what_runs_ends",
        (f"{_RELAY}/gate/access.py", "        self._do(self._recheck(scope))", "        pass"),
    ),
    off(
        8,
        "each relay process learns of the changes of the others",
        "test_threat_08_still_connected.py::test_what_runs_ends",
        (f"{_RELAY}/feed.py", "            self._live.recheck(scope)", "            pass"),
    ),
    off(
        8,
        "the relay checks again what runs on an expired token",
        "test_threat_08_still_connected.py::test_a_token_that_expires",
        (f"{_RELAY}/feed.py", "        self._live.expire(time.time())", "        pass"),
    ),
    off(
        8,
        "each offer of a process ends when the token that it showed ends",
        "test_threat_08_still_connected.py::test_a_service_offered_twice",
        (
            f"{_RELAY}/switch/revocations.py",
            "        if isinstance(thing, LiveOffer):",
            "        if isinstance(thing, LiveOffer) and thing is thing.host.offers[-1]:",
        ),
    ),
    off(
        9,
        "the relay refuses an Origin, at the door and at the upgrade",
        "test_threat_09_web_pages.py::test_any_origin_is_refused",
        (f"{_RELAY}/door/screen.py", "if hdrs.ORIGIN in request.headers:", "if False:"),
        (f"{_RELAY}/gate/handshake.py", "if hdrs.ORIGIN in headers:", "if False:"),
    ),
    off(
        10,
        "names are DNS labels",
        "test_threat_10_script_in_names.py::test_a_script_is_no_name",
        (f"{_CORE}/names.py", "if _NAME.fullmatch(name) is None:", "if not name:"),
    ),
    off(
        10,
        "titles have no control characters",
        "test_threat_10_script_in_names.py::test_titles_are_plain",
        (f"{_RELAY}/api/fields.py", "if _TITLED.fullmatch(value) is None:", "if False:"),
    ),
    off(
        11,
        "the relay believes the forwarding headers of trusted proxies only",
        "test_threat_11_forged_forwarding.py::test_direct",
        (f"{_RELAY}/door/arrivals.py", "if not (arrival.trusted and forwarded):", "if not forwarded:"),
        (f"{_RELAY}/sources.py", "while hops and is_trusted(source, trusted) and (hop", "while hops and (hop"),
    ),
    off(
        11,
        "of X-Forwarded-For the rightmost hop that is no trusted proxy counts",
        "test_threat_11_forged_forwarding.py::test_behind_a_trusted_proxy",
        (f"{_RELAY}/sources.py", "address_of(hops.pop())) is not None:", "address_of(hops.pop(0))) is not None:"),
    ),
)
