"""``/healthz``: the process lives. ``/readyz``: the database would keep a change."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from kdispatch_relay.api.exchange import Call
from kdispatch_relay.api.fields import Answer
from kdispatch_relay.api.keys import READINESS
from kdispatch_relay.api.route import ApiRoute, Example, Section

__all__ = ["ROUTES"]


class Health(Answer):
    """The healthy answer."""

    status: str = Field(description="`ok` or `ready`")


async def healthz(_call: Call) -> Health:
    """Answer: that alone shows that the process lives."""
    return Health(status="ok")


async def readyz(call: Call) -> Health:
    """Answer if the database is ready; otherwise raise ``storage_unavailable``."""
    await call.request.app[READINESS].check()
    return Health(status="ready")


ROUTES: Final = (
    ApiRoute(
        method="GET",
        path="/healthz",
        name="healthz",
        handler=healthz,
        section=Section.HEALTH,
        who="anybody",
        does="the process lives",
        text="Answers as long as the process does.",
        answer=Health,
        general=("internal_error", "busy"),
        any_query=True,
        example=Example(answer={"status": "ok"}),
    ),
    ApiRoute(
        method="GET",
        path="/readyz",
        name="readyz",
        handler=readyz,
        section=Section.HEALTH,
        who="anybody",
        does="a change would be kept",
        text="""\
Answers 200 if a change would be kept: a commit has reached the database within the last 2 seconds, no other program
holds its write lock, its file is still the one at its path, other programs may open that file, and its disk has room.
The relay commits for this at most once in 2 seconds, however many ask, and its answer may be 1 second old. It answers
within 2 seconds. `detail` says what is wrong.
Open streams, and new ones to public services, may still work while this fails.""",
        answer=Health,
        errors={"storage_unavailable": ""},
        general=("internal_error", "busy"),
        any_query=True,
        example=Example(answer={"status": "ready"}),
    ),
)
