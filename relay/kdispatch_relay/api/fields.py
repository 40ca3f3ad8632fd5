"""The types of values in bodies, queries and paths: each defined once, with its check and its schema."""

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
    """Base of request bodies and queries: no value is converted, and unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_by_alias=True, validate_by_name=True)


class Answer(BaseModel):
    """Base of answers. Fields that are ``None`` are left out. Schemas forbid no fields: answers may gain some."""

    model_config = ConfigDict(frozen=True, strict=True, validate_by_alias=True, validate_by_name=True)


#: A handle or a service's name. The pattern is for the schema only: ``check_name`` raises ``bad_name``.
Name = Annotated[str, AfterValidator(check_name), Field(json_schema_extra={"pattern": f"^{NAME_PATTERN}$"})]

# No control characters, no line ends, and no characters that reorder or hide the text beside them. Lone surrogates are
# not JSON either, but many programs that read the schema refuse a pattern with them.
_TITLE: Final = "[^\\u0000-\\u001f\\u007f-\\u009f\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u2069\\ufeff]{1,63}"
_TITLED: Final = re.compile(_TITLE)


def _title(value: str) -> str:
    if _TITLED.fullmatch(value) is None:
        raise ValueError("1 to 63 characters, without control characters")
    return value


#: The name that users give a token or an invitation.
Title = Annotated[
    str,
    AfterValidator(_title),
    Field(json_schema_extra={"pattern": f"^{_TITLE}$", "minLength": 1, "maxLength": 63}),
]


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


#: In JSON 60 and 60.0 are the same number. Inside ``Given``, put bounds before it: after it they are missing in the
#: schema.
WHOLE: Final = BeforeValidator(_whole)
Whole = Annotated[int, WHOLE]

#: A time, in JSON as RFC 3339 in UTC.
Instant = datetime


def instant(moment: float) -> datetime:
    """A time in unix seconds, rounded to a whole second."""
    return datetime.fromtimestamp(round(moment), UTC)


_ID: Final = re.compile(r"[0-9a-f]{16}")


def is_id(text: str) -> bool:
    """Whether this may be the id of a token or an invitation. Others are not looked up: PostgreSQL refuses NUL."""
    return _ID.fullmatch(text) is not None


def instant_if(moment: float | None) -> datetime | None:
    """The same, or ``None``."""
    return None if moment is None else instant(moment)


def seconds_from_now(seconds: int | None) -> int | None:
    """That time in unix seconds, or ``None``."""
    return None if seconds is None else int(time.time()) + seconds


def _given(value: object) -> object:
    if value is None:
        raise ValueError("leave it out instead of sending null")
    return value


_T = TypeVar("_T")

#: An optional field: absent means ``None``, and a sent ``null`` is refused.
Given = Annotated[_T | None, BeforeValidator(_given)]

# --- values in a query, where everything is text --------------------------------------------------

_NUMBER: Final = re.compile(r"[1-9][0-9]{0,18}")
_FLAGS: Final = {"true": True, "false": False}


def _number(text: Any) -> object:
    return int(text) if _NUMBER.fullmatch(text) else text


def _flag(text: Any) -> object:
    return _FLAGS.get(text, text)


#: A number from 1 up, in decimal digits. For ``Given``, see ``WHOLE``.
DIGITS: Final = BeforeValidator(_number)
Number = Annotated[int, DIGITS]
#: ``true`` or ``false``.
Flag = Annotated[bool, BeforeValidator(_flag)]
