from __future__ import annotations

import copy
import pickle

import pytest

from kdispatch_protocol import errors
from kdispatch_protocol.errors import CODES, KdispatchError, LocalProtocolError, RemoteProtocolError, StreamReset

# The documented table: codes -> HTTP status, exit status.
DOCUMENTED: dict[str, tuple[int | None, int | None]] = {
    "bad_name bad_request": (422, 2),
    "bad_relay_url plaintext_refused": (None, 2),
    "handle_taken service_exists last_token": (409, 1),
    "port_in_use address_not_here local_port_closed withdrawn": (None, 1),
    "port_forbidden": (None, 5),
    "unknown_address": (404, 2),
    "wrong_method": (405, 2),
    "too_large": (413, 2),
    "not_installed": (None, 1),
    "unknown_service unknown_host unknown_token unknown_invite": (404, 3),
    "unknown_admin": (None, 3),
    "no_live_host unknown_agent": (None, 3),
    "not_logged_in token_refused revoked": (401, 4),
    "invite_spent": (410, 4),
    "not_permitted": (403, 5),
    "rate_limited quota_exceeded": (429, 1),
    "busy storage_unavailable": (503, 1),
    "version_unsupported": (426, 1),
    "internal_error": (500, 1),
    "relay_unreachable not_a_relay proxy_unreachable proxy_auth proxy_refused": (None, 6),
    "tls_unknown_ca tls_wrong_host tls_expired tls_not_yet_valid tls_wrong_pin tls_client_cert": (None, 6),
    "other_relay captive_portal": (None, 6),
    "misdirected": (421, 6),
    "closed host_refused host_timeout open_interrupted resume_expired peer_restarted": (None, None),
    "unknown_stream bad_proof offset_mismatch credit_exceeded cancelled": (None, None),
    "drain superseded slow_consumer protocol_error": (None, None),
}
HOPS = {"you", "you -> relay", "relay", "relay -> host", "host -> service"}


def test_the_documented_table() -> None:
    """Each code has the HTTP status and the exit status that are documented, and there are no others."""
    documented = {name: pair for names, pair in DOCUMENTED.items() for name in names.split()}
    assert {name: (code.http, code.exit) for name, code in CODES.items()} == documented


def test_codes_are_unique() -> None:
    """No code stands in the table twice."""
    assert len(errors._TABLE) == len(CODES)
    assert all(CODES[code.name] is code for code in errors._TABLE)


@pytest.mark.parametrize("name", CODES)
def test_each_code_helps(name: str) -> None:
    """Each code says where the failure is, what it means and what to do, in sentences of one line."""
    code = CODES[name]
    assert code.hop in HOPS
    for sentence in (code.meaning, code.hint):
        assert sentence.endswith(".")
        assert sentence.isprintable()
        assert sentence[0].isupper()


@pytest.mark.parametrize("kind", [KdispatchError, StreamReset])
@pytest.mark.parametrize("name", CODES)
def test_an_error_carries_its_code(kind: type[KdispatchError], name: str) -> None:
    """An error has its code, its row of the table, and a text: its own, or the code's meaning."""
    error = kind(name)
    assert (error.code, error.text, error.info) == (name, CODES[name].meaning, CODES[name])
    assert str(error) == f"{CODES[name].meaning} [{name}]"
    assert kind(name, "What happened.").text == "What happened."


@pytest.mark.parametrize("kind", [LocalProtocolError, RemoteProtocolError])
def test_protocol_errors(kind: type[LocalProtocolError | RemoteProtocolError]) -> None:
    """A broken rule is a protocol_error unless another code is given."""
    assert (kind("text").code, kind("text").text) == ("protocol_error", "text")
    assert kind("text", "offset_mismatch").code == "offset_mismatch"


def test_one_tree() -> None:
    """All errors have one base, and a reset stream is a ConnectionResetError for code that knows only sockets."""
    for kind in (LocalProtocolError, RemoteProtocolError, StreamReset):
        assert issubclass(kind, KdispatchError)
    assert issubclass(StreamReset, ConnectionResetError)
    assert isinstance(StreamReset("cancelled"), OSError)
    assert StreamReset("cancelled").errno is None


def test_an_unknown_code_needs_a_text() -> None:
    """A code outside the table needs a text, because it has no meaning to use instead."""
    with pytest.raises(KeyError):
        KdispatchError("no_such_code")


@pytest.mark.parametrize("error", [KdispatchError("busy", "why"), StreamReset("cancelled", "why")])
def test_errors_can_be_copied(error: KdispatchError) -> None:
    """An error survives copying and pickling, as process pools need."""
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (type(again), again.code, again.text) == (type(error), error.code, error.text)
