"""What bodies, queries and paths are made of: each kind of value once, with its check and its schema."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from kdispatch_protocol.names import NAME_PATTERN, check_name

__all__ = [
    "DIGITS",
    "WHOLE",
    "Answer",
    "Body",
    "Flag",
    "Given",
    "Instant",
    "Name",
    "Number",
    "Title",
    "Whole",
    "instant",
    "instant_if",
    "is_id",
    "seconds_from_now",
]


class Body(BaseModel):
    """Base of what is sent: nothing is guessed and nothing unknown is ignored. Queries are bodies, too."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_by_alias=True, validate_by_name=True)


class Answer(BaseModel):
    """Base of what is answered. What is ``None`` is left out. Answers may gain fields, so their schemas forbid none."""

    model_config = ConfigDict(frozen=True, strict=True, validate_by_alias=True, validate_by_name=True)


#: A handle or a service's name. The pattern is for the schema only: ``check_name`` raises ``bad_name``.
Name = Annotated[str, AfterValidator(check_name), Field(json_schema_extra={"pattern": f"^{NAME_PATTERN}$"})]

# Without controls, line ends, and what turns or hides the text beside it. Halves of surrogates are no JSON, and many
# programs that read the schema refuse a pattern that names them.
_TITLE: Final = "[^\\u0000-\\u001f\\u007f-\\u009f\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u2069\\ufeff]{1,63}"
_TITLED: Final = re.compile(_TITLE)


def _title(value: str) -> str:
    if _TITLED.fullmatch(value) is None:
        raise ValueError("1 to 63 characters, none of which is a control")
    return value


#: What people call a token or an invitation.
Title = Annotated[
    str,
    AfterValidator(_title),
    Field(json_schema_extra={"pattern": f"^{_TITLE}$", "minLength": 1, "maxLength": 63}),
]


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


#: In JSON 60 and 60.0 are the same number. Inside of ``Given`` bounds stand before it: behind it no schema shows them.
WHOLE: Final = BeforeValidator(_whole)
Whole = Annotated[int, WHOLE]

#: Written as RFC 3339 in UTC.
Instant = datetime


def instant(moment: float) -> datetime:
    """Of unix seconds, to a whole second."""
    return datetime.fromtimestamp(round(moment), UTC)


_ID: Final = re.compile(r"[0-9a-f]{16}")


def is_id(text: str) -> bool:
    """Whether this may be a token's or an invitation's id; others are not looked up, as PostgreSQL takes no NUL."""
    return _ID.fullmatch(text) is not None


def instant_if(moment: float | None) -> datetime | None:
    """The same of what may be nothing."""
    return None if moment is None else instant(moment)


def seconds_from_now(seconds: int | None) -> int | None:
    """In unix seconds."""
    return None if seconds is None else int(time.time()) + seconds


def _given(value: object) -> object:
    if value is None:
        raise ValueError("leave it out rather than sending null")
    return value


_T = TypeVar("_T")

#: What may be left out, and then is ``None``; but ``null`` is nothing that can be sent.
Given = Annotated[_T | None, BeforeValidator(_given)]

# --- in a query everything is text ----------------------------------------------------------------

_NUMBER: Final = re.compile(r"[1-9][0-9]{0,18}")
_FLAGS: Final = {"true": True, "false": False}


def _number(text: Any) -> object:
    return int(text) if _NUMBER.fullmatch(text) else text


def _flag(text: Any) -> object:
    return _FLAGS.get(text, text)


#: A number from 1 on, in decimal digits. As to ``Given``, see above.
DIGITS: Final = BeforeValidator(_number)
Number = Annotated[int, DIGITS]
#: ``true`` or ``false``.
Flag = Annotated[bool, BeforeValidator(_flag)]
