"""Rights to host and to open, checked against the database without HTTP."""

from __future__ import annotations

import pytest

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.tokens import format_token
from kdispatch_relay.auth import Authority, Grant, ServiceRecord
from tests.relay.support import Api

PUBLIC = ServiceRecord("ann/web", "public")
CLOSED = ServiceRecord("ann/db", "token")


@pytest.fixture
async def tokens(api: Api) -> dict[str, str]:
    """Tokens of two accounts: ann has a public ``web`` and a private ``db``, bob has his own ``web``."""
    ann, bob = await api.admin("ann"), await api.admin("bob")
    return {
        "ann": ann,
        "ann/web": await api.service(ann, "web"),
        "ann/db": await api.service(ann, "db", "token"),
        "bob": bob,
        "bob/web": await api.service(bob, "web"),
        "unknown": format_token("adm", b"x" * 32),
        "wrong kind": format_token("cli", b"x" * 32),
        "malformed": ann[:-1],
        "mistyped": f"{ann[:10]}{'a' if ann[10] != 'a' else 'b'}{ann[11:]}",
        "empty": "",
        "surrogate": "\ud800",
    }


@pytest.fixture
def authority(api: Api) -> Authority:
    return api.relay.authority


HOST = [
    ("ann/web", "ann", PUBLIC),
    ("ann/web", "ann/web", PUBLIC),
    ("ann/db", "ann", CLOSED),
    ("ann/db", "ann/db", CLOSED),
    ("ann/web", "ann/db", "not_permitted"),
    ("ann/web", "bob", "not_permitted"),
    ("ann/web", "bob/web", "not_permitted"),
    ("ann/absent", "ann", "unknown_service"),
    ("ann/absent", "ann/web", "not_permitted"),
    ("ann/absent", "bob", "not_permitted"),
    ("ann/web", "unknown", "token_refused"),
    ("ann/web", "wrong kind", "token_refused"),
    ("ann/web", "malformed", "token_refused"),
    ("ann/web", "mistyped", "token_refused"),
    ("ann/web", "empty", "token_refused"),
    ("ann/web", "surrogate", "token_refused"),
    ("ann", "ann", "bad_name"),
    ("ann/web/x", "ann", "bad_name"),
    ("127.0.0.1:22", "ann", "bad_name"),
]


@pytest.mark.parametrize(("service", "holder", "expected"), HOST)
async def test_may_host(
    authority: Authority, tokens: dict[str, str], service: str, holder: str, expected: ServiceRecord | str
) -> None:
    """A service is hosted with its own token or its owner's, and with no other."""
    assert await _outcome(authority.may_host(service, tokens[holder])) == expected


OPEN = [
    ("ann/web", None, PUBLIC),
    ("ann/web", "bob", PUBLIC),
    ("ann/web", "ann/db", PUBLIC),
    ("ann/web", "unknown", PUBLIC),
    ("ann/web", "empty", PUBLIC),
    ("ann/db", "unknown", "token_refused"),
    ("ann/absent", "unknown", "token_refused"),
    ("ann/db", "ann", CLOSED),
    ("ann/db", None, "unknown_service"),
    ("ann/db", "bob", "unknown_service"),
    ("ann/db", "ann/db", "unknown_service"),
    ("ann/db", "ann/web", "unknown_service"),
    ("ann/absent", "ann", "unknown_service"),
    ("ann/absent", None, "unknown_service"),
    ("ann/../web", None, "bad_name"),
    ("", None, "bad_name"),
]


@pytest.mark.parametrize(("service", "holder", "expected"), OPEN)
async def test_may_open(
    authority: Authority, tokens: dict[str, str], service: str, holder: str | None, expected: ServiceRecord | str
) -> None:
    """A public service is open to everyone, another to its owner; a token to host does not connect."""
    assert await _outcome(authority.may_open(service, None if holder is None else tokens[holder])) == expected


async def _outcome(question: object) -> object:
    try:
        grant: Grant = await question  # type: ignore[misc]  # one of two coroutines
    except KdispatchError as error:
        return error.code
    return grant.service
