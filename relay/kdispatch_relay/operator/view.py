"""``relay state``: the state of the relay on this machine, as lines."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kdispatch_protocol.errors import CODES, KdispatchError
from kdispatch_relay.door.neighbour import ask, pinned
from kdispatch_relay.door.sockets import reachable, written
from kdispatch_relay.operator.token import read_operator_token
from kdispatch_relay.paths import PREFIX
from kdispatch_relay.settings import RelaySettings

__all__ = ["lines", "read_state"]

_STREAMS: Final = {"open": "open", "trying": "asking a host", "waiting": "waiting for a host", "asking": "looked up"}


def read_state(listen: str, certificate: Path | None, token_file: Path | None) -> dict[str, Any]:
    """The state of the relay that listens at ``listen`` with this certificate.

    Raises ``relay_unreachable``, ``not_a_relay``, the relay's own error, or ``bad_request`` for an unusable file.
    """
    host, port = reachable(RelaySettings(listen=listen, insecure_plaintext=True).address)
    token = None if token_file is None else read_operator_token(token_file)
    where = written((host, port))
    try:
        tls = None if certificate is None else pinned(certificate)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror or str(error)
        raise KdispatchError("bad_request", f"The TLS certificate can't be used: {reason}.") from error
    try:
        found = ask(host, port, f"{PREFIX}/relay/state", tls=tls, token=token)
    except OSError as error:
        reason = error.strerror or str(error)
        raise KdispatchError("relay_unreachable", f"No relay answers at {where}: {reason}.") from error
    if found is not None and "streams" in found:
        return found
    code = found and found.get("code")
    if isinstance(code, str) and code in CODES:
        raise KdispatchError(code, str(found and found.get("detail", "")))
    raise KdispatchError("not_a_relay", f"What answers at {where} is not a relay, or is another version.")


def lines(found: Mapping[str, Any]) -> list[str]:
    """The state as lines for people."""
    longest = found.get("longest_queue")
    of_all = f", most of it, {_size(longest['bytes'])}, for agent {longest['agent']}" if longest else ""
    streams = [f"{found['streams'].get(state, 0):,} {said}" for state, said in _STREAMS.items()]
    cuts, refused, limited = (
        ", ".join(f"{count:,} {code}" for code, count in found[what].items()) or "none"
        for what in ("cuts", "refused", "limited")
    )
    return [
        f"relay     {found['relay']}, version {found['version']}",
        f"since     {found['since']}{', draining' if found['draining'] else ''}",
        f"sessions  {found['sessions']:,}",
        f"hosts     {found['hosts']:,}",
        f"streams   {', '.join(streams)}",
        f"waiting   {found['waiting']:,} for their other end",
        f"queued    {_size(found['queued_bytes'])}{of_all}",
        f"marks     {found['marks']:,}",
        f"cuts      {cuts}",
        f"arrivals  {found['arrivals']:,}",
        f"refused   {refused}",
        f"limited   {limited}",
    ]


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count:,} bytes"
