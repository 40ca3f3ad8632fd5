"""The stored tokens, and the choice of the token that a command shows.

``credentials.json`` in the configuration directory, mode 0600, by relay::

    {"credentials_version": 1,
     "relays": {"https://relay.example.org": {
         "handle": "ann",                       the handle for a NAME without a handle
         "admins": {"ann": "adm_…"},
         "services": {"ann/web": "svc_…"},      to host
         "clients": {"bob/db": "cli_…"}}}}      to connect

Only ``logout``, the deletion of a service and the revocation of a token remove a token. A second
sign-up at the same relay adds its handle and makes it the current one.
"""

from __future__ import annotations

import json
import os
import shlex
import stat
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from kdispatch.machine.hidden_arguments import hide_argument
from kdispatch.machine.operating_system import HERE
from kdispatch.relay_url import RelayUrl
from kdispatch.settings import SetupError, config_directory, private_lock, write_private
from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.names import check_name, split_service
from kdispatch_protocol.secret_files import mode_is_given, secret_text
from kdispatch_protocol.tokens import token_digest, token_id, token_kind

__all__ = ["CREDENTIALS_FILE", "Credentials", "given_code", "given_token", "typed_token"]

CREDENTIALS_FILE: Final = "credentials.json"
CREDENTIALS_VERSION: Final = 1

#: A token has 56 characters; a larger file is not a token file.
_TOKEN_FILE_BYTES: Final = 4096

_STANDARD_INPUT: Final = "-"

_Relays = dict[str, dict[str, Any]]


