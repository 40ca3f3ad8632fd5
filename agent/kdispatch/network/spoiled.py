"""One sentence for each thing that a box on the path does to a request, for everything that asks a relay.

Header names are in lower case in look-ups, and in their usual form in messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from kdispatch.network.proxy import Proxy
from kdispatch.relay_url import RelayUrl
from kdispatch.setup_error import HintedError

__all__ = [
    "author",
    "frames_spoiled",
    "missing_of",
    "no_websocket",
    "origin_added",
    "owner",
    "passed_by",
    "token_lost",
    "upgrade_lost",
]

_RELAYS_OWN: Final = "aiohttp"  # in the Server header of the relay's own server
_SHOWN: Final = 60  # characters of a header that names a program
_HEADERS: Final = 8  # headers that are named
_OR_THE_EDGE: Final = "; where it is the server in front of the relay, docs/operations.md has its configuration."


def author(headers: Mapping[str, str]) -> str:
    """The names, in parentheses, of those that claim to have written and forwarded an answer; may be empty."""
    return _named(headers, "server", "via")


def passed_by(headers: Mapping[str, str]) -> str:
    """The names of those that forwarded what the relay wrote: some replace the relay's name with their own."""
    return _named(headers, "via") if _RELAYS_OWN in headers.get("server", "") else author(headers)


def _named(headers: Mapping[str, str], *names: str) -> str:
    named = [f"{name}: {headers[name][:_SHOWN]}" for name in names if headers.get(name)]
    return f" ({'; '.join(named)})" if named else ""


def owner(relay: RelayUrl, proxy: Proxy | None = None) -> str:
    """The start of a hint: whom to ask, and for what."""
    through = f", at the proxy {proxy}" if proxy is not None else ""
    return f"Ask the network's owner to let WebSockets to {relay.authority} pass{through}"


def missing_of(headers: Mapping[str, str]) -> list[str]:
    """The headers that, according to the relay, a request lacked."""
    names = [name.strip()[:_SHOWN] for name in headers.get("kdispatch-missing", "").split(",")[:_HEADERS]]
    return [name for name in names if name]


def upgrade_lost(relay: RelayUrl, missing: Sequence[str], headers: Mapping[str, str]) -> HintedError:
    """The relay got a request for an upgrade without its headers. If it names none, it means the first of them."""
    lost = ["Upgrade"] if not missing or "Upgrade" in missing else list(missing)
    text = (
        f"The relay gets the request without its {' and '.join(lost)} header{'s' * (len(lost) > 1)}: something on the "
        f"way takes {'them' if len(lost) > 1 else 'that'} out{passed_by(headers)}."
    )
    return HintedError("not_a_relay", text, hint=owner(relay) + _OR_THE_EDGE)


def no_websocket(relay: RelayUrl, proxy: Proxy | None, text: str, code: str = "not_a_relay") -> HintedError:
    """The relay is reachable, but upgrades do not pass in one of the two directions."""
    return HintedError(code, text, hint=owner(relay, proxy) + _OR_THE_EDGE)


def frames_spoiled(relay: RelayUrl, proxy: Proxy | None = None) -> HintedError:
    """The upgrade passed, but what follows it breaks the rules before the relay has sent anything."""
    text = (
        f"{relay}: What follows the upgrade can't be read. Something on the way changes it, or it is not from a relay."
    )
    return HintedError("not_a_relay", text, hint=owner(relay, proxy) + _OR_THE_EDGE)


def origin_added(relay: RelayUrl, headers: Mapping[str, str]) -> HintedError:
    """The relay refused the request as one of a web page; agents and commands send no ``Origin``."""
    text = (
        f"The relay gets the request with an Origin header, as web pages send it: something on the way adds that"
        f"{passed_by(headers)}."
    )
    hint = f"Let the server in front of the relay, or the proxy, add no Origin header to requests to {relay.authority}."
    return HintedError("not_a_relay", text, hint=hint)


def token_lost(relay: RelayUrl, headers: Mapping[str, str]) -> HintedError:
    """A token was sent, but the relay saw none."""
    text = (
        f"The token did not arrive: the relay gets requests without their Authorization header, so something on the "
        f"way takes that out{passed_by(headers)}."
    )
    hint = (
        f"Let the server in front of the relay, or the proxy, pass the Authorization header on to {relay.authority}; "
        "docs/operations.md has the configuration of such servers."
    )
    return HintedError("not_a_relay", text, hint=hint)
