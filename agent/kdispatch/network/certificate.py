"""Fields of a server's certificate, trusted or not: issuer, subject, names, validity, key.

Python tells these only for verified certificates, but this module explains why one was refused. So it reads the few
fields from the DER itself (RFC 5280, 4.1): tag, length, content, in a fixed order.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

__all__ = ["Certificate"]

_UTC_TIME: Final = 0x17
_VERSION: Final = 0xA0
_EXTENSIONS: Final = 0xA3
_DNS_NAME: Final = 0x82
_ADDRESS: Final = 0x87
_SUBJECT_ALT_NAME: Final = bytes.fromhex("551d11")  # 2.5.29.17
#: Parts of a distinguished name that tell people who it is.
_TELLING: Final = {bytes.fromhex("550403"): "CN", bytes.fromhex("55040a"): "O", bytes.fromhex("55040b"): "OU"}
_UTF16: Final = 0x1E
_NAME_CHARACTERS: Final = 100


@dataclass(frozen=True, slots=True)
class Certificate:
    """``names`` are those that it is valid for; ``key`` is the SHA-256 of its public key (SubjectPublicKeyInfo)."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    key: bytes

    @classmethod
    def parse(cls, der: bytes) -> Certificate:
        """Read the DER of a certificate; raises ``ValueError`` if it is not one."""
        try:
            return cls._parse(der)
        except (IndexError, StopIteration, UnicodeDecodeError) as error:
            raise ValueError("no certificate") from error

    @classmethod
    def _parse(cls, der: bytes) -> Certificate:
        fields = [*_items(_content(_content(der)))]
        if fields[0][0] == _VERSION:
            del fields[0]
        _serial, _algorithm, issuer, validity, subject, key, *more = fields
        begin, end = (_time(*item[:2]) for item in _items(validity[1]))
        names = [name for tag, content, _ in more if tag == _EXTENSIONS for name in _alternative_names(content)]
        digest = hashlib.sha256(key[2]).digest()
        return cls(_name(subject[1]), _name(issuer[1]), tuple(names), begin, end, digest)


_Item = tuple[int, bytes, bytes]  # tag, content, and both with their head


def _items(data: bytes) -> Iterator[_Item]:
    """The consecutive items in ``data``."""
    while data:
        length, head = data[1], 2
        if length >= 0x80:
            head = 2 + (length & 0x7F)
            length = int.from_bytes(data[2:head])
        if len(data) < head + length:
            raise ValueError("cut short")
        yield data[0], data[head : head + length], data[: head + length]
        data = data[head + length :]


def _content(data: bytes) -> bytes:
    return next(_items(data))[1]


def _name(data: bytes) -> str:
    """The parts of a distinguished name that people can use: ``CN=…, O=…``."""
    told = []
    for _, relative, _ in _items(data):
        for _, attribute, _ in _items(relative):
            (_, kind, _), (tag, value, _) = _items(attribute)
            if kind in _TELLING:
                text = value.decode("utf-16-be" if tag == _UTF16 else "utf-8", "replace")
                told.append(f"{_TELLING[kind]}={text[:_NAME_CHARACTERS]}")
    return ", ".join(told) or "no known name"


def _alternative_names(extensions: bytes) -> Iterator[str]:
    for _, extension, _ in _items(_content(extensions)):
        (_, kind, _), *_, (_, value, _) = _items(extension)
        if kind == _SUBJECT_ALT_NAME:
            for tag, content, _ in _items(_content(value)):
                if tag == _DNS_NAME:
                    yield content.decode("ascii", "replace")[:_NAME_CHARACTERS]
                elif tag == _ADDRESS:
                    yield str(ipaddress.ip_address(content))


def _time(tag: int, content: bytes) -> datetime:
    text = content.decode("ascii")
    if tag == _UTC_TIME:  # years from 50 up are of the last century (RFC 5280, 4.1.2.5.1)
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
