"""The one table of stable codes, and the exceptions that carry them.

REST problems, RESET and GOAWAY frames, logs, the library's exceptions, exit
statuses and ``docs/errors.md`` all take their code from :data:`CODES`.

The tree::

    KdispatchError            anything kdispatch raises on purpose
    ├── LocalProtocolError    the caller broke a rule of this package
    ├── RemoteProtocolError   the other end broke a rule of the wire
    └── StreamReset           a stream ended without finishing (also a ConnectionResetError)
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

    ``hop`` is where the failure lies, as people are told: "you", "you -> relay",
    "relay", "relay -> host" or "host -> service". ``http`` is the status of a
    REST problem with this code and ``exit`` the status of a command that ends
    with it; ``None`` where the code never gets there.
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
         "Use 1 to 63 of a-z, 0-9 and '-', neither first nor last a '-'; a service is HANDLE/NAME."),
    Code("bad_request", _YOU, 422, 2, "The request is malformed.",
         "Compare it with --help, or with docs/rest-api.md."),
    Code("unknown_address", _YOU, 404, 2, "There is nothing at this address.",
         "Compare it with docs/rest-api.md; the API is below /api/v1."),
    Code("wrong_method", _YOU, 405, 2, "This address does not take this method.",
         "The answer's Allow header names those that it takes."),
    Code("too_large", _YOU, 413, 2, "The body is larger than the relay takes.",
         "No body of the API has more than a few hundred bytes."),
    Code("not_installed", _YOU, None, 1, "The command needs a Python package that is not installed.",
         "Install what the message names."),
    Code("bad_relay_url", _YOU, None, 2, "The relay's address is missing or is not an http(s) URL.",
         "Give --relay https://relay.example.org, or set KDISPATCH_RELAY."),
    Code("plaintext_refused", _YOU, None, 2, "Plain http would carry tokens readable by everyone on the way.",
         "Use https://, or --insecure-plaintext on a network you trust."),
    # --- names that are taken, ports ---------------------------------------------------
    Code("handle_taken", _RELAY, 409, 1, "Somebody has this handle already.",
         "Choose another handle; if it is yours, give its token with --token-file."),
    Code("service_exists", _RELAY, 409, 1, "You have a service of this name already.",
         "Choose another name; its token was shown when it was created."),
    Code("last_token", _RELAY, 409, 1, "It is the last admin token that does not expire: nobody could log in again.",
         "Create another one first: kdispatch token create NAME."),
    Code("port_in_use", _YOU, None, 1, "Another program listens on the local port.",
         "Choose another port; 'agent connect' without --port takes a free one."),
    Code("port_forbidden", _YOU, None, 5, "This user may not listen on the port.",
         "Take a port from 1024 on, or let this user have it: docs/operations.md, 'Ports below 1024'."),
    Code("address_not_here", _YOU, None, 1, "No network interface of this machine has the address to listen on.",
         "Take an address that this machine has, or 127.0.0.1."),
    Code("local_port_closed", _SERVICE, None, 1, "Nothing listens on the local port that was to be offered.",
         "Start the service first, or check --port and --address."),
    Code("withdrawn", _RELAY, None, 1, "This host was withdrawn by its owner.",
         "Start the agent again to offer the service anew."),
    # --- what is not there ---------------------------------------------------------------
    Code("unknown_service", _RELAY, 404, 3, "No such service, or it is not open to you.",
         "Check HANDLE/NAME with whoever gave it to you."),
    Code("unknown_host", _RELAY, 404, 3, "No such host is live, or it is not yours to withdraw.",
         "Look with 'kdispatch service hosts HANDLE/NAME' which are live."),
    Code("unknown_token", _RELAY, 404, 3, "No such token, or it is not yours.",
         "Look with 'kdispatch token list' which there are."),
    Code("unknown_admin", _RELAY, None, 3, "Nobody has this handle.",
         "Look with 'kdispatch relay admin list' who there is."),
    Code("unknown_invite", _RELAY, 404, 3, "No such invitation, or it is not yours.",
         "Look with 'kdispatch invite list HANDLE/NAME' which there are."),
    Code("unknown_agent", _YOU, None, 3, "No agent of this name or id runs here as this user.",
         "Look with 'kdispatch status' which run; 'agent stop' takes an id, or HANDLE/NAME."),
    Code("no_live_host", _DOWN, None, 3, "The service exists, but no host offers it at the moment.",
         "Start 'kdispatch agent host' where the service runs."),
    # --- access --------------------------------------------------------------------------
    Code("not_logged_in", _YOU, 401, 4, "There is no token to show.",
         "Run 'kdispatch sign-up HANDLE', or give a token by file, standard input or KDISPATCH_TOKEN."),
    Code("token_refused", _RELAY, 401, 4, "The relay does not accept this token.",
         "Check that the token is whole, and that it is this relay's."),
    Code("revoked", _RELAY, 401, 4, "What this access rested on was revoked.",
         "Ask the service's owner for a new token."),
    Code("invite_spent", _RELAY, 410, 4, "The invitation has been used as often as it may, or has expired.",
         "Ask whoever sent it for a new one."),
    Code("not_permitted", _RELAY, 403, 5, "This token may not do that.",
         "Use the service's own token, or its owner's."),
    # --- load ----------------------------------------------------------------------------
    Code("rate_limited", _RELAY, 429, 1, "Too many requests in a short time.",
         "Wait as long as the answer says, or a minute where it says nothing, then try again."),
    Code("quota_exceeded", _RELAY, 429, 1, "The account has as many of these as it may.",
         "Remove what is not needed, or ask the relay's operator for more."),
    Code("busy", _RELAY, 503, 1, "A limit is reached; nothing more is taken on for now.",
         "Try again shortly."),
    Code("storage_unavailable", _RELAY, 503, 1, "The relay's database does not answer.",
         "Running streams go on. Try again; if it stays so, the relay's operator has to look at it."),
    Code("version_unsupported", _UP, 426, 1, "Agent and relay have no protocol version in common.",
         "Upgrade the older of the two."),
    Code("internal_error", _RELAY, 500, 1, "The relay met a defect of its own.",
         "Report it with the request id from the relay's log."),
    # --- the way to the relay ----------------------------------------------------------------
    Code("relay_unreachable", _UP, None, 6, "The relay can't be reached.",
         "Check the address and this machine's network."),
    Code("not_a_relay", _UP, None, 6, "Something answers at this address, but it is no kdispatch relay.",
         "Check the relay's URL, and what stands in front of it."),
    Code("misdirected", _UP, 421, 6, "The relay does not answer to this name.",
         "Use the name that the relay's operator gave you; it is one of its --allowed-host."),
    Code("other_relay", _UP, None, 6, "The relay's addresses lead to different relays.",
         "Give several addresses only where all of them lead to the same relay."),
    Code("proxy_unreachable", _UP, None, 6, "The proxy can't be reached, or does not answer as one.",
         "Check the proxy's address: --proxy, HTTPS_PROXY, ALL_PROXY."),
    Code("proxy_auth", _UP, None, 6, "The proxy wants a name and a password, or others than it got.",
         "Put them into the proxy's URL, http://USER:PASSWORD@HOST:PORT, with special characters %-encoded."),
    Code("proxy_refused", _UP, None, 6, "The proxy does not let this connection pass.",
         "Ask the network's owner to allow HTTPS to the relay's name."),
    Code("tls_unknown_ca", _UP, None, 6, "The relay's certificate is signed by nobody this machine trusts.",
         "If your network opens TLS, install its CA, or give it by file."),
    Code("tls_wrong_host", _UP, None, 6, "The certificate belongs to another name.",
         "Check the relay's URL."),
    Code("tls_expired", _UP, None, 6, "The relay's certificate has expired.",
         "Tell the relay's operator; check this machine's clock."),
    Code("tls_not_yet_valid", _UP, None, 6, "The relay's certificate is not valid yet.",
         "Check this machine's clock."),
    Code("tls_wrong_pin", _UP, None, 6, "The relay's public key is none of those that are pinned.",
         "If your network opens TLS, go another way; if the relay has a new key, pin that one."),
    Code("tls_client_cert", _UP, None, 6, "The server in front of the relay accepts no client without a certificate.",
         "Give the certificate that its operator made for you with --client-cert."),
    Code("captive_portal", _UP, None, 6, "A log-in page answers in the relay's place.",
         "Log in to the network in a browser; if nothing asks for that, check the relay's URL."),
    # --- one stream -----------------------------------------------------------------------------
    Code("closed", _SERVICE, None, None, "The stream finished.", "Nothing to do."),
    Code("host_refused", _SERVICE, None, None, "No host could reach its local service.",
         "Check that the service runs on the host's machine."),
    Code("host_timeout", _DOWN, None, None, "No host answered in time.",
         "The host's machine or its network may be gone; try again."),
    Code("open_interrupted", _UP, None, None, "The session ended while the stream was being opened.",
         "Connect again; whether the service saw the first bytes is not known."),
    Code("resume_expired", _DOWN, None, None, "A session was lost and the stream could not go on in time.",
         "Connect again."),
    Code("peer_restarted", _DOWN, None, None, "The agent at the other end was restarted.", "Connect again."),
    Code("unknown_stream", _DOWN, None, None, "The other end does not know this stream.", "Connect again."),
    Code("bad_proof", _DOWN, None, None, "The proof shown for this stream does not hold.", "Connect again."),
    Code("offset_mismatch", _DOWN, None, None, "The two ends disagree about what was transferred.",
         "Report it: this is a defect in one of them."),
    Code("credit_exceeded", _DOWN, None, None, "More was sent, or granted, than was allowed.",
         "Report it: this is a defect in an agent."),
    Code("cancelled", _SERVICE, None, None, "One end gave the connection up.",
         "Nothing to do, or connect again."),
    # --- one session ---------------------------------------------------------------------------
    Code("drain", _UP, None, None, "The relay is going away and asks its agents to move.",
         "Nothing to do: the agent reconnects."),
    Code("superseded", _UP, None, None, "A newer session of the same agent took over.", "Nothing to do."),
    Code("slow_consumer", _UP, None, None, "The agent took no byte for too long.",
         "Check the agent's machine and its network."),
    Code("protocol_error", _UP, None, None, "The other end broke a rule of the protocol.",
         "Report it with both versions."),
)
# fmt: on

CODES: Final[dict[str, Code]] = {code.name: code for code in _TABLE}


class KdispatchError(Exception):
    """A failure with a stable code: ``code`` is a name in :data:`CODES`, ``text`` says what happened here.

    The text holds no token, whatever it was made of: it is shown, logged and sent.
    """

    def __init__(self, code: str, text: str = "") -> None:
        self.code = code
        self.text = redacted(text or CODES[code].meaning)
        super().__init__(f"{self.text} [{code}]")

    @classmethod
    def from_wire(cls, code: str, text: str, unknown: str = "protocol_error") -> Self:
        """An error that somebody else named; a code that this version does not know becomes ``unknown``."""
        return cls(code, text) if code in CODES else cls(unknown, f"{text} [{code}]")

    def __reduce__(self) -> tuple[Callable[..., KdispatchError], tuple[type[KdispatchError], str, str]]:
        # The arguments of a subclass differ from those of Exception, by which copies and pickles would be made.
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
    """The caller did what the state does not allow; a defect on this side."""

    def __init__(self, text: str, code: str = "protocol_error") -> None:
        super().__init__(code, text)


class RemoteProtocolError(KdispatchError):
    """What arrived breaks the protocol; the session ends with the code."""

    def __init__(self, text: str, code: str = "protocol_error") -> None:
        super().__init__(code, text)


class StreamReset(KdispatchError, ConnectionResetError):  # noqa: N818 - named for what happened, like its base
    """A stream ended by RESET, of either end or of the relay."""
