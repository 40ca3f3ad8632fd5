"""The format of tokens: a prefix for the kind, 32 random bytes, and a checksum.

``adm_`` belongs to an admin, ``svc_`` may host one service, ``cli_`` may connect
to one service, ``hst_`` withdraws one live host, ``inv_`` is an invitation. The
last eight characters are the CRC-32 of all before them. It detects a typing
error or an incomplete copy without a database. The caller supplies the random bytes.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from typing import Final

__all__ = ["KINDS", "SECRET_BYTES", "format_token", "redacted", "token_digest", "token_id", "token_kind"]

KINDS: Final = ("adm", "svc", "cli", "hst", "inv")
SECRET_BYTES: Final = 32

_TOKEN: Final = re.compile(r"(adm|svc|cli|hst|inv)_([A-Za-z0-9_-]{43})([0-9a-f]{8})")

#: Text that looks like a token, complete or cut short: its prefix and at least 16 characters.
_LIKE_A_TOKEN: Final = re.compile(r"\b(adm|svc|cli|hst|inv)_[A-Za-z0-9_-]{16,}")


def redacted(text: str) -> str:
    """Replace each token by its kind: users put tokens where a name belongs, and messages repeat their input."""
    return _LIKE_A_TOKEN.sub(r"\1_[redacted]", text)


def format_token(kind: str, secret: bytes) -> str:
    """Format a token of ``kind`` from 32 bytes of ``secrets.token_bytes``."""
    if kind not in KINDS or len(secret) != SECRET_BYTES:
        raise ValueError("a token is one of the known kinds and 32 bytes")
    body = f"{kind}_{base64.urlsafe_b64encode(secret).decode().rstrip('=')}"
    return f"{body}{zlib.crc32(body.encode()):08x}"


def token_kind(token: str) -> str | None:
    """The kind of a well-formed token; ``None`` if it is malformed, cut short or mistyped."""
    match = _TOKEN.fullmatch(token)
    if match is None:
        return None
    body, check = token[:-8], token[-8:]
    return match[1] if zlib.crc32(body.encode()) == int(check, 16) else None


def token_digest(token: str) -> bytes:
    """SHA-256 of the token's text, 32 bytes. Only this digest is ever stored."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def token_id(digest: bytes) -> str:
    """The public id of the token with this digest: 16 hexadecimal digits. It reveals neither token nor digest."""
    return hashlib.sha256(digest).hexdigest()[:16]
