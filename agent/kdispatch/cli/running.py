"""The common start of ``agent host`` and ``agent connect``, in the foreground and in the background."""

from __future__ import annotations

import dataclasses
import enum
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kdispatch import addresses
from kdispatch.cli.output import Output
from kdispatch.cli.reach import Reach
from kdispatch.credentials import Credentials
from kdispatch.machine import background, records
from kdispatch.relay_url import RelayUrl
from kdispatch.running_log import RunningLog
from kdispatch.settings import Settings, load_settings
from kdispatch_protocol.errors import KdispatchError

if TYPE_CHECKING:
    from kdispatch.network.dialer import Dialer
    from kdispatch_protocol.limits import Limits

__all__ = ["Resets", "RunSetup", "Start", "agent_log", "detach", "show"]

#: Codes of streams that are not reported: one of the two programs ended the connection.
_SILENT: Final = frozenset({"cancelled"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Reporting(Output):
    """The output of an agent in the background: the first result or error goes to the waiting command."""

    report: background.Report = dataclasses.field(default_factory=background.Report)

    def result(self, data: Mapping[str, Any], *, quiet: Sequence[str], plain: Sequence[str]) -> None:  # noqa: ARG002
        if not self.report.send("result", data):
            # Its id was never shown: an agent that nobody knows of must not stay.
            raise KdispatchError("unknown_agent", "The command that started this agent is gone, so its id is unknown.")

    def error(self, text: str, *, code: str | None, hop: str, hint: str) -> None:
        self.report.send("error", {"code": code, "text": text, "hop": hop, "hint": hint})
        Output.error(self, text, code=code, hop=hop, hint=hint)  # super() doesn't work in a class with slots


class RunSetup(NamedTuple):
    """The relay, the service's full name, the token to use, the settings and the limits."""

    settings: Settings
    relay: RelayUrl
    service: str
    token: str | None
    limits: Limits

    def dialer(self) -> Dialer:
        """A dialer for the relay."""
        from kdispatch.network.dialer import Dialer  # noqa: PLC0415 - heavy

        return Dialer.of(self.settings)


class _Repeat(enum.Enum):
    """How a background agent's command line gets one of the options of its start."""

    AS_GIVEN = "as given"
    AS_IN_FORCE = "as in force: the settings' value, wherever it came from"
    NOT = "not: it reaches the agent another way, or concerns the starting command alone"


def _option(repeat: _Repeat, *, kind: str = "", default: Any = dataclasses.MISSING) -> Any:
    """A field of :class:`Start`; ``kind`` is the only command that has the option, or empty."""
    return dataclasses.field(default=default, metadata={"repeat": repeat, "kind": kind})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The options of an agent's start; ``background`` is the agent's id if it runs in the background.

    Each field says how a background agent gets it, so that no option is lost.
    """

    kind: str = _option(_Repeat.NOT)
    service: str = _option(_Repeat.NOT)
    address: str = _option(_Repeat.AS_GIVEN)
    port: int = _option(_Repeat.AS_GIVEN)
    wait: float = _option(_Repeat.AS_GIVEN)
    drain_time: float = _option(_Repeat.AS_GIVEN)
    grace: float | None = _option(_Repeat.AS_IN_FORCE)
    rotate: float | None = _option(_Repeat.AS_IN_FORCE)
    reach: Reach = _option(_Repeat.NOT)  # noqa: RUF009 - a mapping type, taken for a call that is shared
    token: str | None = _option(_Repeat.NOT)
    token_file: str | None = _option(_Repeat.NOT)
    quiet: bool = _option(_Repeat.NOT)
    json: bool = _option(_Repeat.NOT)
    log_format: str | None = _option(_Repeat.AS_IN_FORCE)
    verbose: bool = _option(_Repeat.AS_GIVEN)
    background: str | None = _option(_Repeat.NOT)
    exit_when_closed: bool = _option(_Repeat.AS_GIVEN, default=False)
    open_wait: float | None = _option(_Repeat.AS_IN_FORCE, kind="connect", default=None)
    host: str | None = _option(_Repeat.AS_GIVEN, default=None)

    def repeated(self, settings: Settings) -> list[str]:
        """The options to repeat for an agent in the background; relay and token are passed separately."""
        arguments: list[str] = []
        for field in dataclasses.fields(self):
            repeat, kind = field.metadata["repeat"], field.metadata["kind"]
            if repeat is _Repeat.NOT or kind not in {"", self.kind}:
                continue
            value = getattr(self if repeat is _Repeat.AS_GIVEN else settings, field.name)
            flag = "--" + field.name.replace("_", "-")
            if value is True:
                arguments.append(flag)
            elif value is not None and value is not False:
                arguments += [flag, str(value)]
        return arguments

    @property
    def output(self) -> Output:
        """The output of this command."""
        if self.background is not None:
            return _Reporting(json=self.log_format == "json")
        return Output(quiet=self.quiet, json=self.json)

    def load_settings(self) -> Settings:
        """Read the current settings. Call this once per command."""
        log_format = self.log_format or ("json" if self.json else None)
        return load_settings(
            **self.reach,
            log_format=log_format,
            grace=self.grace,
            rotate=self.rotate,
            open_wait=self.open_wait,
        )

    def access(self, output: Output, settings: Settings) -> RunSetup:
        """Resolve relay, name and token; raises the error of any of them."""
        # Here and below: modules for a running agent are imported only when one runs.
        from kdispatch_protocol.limits import DEFAULT_LIMITS  # noqa: PLC0415

        relay = settings.relay_url
        limits = dataclasses.replace(
            DEFAULT_LIMITS, grace=settings.grace, open_wait=settings.open_wait, rotate=settings.rotate
        )
        if self.background is not None:
            return RunSetup(settings, relay, self.service, background.read_token(), limits)
        credentials = Credentials()
        name = credentials.full_name(relay, self.service)
        find = credentials.token_for_host if self.kind == "host" else credentials.token_for_client
        token = find(relay, name, token=self.token, token_file=self.token_file, warn=output.warn)
        return RunSetup(settings, relay, name, token, limits)

    def log(self, settings: Settings) -> RunningLog:
        """The log of the running agent."""
        file = background.BoundedLog(records.log_file(self.background)) if self.background else None
        return agent_log(settings.log_format, verbose=self.verbose, quiet=self.quiet, file=file)


def agent_log(
    log_format: str, *, verbose: bool = False, quiet: bool = False, file: background.BoundedLog | None = None
) -> RunningLog:
    """Set up logging and return an agent's log; with ``quiet`` only warnings are logged.

    From now on no output of this process blocks, and it may open as many files as the system allows.
    """
    # Only if an agent runs: the import takes as long as a short command.
    import structlog  # noqa: PLC0415

    from kdispatch_protocol.process.descriptors import raise_limit  # noqa: PLC0415
    from kdispatch_protocol.process.logs import configure_logs  # noqa: PLC0415
    from kdispatch_protocol.process.unblocked import unblock_output  # noqa: PLC0415

    raise_limit()
    unblock_output(file.write if file is not None else None)
    configure_logs(log_format, verbose=verbose)
    if quiet:
        logging.getLogger("kdispatch").setLevel(logging.WARNING)
    log: RunningLog = structlog.get_logger("kdispatch.agent").bind()  # once; the proxy would bind at each call
    return log


def detach(start: Start) -> None:
    """Start the same agent in the background, and print its result, or its failure with the same exit status."""
    output = start.output
    settings = start.load_settings()
    _, _, service, token, _ = start.access(output, settings)
    arguments = [start.kind, service, *start.repeated(settings)]
    arguments += ["--relay", ",".join(map(str, settings.relay_urls))]
    arguments += ["--insecure-plaintext"] if settings.insecure_plaintext else []
    try:
        # A proxy's password is not passed as an argument, because all users can see those.
        result = background.start(arguments, token, settings.network)
    except background.BackgroundFailed as failed:
        error = failed.error
        output.error(error["text"], code=error["code"], hop=error["hop"], hint=error["hint"])
        raise SystemExit(failed.status) from None
    show(output, result)


def show(output: Output, result: Mapping[str, Any]) -> None:
    """Print where an agent is reachable, or what it offers."""
    places = result.get("addresses") or [result["address"]]
    place = " and ".join(addresses.place(address, result["port"]) for address in places)
    if result["kind"] == "host":
        quiet, plain = result["host"], f"{place} is offered as {result['service']} (host {result['host']})"
    else:
        quiet, plain = str(result["port"]), f"{result['service']} is reached by {place}"
    lines = [plain]
    if result["log"] is not None:
        lines += [f"agent {result['id']}, log {result['log']}", f"to end it: kdispatch agent stop {result['id']}"]
    output.result(result, quiet=[quiet], plain=lines)


class Resets:
    """Logs connections that were reset: one line for all with the same reason at the same time."""

    def __init__(self, service: str, log: RunningLog) -> None:
        self._service = service
        self._log = log
        self._counts: dict[tuple[str, str], int] = {}

    def __call__(self, code: str, text: str) -> None:
        """Count one reset."""
        if code in _SILENT:
            return
        import asyncio  # noqa: PLC0415 - help and completion do not need it

        if not self._counts:
            asyncio.get_running_loop().call_soon(self._tell)
        self._counts[code, text] = self._counts.get((code, text), 0) + 1

    def _tell(self) -> None:
        for (code, text), count in self._counts.items():
            which = (
                f"A connection to {self._service} was" if count == 1 else f"{count} connections to {self._service} were"
            )
            self._log.warning(f"{which} reset: {text}", code=code)
        self._counts.clear()