class Credentials:
    """The tokens stored on this machine. Each call reads the file again, so processes see each other's changes."""

    def __init__(self, directory: Path | None = None) -> None:
        self.path: Final = (directory or config_directory()) / CREDENTIALS_FILE

    def handle(self, relay: RelayUrl) -> str | None:
        """The current handle at ``relay``."""
        handle: str | None = self._of(relay).get("handle")
        return handle

    def admin_token(self, relay: RelayUrl, handle: str | None = None) -> str | None:
        """The admin token of ``handle``, by default the current one."""
        entry = self._of(relay)
        token: str | None = entry.get("admins", {}).get(handle or entry.get("handle"))
        return token

    def service_token(self, relay: RelayUrl, service: str) -> str | None:
        """The stored ``svc_`` token of ``service``."""
        token: str | None = self._of(relay).get("services", {}).get(service)
        return token

    def client_token(self, relay: RelayUrl, service: str) -> str | None:
        """The stored ``cli_`` token of ``service``."""
        token: str | None = self._of(relay).get("clients", {}).get(service)
        return token

    def store_admin(self, relay: RelayUrl, handle: str, token: str) -> None:
        """Store an admin's token and make ``handle`` the current one. The token is on disk on return."""
        with private_lock(self.path.parent):
            relays = self._read()
            entry = relays.setdefault(str(relay), {})
            entry["handle"] = handle
            entry.setdefault("admins", {})[handle] = token
            self._write(relays)

    def store_service(self, relay: RelayUrl, service: str, token: str) -> None:
        """Store a token to host a service. It is on disk on return."""
        self._store(relay, "services", service, token)

    def store_client(self, relay: RelayUrl, service: str, token: str) -> None:
        """Store a token to connect to a service. It is on disk on return."""
        self._store(relay, "clients", service, token)

    def store_for(self, kind: str, relay: RelayUrl, service: str, token: str) -> None:
        """Store a token of kind ``svc`` or ``cli``."""
        (self.store_service if kind == "svc" else self.store_client)(relay, service, token)

    def _store(self, relay: RelayUrl, what: str, service: str, token: str) -> None:
        with private_lock(self.path.parent):
            relays = self._read()
            relays.setdefault(str(relay), {}).setdefault(what, {})[service] = token
            self._write(relays)

    def handles(self, relay: RelayUrl) -> tuple[str, ...]:
        """The handles whose admin tokens are stored for ``relay``."""
        return tuple(sorted(self._of(relay).get("admins", {})))

    def services(self, relay: RelayUrl) -> tuple[str, ...]:
        """The services that have a stored token to host them."""
        return tuple(sorted(self._of(relay).get("services", {})))

    def clients(self, relay: RelayUrl) -> tuple[str, ...]:
        """The services that have a stored token to connect to them."""
        return tuple(sorted(self._of(relay).get("clients", {})))

    def drop(
        self,
        relay: RelayUrl,
        *,
        handles: Iterable[str] = (),
        services: Iterable[str] = (),
        clients: Iterable[str] = (),
    ) -> None:
        """Remove these tokens. If exactly one handle is left, it becomes the current one."""
        with private_lock(self.path.parent):
            relays = self._read()
            entry = relays.get(str(relay), {})
            admins = entry.get("admins", {})
            for handle in handles:
                admins.pop(handle, None)
            for what, names in (("services", services), ("clients", clients)):
                for name in names:
                    entry.get(what, {}).pop(name, None)
            if entry.get("handle") not in admins:
                entry.pop("handle", None)
                if len(admins) == 1:
                    entry["handle"] = next(iter(admins))
            if not any(entry.values()):
                relays.pop(str(relay), None)
            self._write(relays)

    def drop_token(self, relay: RelayUrl, which: str) -> list[str]:
        """Remove the token with this id everywhere; returns the handles and services that used it."""
        dropped: dict[str, list[str]] = {}
        for what in ("admins", "services", "clients"):
            stored = self._of(relay).get(what, {}).items()
            dropped[what] = [name for name, token in stored if token_id(token_digest(token)) == which]
        names = [name for found in dropped.values() for name in found]
        if names:
            self.drop(relay, handles=dropped["admins"], services=dropped["services"], clients=dropped["clients"])
        return names

    def check(self) -> None:
        """Raise now what storing would raise later: call it before requesting a token that is shown only once."""
        with private_lock(self.path.parent):
            self._read()

    def full_name(self, relay: RelayUrl, service: str) -> str:
        """Complete what the user typed to ``HANDLE/NAME``, with the current handle; ``bad_name``, ``not_logged_in``."""
        if "/" in service:
            split_service(service)
            return service
        check_name(service, "service name")
        handle = self.handle(relay)
        if handle is None:
            text = f"{service!r} has no handle, and none is stored for {relay}."
            raise SetupError("not_logged_in", text, hint=f"Write HANDLE/{service}, or sign up or log in first.")
        return f"{handle}/{service}"

    def token_for_host(
        self,
        relay: RelayUrl,
        service: str,
        *,
        token: str | None = None,
        token_file: str | None = None,
        warn: Callable[[str], None],
    ) -> str:
        """The token to host ``HANDLE/NAME``: the given one, else the service's, else its owner's; ``not_logged_in``.

        ``token`` and ``token_file`` are the flags' values, see :func:`given_token`.
        """
        owner, _ = split_service(service)
        found = (
            given_token(token, token_file, warn=warn)
            or self.service_token(relay, service)
            or self.admin_token(relay, owner)
        )
        if found is None:
            raise KdispatchError("not_logged_in", f"No token for {service} at {relay} is given or stored.")
        return found

    def token_for_client(
        self,
        relay: RelayUrl,
        service: str,
        *,
        token: str | None = None,
        token_file: str | None = None,
        warn: Callable[[str], None],
    ) -> str | None:
        """The token to connect to ``HANDLE/NAME``: the given one, else the stored client token, else the owner's.

        ``None`` if there is none: a public service needs no token.
        """
        owner, _ = split_service(service)
        return (
            given_token(token, token_file, warn=warn)
            or self.client_token(relay, service)
            or self.admin_token(relay, owner)
        )

    def token_for_reader(self, relay: RelayUrl, service: str) -> str | None:
        """The stored token to read ``HANDLE/NAME``; ``None`` if there is none: a public service needs no token."""
        owner, _ = split_service(service)
        return self.admin_token(relay, owner) or self.service_token(relay, service) or self.client_token(relay, service)

    def _of(self, relay: RelayUrl) -> dict[str, Any]:
        return self._read().get(str(relay), {})

    def _read(self) -> _Relays:
        try:
            with self.path.open("rb") as file:
                _must_be_private(self.path, file.fileno(), mend="")
                data = file.read()
        except FileNotFoundError:
            return {}
        except OSError as error:
            text = f"{self.path} cannot be read: {error.strerror or error}."
            raise SetupError("not_logged_in", text, hint="Check its owner and mode.") from error
        try:
            return _checked(json.loads(data))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # Its tokens can't be obtained again, so nothing here may overwrite them.
            moved = shlex.quote(f"{self.path}.damaged")
            raise SetupError(
                "not_logged_in",
                f"{self.path} is damaged: {error}. It is left as it is.",
                hint=f"Repair it, or move it away: mv {shlex.quote(str(self.path))} {moved}",
            ) from error

    def _write(self, relays: _Relays) -> None:
        content = {"credentials_version": CREDENTIALS_VERSION, "relays": relays}
        write_private(self.path, json.dumps(content, indent=2).encode() + b"\n")


