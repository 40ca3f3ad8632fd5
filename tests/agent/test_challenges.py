"""Challenges of proxies in a 407, and the answers to them."""

from __future__ import annotations

import time

import pytest

from kdispatch.network.challenges import Challenge, authorization, challenges, chosen, digest

#: RFC 7616, 3.9.1.
EXAMPLE = (
    'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm={}, '
    'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"'
)
CNONCE = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"


@pytest.mark.parametrize(
    ("algorithm", "response"),
    [
        ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
        ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
    ],
)
def test_digest_of_the_standard(algorithm: str, response: str) -> None:
    """The answer is that of the standard's example, with each algorithm."""
    (challenge,) = challenges([EXAMPLE.format(algorithm)])
    answer = digest(challenge, "GET", "/dir/index.html", "Mufasa", "Circle of Life", cnonce=CNONCE).decode()
    assert f'response="{response}"' in answer
    assert 'opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"' in answer
    assert f"qop=auth, nc=00000001, algorithm={algorithm}" in answer


def test_digest_of_old_proxies() -> None:
    """Without qop and algorithm, the answer is that of RFC 2069."""
    (challenge,) = challenges(['Digest realm="testrealm@host.com", nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093"'])
    answer = digest(challenge, "GET", "/dir/index.html", "Mufasa", "CircleOfLife", cnonce=CNONCE).decode()
    assert 'response="1949323746fe6a43ef61f9606e7febea"' in answer  # RFC 2069, 2.4, as its errata correct it
    assert "qop" not in answer
    assert "cnonce" not in answer


def test_digest_of_a_session() -> None:
    """An algorithm with -sess hashes differently, and is named as the proxy named it."""
    plain, session = (challenges([EXAMPLE.format(name)])[0] for name in ("SHA-256", "SHA-256-sess"))
    answers = [digest(c, "CONNECT", "a:1", "me", "secret", cnonce=CNONCE).decode() for c in (plain, session)]
    assert answers[0].split("response=")[1][:65] != answers[1].split("response=")[1][:65]
    assert "algorithm=SHA-256-sess" in answers[1]


def test_quotes_and_accents() -> None:
    """Names with quotes are escaped, and encoded in the form that the proxy announces."""
    latin, utf = challenges(['Digest realm="r", nonce="n", Digest realm="r", nonce="n", charset=UTF-8'])
    assert b'username="\xe4\\"\\\\",' in authorization(latin, "CONNECT", "a:1", 'ä"\\', "x")
    assert 'username="ä",'.encode() in authorization(utf, "CONNECT", "a:1", "ä", "x")
    assert 'username="☃",'.encode() in authorization(latin, "CONNECT", "a:1", "☃", "x")
    (hashed,) = challenges(['Digest realm="r", nonce="n", userhash=true'])
    assert b'username="me"' not in authorization(hashed, "CONNECT", "a:1", "me", "x")


def test_basic() -> None:
    """Basic is name and password in UTF-8."""
    assert authorization(Challenge("basic"), "CONNECT", "a:1", "me", "sécret") == b"Basic bWU6c8OpY3JldA=="


@pytest.mark.parametrize(
    ("values", "scheme"),
    [
        (['Basic realm="a, Digest b=c"'], "basic"),
        (["Basic"], "basic"),
        (['Basic realm="x"', 'Digest realm="x", nonce="y"'], "digest"),
        (['NTLM, Negotiate, basic realm="x"'], "basic"),
        (["NTLM TlRMTVNTUAACAAAA==, Basic realm=x"], "basic"),
        (['Digest realm="x", nonce="y", algorithm=MD4, Basic realm="x"'], "basic"),
        (['Digest realm="x", nonce="y", qop="auth-int"'], None),
        (['Digest realm="x"'], None),
        (["Negotiate", "NTLM"], None),
        (['realm="x"'], None),
        (['"""', "=,=,", "\\"], None),
        ([], None),
    ],
)
def test_choice(values: list[str], scheme: str | None) -> None:
    """The strongest known challenge is chosen, in any form in which several are written."""
    challenge = chosen(challenges(values))
    assert (challenge and challenge.scheme) == scheme


def test_the_better_hash() -> None:
    """SHA-256 is preferred to MD5, in any order."""
    offered = challenges([EXAMPLE.format("MD5"), EXAMPLE.format("SHA-256")])
    best = chosen(offered)
    assert best is not None
    assert best.algorithm == "SHA-256"


def test_stale() -> None:
    """A stale nonce is distinguished from a wrong password."""
    fresh, stale = challenges(['Digest realm="r", nonce="n", stale=false, Digest realm="r", nonce="n", stale=TRUE'])
    assert (fresh.stale, stale.stale) == (False, True)


@pytest.mark.parametrize("character", [" ", ",", "a", '"', "\\"])
def test_a_long_challenge_is_read_in_no_time(character: str) -> None:
    """A proxy cannot keep an agent busy with the content of a header."""
    began = time.process_time()
    challenges([f'"{character * 32_000}"', f"a{character * 32_000}="])
    assert time.process_time() - began < 1
