from __future__ import annotations

import base64
import hashlib
import re
import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.names import NAME_PATTERN, check_name, split_service
from kdispatch_protocol.tokens import KINDS, SECRET_BYTES, format_token, token_digest, token_kind

secrets = st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES)
tokens = st.builds(format_token, st.sampled_from(KINDS), secrets)
LETTERS = string.ascii_lowercase + string.digits


def is_name(text: str) -> bool:
    """The rule in words: 1 to 63 of a-z, 0-9 and '-', not first or last a '-'."""
    return 1 <= len(text) <= 63 and set(text) <= set(LETTERS + "-") and text[0] != "-" and text[-1] != "-"


@given(st.text(LETTERS + "-", max_size=70) | st.text(st.characters(), max_size=10))
@example("a" * 63)
@example("a" * 64)
@example("a\n")
@example("٣")
@example("ﬀ")
@settings(max_examples=300)
def test_names(text: str) -> None:
    """A name is 1 to 63 of a-z, 0-9 and '-', not first or last a '-'; anything else is bad_name."""
    if is_name(text):
        assert check_name(text) == text
        return
    with pytest.raises(KdispatchError, match="not a valid handle") as error:
        check_name(text, "handle")
    assert error.value.code == "bad_name"
    assert error.value.text.isprintable()
    assert len(error.value.text) < 1000


@given(st.text(LETTERS + "-/", max_size=140))
@example("a/b")
@example("a/b/c")
@example("/")
@settings(max_examples=300)
def test_services(text: str) -> None:
    """A service is two names with one slash between; anything else is bad_name."""
    parts = text.split("/")
    if len(parts) == 2 and all(map(is_name, parts)):
        assert split_service(text) == tuple(parts)
        return
    with pytest.raises(KdispatchError) as error:
        split_service(text)
    assert error.value.code == "bad_name"


def test_the_pattern_is_for_others_to_embed() -> None:
    """The pattern expresses the same rule, for the checks of the database and of the page."""
    assert re.fullmatch(NAME_PATTERN, "a-b")
    assert not re.fullmatch(NAME_PATTERN, "a-")


@given(st.sampled_from(KINDS), secrets)
@settings(max_examples=100)
def test_tokens_come_back(kind: str, secret: bytes) -> None:
    """A token names its kind, carries its 32 bytes and is plain text of one length."""
    token = format_token(kind, secret)
    assert token_kind(token) == kind
    assert len(token) == 55
    assert base64.urlsafe_b64decode(token[4:47] + "=") == secret
    assert token.isascii()
    assert token.isprintable()


@given(tokens, st.integers(0, 54), st.sampled_from(string.printable + "é\0"))
@settings(max_examples=400)
def test_one_character_changed(token: str, place: int, character: str) -> None:
    """A token with any one character changed is not well-formed."""
    changed = token[:place] + character + token[place + 1 :]
    assert token_kind(changed) == (token[:3] if changed == token else None)


def test_every_change_of_one_token() -> None:
    """Any change of one character of a token is detected, at any place, with any character of the alphabet."""
    token = format_token("adm", bytes(range(32)))
    for place in range(len(token)):
        for character in set(string.printable) - {token[place]}:
            assert token_kind(token[:place] + character + token[place + 1 :]) is None


@given(tokens, st.integers(0, 53))
@settings(max_examples=100)
def test_two_neighbours_swapped_and_cuts(token: str, place: int) -> None:
    """A token with two neighbours swapped, cut or extended is not well-formed."""
    swapped = token[:place] + token[place + 1] + token[place] + token[place + 2 :]
    assert token_kind(swapped) in ({token[:3]} if swapped == token else {None})
    for wrong in (token[:place], token[place + 1 :], token + "0", token + "\n", " " + token):
        assert token_kind(wrong) is None


@given(st.text(st.characters(), max_size=80))
@settings(max_examples=100)
def test_any_text_has_a_kind_or_none(text: str) -> None:
    """Any text given as a token has a kind or none, raises nothing, and has a digest."""
    assert token_kind(text) is None
    assert len(token_digest(text)) == 32


@pytest.mark.parametrize(
    ("kind", "secret"), [("xyz", bytes(32)), ("ADM", bytes(32)), ("", bytes(32)), ("adm", bytes(31)), ("adm", b"")]
)
def test_tokens_that_are_none(kind: str, secret: bytes) -> None:
    """A token needs a known kind and 32 bytes."""
    with pytest.raises(ValueError, match="32 bytes"):
        format_token(kind, secret)


def test_digest() -> None:
    """A token's digest is the SHA-256 of its text."""
    token = format_token("svc", bytes(32))
    assert token_digest(token) == hashlib.sha256(token.encode()).digest()


@pytest.mark.parametrize("kind", ["adm", "svc", "cli", "hst", "inv"])
def test_an_error_holds_no_token(kind: str) -> None:
    """An error about a name does not repeat a token that was given as the name, whole or cut."""
    token = format_token(kind, bytes(range(32)))
    for typed in (token, token[:-9], f"https://{token}@relay"):
        error = KdispatchError("bad_name", f"{typed!r} is no name.")
        assert token[10:22] not in error.text + str(error)
        assert f"{kind}_[redacted]" in error.text