def given_token(token: str | None, token_file: str | None, *, warn: Callable[[str], None]) -> str | None:
    """The token that the caller gave: ``--token``, ``--token-file``, ``KDISPATCH_TOKEN``, in this order.

    ``token`` is the token itself (``warn`` is called, as others can see it), ``-``
    for standard input or ``@FILE``. Raises ``not_logged_in`` for a file that can't
    be read or that others can read, and ``token_refused`` for text that is not a
    token. Neither error repeats the text.
    """
    if token == _STANDARD_INPUT:
        return typed_token()
    if token is not None and token.startswith("@"):
        return _from_file(token[1:])
    if token is not None:
        hide_argument(token)
        warn("others on this machine can see a token in the process list; use --token-file, or --token - to read it.")
        return _well_formed(token, "--token")
    if token_file is not None:
        return _from_file(token_file)
    if token := os.environ.get("KDISPATCH_TOKEN"):
        if not token.strip():
            raise SetupError("token_refused", "KDISPATCH_TOKEN is blank.", hint="Write the whole token, or unset it.")
        return _well_formed(token, "KDISPATCH_TOKEN")
    return None


def typed_token() -> str:
    """Read one line of standard input, hidden on a terminal; raises ``token_refused`` if it is not a token."""
    return _well_formed(_from_stdin("token: "), "standard input")


def given_code(code: str | None) -> str:
    """An invitation's code: the code itself, ``@FILE``, or ``-`` or ``None`` for standard input.

    A code as an argument gives no warning: people send codes this way, and the argument is hidden at once.
    """
    if code is None or code == _STANDARD_INPUT:
        found = _well_formed(_from_stdin("code: "), "standard input")
    elif code.startswith("@"):
        found = _from_file(code[1:])
    else:
        hide_argument(code)
        found = _well_formed(code, "the command line")
    if (kind := token_kind(found)) != "inv":
        text = f"A token of kind {kind}_ is not an invitation code."
        raise SetupError("token_refused", text, hint="Copy the code from inv_ to its end; 'login' takes tokens.")
    return found


def _from_stdin(prompt: str) -> str:
    if sys.stdin is None:
        return ""
    if HERE.is_terminal(sys.stdin):
        return secret_text(HERE.read_hidden(prompt, _TOKEN_FILE_BYTES))
    return secret_text(HERE.read_line(_TOKEN_FILE_BYTES))


def _from_file(name: str) -> str:
    try:
        with Path(name).open("rb") as file:
            if HERE.is_ours(os.fstat(file.fileno()).st_uid):  # other users' files are not ours to protect
                _must_be_private(Path(name), file.fileno(), mend=f", or give it by standard input: --token - < {name}")
            return _well_formed(secret_text(file.read(_TOKEN_FILE_BYTES)), name)
    except OSError as error:
        text = f"The token file {name} cannot be read: {error.strerror or error}."
        raise SetupError("not_logged_in", text, hint="Check the file's name, owner and mode.") from error


def _must_be_private(path: Path, descriptor: int, *, mend: str) -> None:
    """Raise ``not_logged_in`` for a file that other users of this machine may use.

    The mode of a pipe does not matter, and this user can't change that of a mounted secret.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or not HERE.others_may_use(status.st_mode):
        return
    if not mode_is_given(status.st_mode, status.st_uid, read_only=HERE.is_read_only(descriptor)):
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        raise SetupError(
            "not_logged_in",
            f"{path} holds tokens, and others on this machine may use it (mode {mode}).",
            hint=f"chmod 600 {shlex.quote(str(path))}{mend}",
        )


def _well_formed(token: str, source: str) -> str:
    token = token.strip("\ufeff").strip()  # an environment variable may contain a byte order mark, too
    if token_kind(token) is None:
        text = f"The text from {source} is not a kdispatch token: cut short, mistyped or empty."
        raise SetupError("token_refused", text, hint="Copy the whole token, from adm_, svc_, cli_ or inv_ to its end.")
    return token


def _checked(content: Any) -> _Relays:
    """Return the relays of a file's content; ValueError, KeyError, TypeError or AttributeError if it is invalid."""
    if (found := content["credentials_version"]) != CREDENTIALS_VERSION:
        raise ValueError(f"its version is {found!r}, this kdispatch knows {CREDENTIALS_VERSION}")
    relays: _Relays = content["relays"]
    for relay, entry in relays.items():
        tokens = [token for what in ("admins", "services", "clients") for token in entry.get(what, {}).values()]
        if not all(isinstance(token, str) for token in tokens) or not isinstance(entry.get("handle", ""), str):
            raise ValueError(f"the entry of {relay} has a value that is no text")
    return relays
