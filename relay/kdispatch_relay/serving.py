"""``relay serve``: runs a relay from start to end, and reports what it is doing."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from types import FrameType
from typing import Final

from kdispatch_protocol.process.descriptors import raise_limit
from kdispatch_protocol.process.logs import configure_logs
from kdispatch_protocol.process.unblocked import finish_output, unblock_output
from kdispatch_relay.console import say
from kdispatch_relay.door.certificates import Certificates
from kdispatch_relay.door.listener import Port
from kdispatch_relay.gate.gate import Gate
from kdispatch_relay.log_limits import limited_logs
from kdispatch_relay.server import running_relay
from kdispatch_relay.settings import RelaySettings
from kdispatch_relay.supervisor import tell_supervisor
from kdispatch_relay.switch.views import Left

__all__ = ["serve"]

_log = logging.getLogger("kdispatch.relay")
_LAST_WORDS: Final = 0.2  # seconds to write the log if the relay has to end at once

_AT_THE_PORT: Final = {
    Port.TAKEN: "Another relay gets all new connections.",
    Port.KEPT: "New connections wait for the next relay.",
    Port.CLOSED: "New connections are refused until another relay listens.",
}


async def serve(settings: RelaySettings) -> None:
    """Serve until the first SIGINT or SIGTERM, then let agents move for as long as the settings allow."""
    unblock_output()
    configure_logs(settings.log_format, verbose=settings.verbose)
    raise_limit()
    stop = asyncio.Event()
    _set_on_signals(stop)
    certificates: Certificates | None = None

    def hung_up() -> None:
        if certificates is not None:
            certificates.read_again()
        else:
            _log.info("SIGHUP: the relay has no certificate of its own to read again, and goes on.")

    _on_hangup(hung_up)
    async with limited_logs(), running_relay(settings, Gate, migrate_apart=True) as running:
        told = _Told(settings)
        certificates = running.certificates
        told.listening(running.url)
        tell_supervisor("READY=1")
        await stop.wait()
        tell_supervisor("STOPPING=1")
        told.port = await running.turn_away()
        told.finished(await running.drain(settings.drain_time, told.left))


class _Told:
    """What the relay reports on stderr: bare sentences, for which scripts wait, or records."""

    def __init__(self, settings: RelaySettings) -> None:
        self._records = settings.log_format == "json"
        self._seconds = settings.drain_time
        self._draining = False
        self.port = Port.CLOSED

    def listening(self, url: str) -> None:
        self._say(f"listening on {url}", url=url)

    def left(self, left: Left) -> None:
        """Report agents that have not moved yet."""
        if self._draining:
            self._say(f"draining: {_all(left)} are left.", **_figures(left))
            return
        self._draining = True
        self._say(
            f"draining: {_all(left)} may move to another relay for "
            f"{self._seconds:g} s; a second signal ends it at once. {_AT_THE_PORT[self.port]}",
            **_figures(left),
            seconds=self._seconds,
            port=self.port.value,
        )

    def finished(self, left: Left) -> None:
        """Report the end, if there were agents to move."""
        if not self._draining:
            return
        if left.hosts or left.clients:
            agents = f"{_count(left.hosts, 'host')} and {_count(left.clients, 'client')}"
            how = (
                f"the drain time is over, and {agents} are cut off. Their streams, {left.streams} in all, go on "
                "once they have another session."
            )
        else:
            how = "every agent has left."
        self._say(f"finished: {how}", **_figures(left))

    def _say(self, what: str, **fields: object) -> None:
        if self._records:
            _log.info("kdispatch relay %s", what, extra=fields)
        else:
            say(f"kdispatch relay {what}", err=True)


def _all(left: Left) -> str:
    agents = f"{_count(left.hosts, 'host')}, {_count(left.clients, 'client')}"
    return f"{agents} and {_count(left.streams, 'stream')}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _figures(left: Left) -> dict[str, object]:
    return {"hosts": left.hosts, "clients": left.clients, "streams": left.streams}


def _on_hangup(act: Callable[[], None]) -> None:
    """Call ``act`` at SIGHUP, which would otherwise end the relay together with its terminal."""
    if hasattr(signal, "SIGHUP"):  # not on Windows
        # Through the loop, which from then on wakes up at every signal, also at one that arrives in another thread.
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, act)


def _set_on_signals(stop: asyncio.Event) -> None:
    # signal.signal, because Windows has no add_signal_handler of the loop.
    loop = asyncio.get_running_loop()
    had = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal had
        if had:
            # A second signal ends the process at once. The default handler is not set at the first one: if two signals
            # came at the same moment, Python would lose the second, with a traceback.
            finish_output(_LAST_WORDS)
            signal.signal(number, signal.SIG_DFL)
            if hasattr(signal, "pthread_sigmask"):  # in a script's background job SIGINT is blocked
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
            signal.raise_signal(number)
        had = True
        loop.call_soon_threadsafe(stop.set)

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
