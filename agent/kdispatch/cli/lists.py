"""Prints a relay's list page by page, so that memory use does not grow with the list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from kdispatch.cli.durations import moment
from kdispatch.cli.output import Output
from kdispatch_protocol.console import JsonList

if TYPE_CHECKING:
    from kdispatch.rest.listing import Listing

__all__ = ["print_list"]

_T = TypeVar("_T")


async def print_list(
    output: Output,
    listing: Listing[_T],
    *,
    key: str,
    data: Callable[[_T], Mapping[str, Any]],
    quiet: Callable[[_T], str],
    plain: Callable[[tuple[_T, ...]], list[str]],
    **fields: str,
) -> bool:
    """Print like :meth:`Output.result`, each page as it arrives; returns whether there was any entry.

    With ``--json`` this is one object with ``fields`` and, under ``key``, the list. After a failed page the object
    stays incomplete, and the error is reported as usual.
    """
    objects = JsonList(output.write, key, fields, moment)
    printed = False
    async for page in listing.pages():
        if output.json:
            objects.add(map(data, page.items))
        else:
            output.lines(map(quiet, page.items) if output.quiet else plain(page.items))
        printed = printed or bool(page.items)
    if output.json:
        objects.end()
    return printed
