"""The challenges of a proxy's 407, and the answers to them: Basic (RFC 7617) and Digest (RFC 7616)."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Challenge", "authorization", "challenges", "chosen", "digest"]

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
#: A parameter of a challenge, or a scheme that starts the next challenge (with its optional token68).
_PART: Final = re.compile(
    rf'(?:(?P<name>{_WORD})\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>{_WORD}))'
    rf"|(?P<scheme>{_WORD})(?:\s+[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|\Z)))?)"
)
#: Characters of one value that are parsed: none needs more, and the search may take quadratic time.
_FIELD_MAX: Final = 4096
#: From the best one down; most proxies still ask for MD5.
_HASHES: Final = {"SHA-256": "sha256", "MD5": "md5"}


@dataclass(frozen=True, slots=True)
class Challenge:
    """One authentication method that a proxy offers. ``scheme`` and the parameters' names are in lower case."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def algorithm(self) -> str:
        """The hash of Digest without ``-sess``; the default is MD5."""
        return self.parameters.get("algorithm", "MD5").upper().removesuffix("-SESS")

    @property
    def stale(self) -> bool:
        """Whether the nonce was too old, rather than the password wrong."""
        return self.parameters.get("stale", "").lower() == "true"

    @property
    def is_known(self) -> bool:
        """Whether kdispatch can answer it."""
        if self.scheme != "digest":
            return self.scheme == "basic"
        qop = self.parameters.get("qop")
        return (
            self.algorithm in _HASHES
            and {"realm", "nonce"} <= self.parameters.keys()
            and (qop is None or "auth" in re.split(r"[\s,]+", qop.lower()))
        )


def challenges(values: Sequence[str]) -> list[Challenge]:
    """All challenges in the values of Proxy-Authenticate; one value may contain several."""
    found: list[tuple[str, dict[str, str]]] = []
    for value in values:
        for part in _PART.finditer(value[:_FIELD_MAX]):
            if part["scheme"]:
                found.append((part["scheme"].lower(), {}))
            elif found:
                quoted = part["quoted"]
                text = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else part["plain"]
                found[-1][1].setdefault(part["name"].lower(), text)
    return [Challenge(scheme, parameters) for scheme, parameters in found]


def chosen(offered: Sequence[Challenge]) -> Challenge | None:
    """The challenge to answer: Digest before Basic, which shows the password to everyone on the path."""

    def rank(challenge: Challenge) -> int:
        return list(_HASHES).index(challenge.algorithm) if challenge.scheme == "digest" else len(_HASHES)

    return min((challenge for challenge in offered if challenge.is_known), key=rank, default=None)


def authorization(challenge: Challenge, method: str, target: str, user: str, password: str) -> bytes:
    """The value of Proxy-Authorization for a request; for a CONNECT ``target`` is host and port."""
    if challenge.scheme == "basic":
        return b"Basic " + base64.b64encode(f"{user}:{password}".encode())
    return digest(challenge, method, target, user, password, cnonce=secrets.token_hex(16))


def digest(challenge: Challenge, method: str, target: str, user: str, password: str, *, cnonce: str) -> bytes:
    """The value for Digest; ``cnonce`` must be unpredictable."""
    given = challenge.parameters
    # Without "charset" the proxy chooses the encoding; text that does not fit into Latin-1 can only mean UTF-8.
    latin = given.get("charset", "").upper() != "UTF-8" and all(c < "\u0100" for c in user + password)
    charset = "latin-1" if latin else "utf-8"

    def hashed(*parts: str) -> str:
        data = ":".join(parts).encode(charset, "replace")
        return hashlib.new(_HASHES[challenge.algorithm], data, usedforsecurity=False).hexdigest()

    realm, nonce = given["realm"], given["nonce"]
    secret = hashed(user, realm, password)
    if given.get("algorithm", "").upper().endswith("-SESS"):
        secret = hashed(secret, nonce, cnonce)
    asked = hashed(method, target)
    fields = {"username": user, "realm": realm, "nonce": nonce, "uri": target}
    if given.get("userhash", "").lower() == "true":
        fields["username"] = hashed(user, realm)
    if "qop" in given:
        fields["response"] = hashed(secret, nonce, "00000001", cnonce, "auth", asked)
        fields["cnonce"] = cnonce
    else:
        fields["response"] = hashed(secret, nonce, asked)
    if "opaque" in given:
        fields["opaque"] = given["opaque"]
    told = [f'{name}="{_quotable(text)}"' for name, text in fields.items()]
    told += ["qop=auth", "nc=00000001"] if "qop" in given else []
    told += [f"algorithm={given['algorithm']}"] if "algorithm" in given else []
    told += ["userhash=true"] if given.get("userhash", "").lower() == "true" else []
    return f"Digest {', '.join(told)}".encode(charset, "replace")


def _quotable(text: str) -> str:
    return re.sub(r'(["\\])', r"\\\1", text)
