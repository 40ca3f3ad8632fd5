from __future__ import annotations

from kdispatch_protocol.errors import CODES
from tests.tools import generate_docs


def test_pages_are_current() -> None:
    """The committed pages equal the output of `make docs`."""
    stale = [path.name for path, text in generate_docs.pages().items() if path.read_text() != text]
    assert not stale, "run make docs"


def test_errors_page_has_every_code_once() -> None:
    """Each code has exactly one row on the page of errors."""
    page = generate_docs.errors_page()
    assert [page.count(f"| `{name}` |") for name in CODES] == [1] * len(CODES)


def test_every_part_is_used() -> None:
    """Each generated part has a place in a page."""
    text = "".join(generate_docs.pages().values())
    assert [text.count(f"<!-- generated: {name} -->") for name in generate_docs.PARTS] == [1] * len(generate_docs.PARTS)
