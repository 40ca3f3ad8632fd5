"""What bodies, queries and paths are made of: each kind of value once, with its check and its schema."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from kdispatch_protocol.names import NAME_PATTERN, check_name

__all__ = ["Answer", "Body", "Flag", "Given", "Instant", "Name", "Number"]


class Body(BaseModel):
    """Base of what is sent: nothing is guessed and nothing unknown is ignored. Queries are bodies, too."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Answer(BaseModel):
    """Base of what is answered. What is ``None`` is left out. Answers may gain fields, so their schemas forbid none."""

    model_config = ConfigDict(frozen=True, strict=True)


#: A handle or a service's name. The pattern is for the schema only: ``check_name`` raises ``bad_name``.
Name = Annotated[str, AfterValidator(check_name), Field(json_schema_extra={"pattern": f"^{NAME_PATTERN}$"})]

#: Written as RFC 3339 in UTC.
Instant = datetime


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


#: A number from 1 on, in decimal digits.
Number = Annotated[int, BeforeValidator(_number)]
#: ``true`` or ``false``.
Flag = Annotated[bool, BeforeValidator(_flag)]
