"""Logs of agents and relays: structlog on top of the standard library's logging, as text or JSON, on stderr.

Every record, also of aiohttp or asyncio, passes :func:`redact`, so that no token
is ever written. Import this module only to log: structlog takes as long to import
as a short command takes to run.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final, TextIO

import structlog

from kdispatch_protocol.console import escaped
from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.process.unblocked import UnblockedStream
from kdispatch_protocol.tokens import redacted

__all__ = ["FORMATS", "configure_logs", "redact"]

FORMATS: Final = ("text", "json")

#: Fields with their own place in the text format.
_PLACED: Final = frozenset({"timestamp", "level", "event", "code", "logger", "exception"})


def configure_logs(
    log_format: str = "text", *, verbose: bool = False, level: int | None = None, stream: TextIO | None = None
) -> None:
    """Send all log records to ``stream`` (default stderr): from INFO up, with ``verbose`` from DEBUG up for kdispatch.

    ``level`` is the lowest level for other loggers (aiohttp, asyncio, alembic), WARNING by default.
    Raises ``bad_request`` for an unknown format.
    """
    if log_format not in FORMATS:
        raise KdispatchError("bad_request", f"The log format is {' or '.join(FORMATS)}, not {log_format[:20]!r}.")
    stream = stream or sys.stderr
    before: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
    ]
    render: structlog.typing.Processor = structlog.processors.JSONRenderer() if log_format == "json" else _text
    handler = _Unblocked(stream) if isinstance(stream, UnblockedStream) else logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                redact,
                render,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING if level is None else level)
    logging.getLogger("kdispatch").setLevel(logging.DEBUG if verbose else logging.INFO)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *before,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


class _Unblocked(logging.Handler):
    """Passes records to a place that reports the number of dropped lines as a log record."""

    def __init__(self, stream: UnblockedStream) -> None:
        super().__init__()
        self._stream = stream
        stream.place.told = self._left_out

    def emit(self, record: logging.LogRecord) -> None:
        if self._stream.place.full:  # drop before formatting, so that a blocked log costs the loop nothing
            self._stream.place.drop(1)
            return
        try:
            self._stream.write(f"{self.format(record)}\n")
        except Exception:  # noqa: BLE001 - logging's own way to report an unusable record
            self.handleError(record)

    def _left_out(self, lines: int) -> str:
        text = f"{lines} lines were left out here: what the log goes to did not take them."
        record = logging.LogRecord("kdispatch.log", logging.WARNING, __file__, 0, text, None, None)
        record.lines = lines
        return f"{self.format(record)}\n"


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: replaces everything that looks like a token by its kind, at any depth of the record."""
    for key, value in event.items():
        event[key] = _redacted(value)
    return event


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {_redacted(key): _redacted(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(inner) for inner in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return redacted(str(value))


def _text(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    """One line: time, level, event, code, then the fields. A traceback follows on its own lines."""
    line = f"{event.get('timestamp', '')} {event.get('level', 'info'):<7} {event.get('event', '')}"
    if code := event.get("code"):
        line += f" [{code}]"
    for key, value in event.items():
        if key not in _PLACED and value is not None:
            line += f" {key}={_quoted(value)}"
    line = escaped(line, block=True).replace("\n", "\\n")
    if exception := event.get("exception"):
        line += "\n" + escaped(str(exception), block=True)
    return line


def _quoted(value: object) -> str:
    text = value if isinstance(value, str) else str(value)
    return f'"{text}"' if not text or any(c.isspace() for c in text) else text
