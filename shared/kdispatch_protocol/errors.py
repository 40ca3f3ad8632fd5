"""The table of stable error codes, and the exceptions that carry them.

REST problems, RESET and GOAWAY frames, logs, the library's exceptions, exit
statuses and ``docs/errors.md`` all take their code from :data:`CODES`.

The exceptions::

    KdispatchError            any failure that kdispatch raises on purpose
    ├── LocalProtocolError    the caller broke a rule of this package
    ├── RemoteProtocolError   the other end broke a rule of the protocol
    └── StreamReset           a stream ended by a RESET (also a ConnectionResetError)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from kdispatch_protocol.tokens import redacted

__all__ = [
    "CODES",
    "Code",
    "KdispatchError",
    "LocalProtocolError",
    "RemoteProtocolError",
    "StreamReset",
]


@dataclass(frozen=True, slots=True)
class Code:
    """One stable code.

    ``hop`` says where the failure lies: "you", "you -> relay", "relay",
    "relay -> host" or "host -> service". ``http`` is the status of a REST problem
    with this code, and ``exit`` the status of a command that ends with it. Each
    is ``None`` if the code never appears there.
    """

    name: str
    hop: str
    http: int | None
    exit: int | None
    meaning: str
    hint: str


_YOU: Final = "you"
_UP: Final = "you -> relay"
_RELAY: Final = "relay"
_DOWN: Final = "relay -> host"
_SERVICE: Final = "host -> service"

# fmt: off
_TABLE: Final = (
    # --- what was typed or sent ------------------------------------------------------
    Code("bad_name", _YOU, 422, 2, "The name is not one that kdispatch allows.",
         "Use 1 to 63 characters a-z, 0-9 and '-'; the first and the last must not be '-'. A service is HANDLE/NAME."),
    Code("bad_request", _YOU, 422, 2, "The request is malformed.",
         "Compare it with --help, or with docs/rest-api.md."),
    Code("unknown_address", _YOU, 404, 2, "There is nothing at this address.",
         "Compare it with docs/rest-api.md; the API is below /api/v1."),
    Code("wrong_method", _YOU, 405, 2, "This address does not take this method.",
         "The Allow header of the answer lists the methods that it takes."),
    Code("too_large", _YOU, 413, 2, "The body is larger than the relay takes.",
         "No request of the API needs more than a few hundred bytes."),
    Code("not_installed", _YOU, None, 1, "The command needs a Python package that is not installed.",
         "Install what the message names."),
    Code("bad_relay_url", _YOU, None, 2, "The relay's address is missing or is not an http(s) URL.",
         "Give --relay https://relay.example.org, or set KDISPATCH_RELAY."),
    Code("plaintext_refused", _YOU, None, 2, "Over plain http everyone on the network path could read the tokens.",
         "Use https://, or --insecure-plaintext on a network you trust."),
    # --- names that are taken, ports ---------------------------------------------------
    Code("handle_taken", _RELAY, 409, 1, "This handle is taken already.",
         "Choose another handle; if it is yours, give its token with --token-file."),
    Code("service_exists", _RELAY, 409, 1, "You have a service of this name already.",
         "Choose another name; its token was shown when it was created."),
    Code("last_token", _RELAY, 409, 1, "This is your last admin token without expiry; you could not log in again.",
         "Create another one first: kdispatch token create NAME."),
    Code("port_in_use", _YOU, None, 1, "Another program listens on the local port.",
         "Choose another port; 'agent connect' without --port takes a free one."),
    Code("port_forbidden", _YOU, None, 5, "This user may not listen on the port.",
         "Choose a port from 1024 up, or give this user the right: docs/operations.md, 'Ports below 1024'."),
    Code("address_not_here", _YOU, None, 1, "No network interface of this machine has the address to listen on.",
         "Use an address of this machine, or 127.0.0.1."),
    Code("local_port_closed", _SERVICE, None, 1, "Nothing listens on the local port of the service.",
         "Start the service first, or check --port and --address."),
    Code("withdrawn", _RELAY, None, 1, "This host was withdrawn by its owner.",
         "Start the agent again to offer the service again."),
    # --- what does not exist ---------------------------------------------------------------
    Code("unknown_service", _RELAY, 404, 3, "No such service, or it is not open to you.",
         "Check HANDLE/NAME with the person who gave it to you."),
    Code("unknown_host", _RELAY, 404, 3, "No such host is live, or it is not yours to withdraw.",
         "List the live hosts with 'kdispatch service hosts HANDLE/NAME'."),
    Code("unknown_token", _RELAY, 404, 3, "No such token, or it is not yours.",
         "List your tokens with 'kdispatch token list'."),
    Code("unknown_admin", _RELAY, None, 3, "No admin has this handle.",
         "List the admins with 'kdispatch relay admin list'."),
    Code("unknown_invite", _RELAY, 404, 3, "No such invitation, or it is not yours.",
         "List the invitations with 'kdispatch invite list HANDLE/NAME'."),
    Code("unknown_agent", _YOU, None, 3, "No agent of this name or id runs here as this user.",
         "List your agents with 'kdispatch status'; 'agent stop' takes an id or HANDLE/NAME."),
    Code("no_live_host", _DOWN, None, 3, "The service exists, but no host offers it at the moment.",
         "Start 'kdispatch agent host' where the service runs."),
    # --- access --------------------------------------------------------------------------
    Code("not_logged_in", _YOU, 401, 4, "There is no token to show.",
         "Run 'kdispatch sign-up HANDLE', or give a token by file, standard input or KDISPATCH_TOKEN."),
    Code("token_refused", _RELAY, 401, 4, "The relay does not accept this token.",
         "Check that the token is complete and belongs to this relay."),
    Code("revoked", _RELAY, 401, 4, "The right behind this access was revoked.",
         "Ask the service's owner for a new token."),
    Code("invite_spent", _RELAY, 410, 4, "The invitation is used up, or has expired.",
         "Ask the person who sent it for a new one."),
    Code("not_permitted", _RELAY, 403, 5, "This token may not do that.",
         "Use the service's own token, or its owner's."),
    # --- load ----------------------------------------------------------------------------
    Code("rate_limited", _RELAY, 429, 1, "Too many requests in a short time.",
         "Wait as long as the answer says, or one minute if it says nothing, then try again."),
    Code("quota_exceeded", _RELAY, 429, 1, "The account has reached its limit.",
         "Remove what is not needed, or ask the relay's operator for more."),
    Code("busy", _RELAY, 503, 1, "A limit is reached; no more work is accepted for now.",
         "Try again shortly."),
    Code("storage_unavailable", _RELAY, 503, 1, "The relay's database does not answer.",
         "Running streams continue. Try again; if it does not recover, tell the relay's operator."),
    Code("version_unsupported", _UP, 426, 1, "Agent and relay have no protocol version in common.",
         "Upgrade the older of the two."),
    Code("internal_error", _RELAY, 500, 1, "The relay failed because of a defect in it.",
         "Report it with the request id from the relay's log."),
    # --- the way to the relay ----------------------------------------------------------------
    Code("relay_unreachable", _UP, None, 6, "The relay can't be reached.",
         "Check the address and this machine's network."),
    Code("not_a_relay", _UP, None, 6, "Something answers at this address, but it is no kdispatch relay.",
         "Check the relay's URL, and the servers in front of it."),
    Code("misdirected", _UP, 421, 6, "The relay does not answer to this name.",
         "Use the name that the relay's operator gave you; the relay lists it as --allowed-host."),
    Code("other_relay", _UP, None, 6, "The relay's addresses lead to different relays.",
         "Give several addresses only if all of them lead to the same relay."),
    Code("proxy_unreachable", _UP, None, 6, "The proxy can't be reached, or does not answer as one.",
         "Check the proxy's address: --proxy, HTTPS_PROXY, ALL_PROXY."),
    Code("proxy_auth", _UP, None, 6, "The proxy requires a user name and password, or refused those that it got.",
         "Put them into the proxy's URL, http://USER:PASSWORD@HOST:PORT, with special characters %-encoded."),
    Code("proxy_refused", _UP, None, 6, "The proxy refuses this connection.",
         "Ask the network's owner to allow HTTPS to the relay's name."),
    Code("tls_unknown_ca", _UP, None, 6, "This machine trusts no authority that signed the relay's certificate.",
         "If your network intercepts TLS, install its CA, or name the CA's file."),
    Code("tls_wrong_host", _UP, None, 6, "The certificate belongs to another name.",
         "Check the relay's URL."),
    Code("tls_expired", _UP, None, 6, "The relay's certificate has expired.",
         "Tell the relay's operator; check this machine's clock."),
    Code("tls_not_yet_valid", _UP, None, 6, "The relay's certificate is not valid yet.",
         "Check this machine's clock."),
    Code("tls_wrong_pin", _UP, None, 6, "The relay's public key matches none of the pinned keys.",
         "If your network intercepts TLS, use another network; if the relay has a new key, pin that key."),
    Code("tls_client_cert", _UP, None, 6, "The server in front of the relay requires a client certificate.",
         "Use --client-cert with the certificate that its operator made for you."),
    Code("captive_portal", _UP, None, 6, "A log-in page answers instead of the relay.",
         "Log in to the network in a browser; if nothing asks for that, check the relay's URL."),
    # --- one stream -----------------------------------------------------------------------------
    Code("closed", _SERVICE, None, None, "The stream finished.", "Nothing to do."),
    Code("host_refused", _SERVICE, None, None, "No host could reach its local service.",
         "Check that the service runs on the host's machine."),
    Code("host_timeout", _DOWN, None, None, "No host answered in time.",
         "The host's machine or its network may be gone; try again."),
    Code("open_interrupted", _UP, None, None, "The session ended while the stream was being opened.",
         "Connect again; whether the service saw the first bytes is not known."),
    Code("resume_expired", _DOWN, None, None, "A session was lost and the stream could not resume in time.",
         "Connect again."),
    Code("peer_restarted", _DOWN, None, None, "The agent at the other end was restarted.", "Connect again."),
    Code("unknown_stream", _DOWN, None, None, "The other end does not know this stream.", "Connect again."),
    Code("bad_proof", _DOWN, None, None, "The proof for this stream is not valid.", "Connect again."),
    Code("offset_mismatch", _DOWN, None, None, "The two ends disagree about what was transferred.",
         "Report it: this is a defect in one of them."),
    Code("credit_exceeded", _DOWN, None, None, "An agent sent or granted more than the protocol allows.",
         "Report it: this is a defect in an agent."),
    Code("cancelled", _SERVICE, None, None, "One end gave up the connection.",
         "Nothing to do, or connect again."),
    # --- one session ---------------------------------------------------------------------------
    Code("drain", _UP, None, None, "The relay is going away and asks its agents to move.",
         "Nothing to do: the agent reconnects."),
    Code("superseded", _UP, None, None, "A newer session of the same agent took over.", "Nothing to do."),
    Code("slow_consumer", _UP, None, None, "The agent read nothing for too long.",
         "Check the agent's machine and its network."),
    Code("protocol_error", _UP, None, None, "The other end broke a rule of the protocol.",
         "Report it with both versions."),
)
# fmt: on

CODES: Final[dict[str, Code]] = {code.name: code for code in _TABLE}


class KdispatchError(Exception):
    """A failure with a stable code: ``code`` is a name in :data:`CODES`, ``text`` says what happened.

    The text is shown, logged and sent, so tokens in it are always redacted.
    """

    def __init__(self, code: str, text: str = "") -> None:
        self.code = code
        self.text = redacted(text or CODES[code].meaning)
        super().__init__(f"{self.text} [{code}]")

    @classmethod
    def from_wire(cls, code: str, text: str, unknown: str = "protocol_error") -> Self:
        """An error named by the other end; a code that this version does not know becomes ``unknown``."""
        return cls(code, text) if code in CODES else cls(unknown, f"{text} [{code}]")

    def __reduce__(self) -> tuple[Callable[..., KdispatchError], tuple[type[KdispatchError], str, str]]:
        # Copies and pickles would call the class with Exception's arguments, and those of a subclass differ.
        return _made_again, (type(self), self.code, self.text)

    @property
    def info(self) -> Code:
        """The table's row of this code."""
        return CODES[self.code]


def _made_again(kind: type[KdispatchError], code: str, text: str) -> KdispatchError:
    error = kind.__new__(kind)
    KdispatchError.__init__(error, code, text)
    return error


class LocalProtocolError(KdispatchError):
    """The caller did something that the state does not allow: a defect on this side."""

    def __init__(self, text: str, code: str = "protocol_error") -> None:
        super().__init__(code, text)


class RemoteProtocolError(KdispatchError):
    """Received bytes break the protocol: end the session with the code."""

    def __init__(self, text: str, code: str = "protocol_error") -> None:
        super().__init__(code, text)


class StreamReset(KdispatchError, ConnectionResetError):  # noqa: N818 - named for what happened, like its base
    """A stream ended by a RESET, sent by either end or by the relay."""
