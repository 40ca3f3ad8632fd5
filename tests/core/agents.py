"""A switch, and agents whose frames the tests write by hand."""

from __future__ import annotations

from kdispatch_protocol.limits import Limits
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.identity import host_id, process_id
from kdispatch_protocol.wire.messages import Hello, Offer, Open, Opened, Reset
from kdispatch_relay.switch.intents import AskAttach, AskOffer
from kdispatch_relay.switch.registry import Terms
from kdispatch_relay.switch.revocations import claims, doubt, revoke
from kdispatch_relay.switch.sessions import SwitchSession
from kdispatch_relay.switch.switch import Switch
from tests.core.intents import questions_of

SERVICE = "ann/web"
NO_WAIT = Limits(open_wait_start=0, open_wait_lost=0)
Said = list[tuple[str, int, int, bytes]]


def revoke_service(switch: Switch, service: str) -> None:
    """Do what the relay does when a service is deleted: check everything again, and allow nothing to stay."""
    doubt(switch, service)
    why = ("unknown_service", "The service was deleted.")
    revoke(switch, dict.fromkeys(claims(switch, service), why), 0.0)


class Relay:
    """A switch whose store knows one service, and the agents of the test."""

    def __init__(self, limits: Limits = NO_WAIT, memory: int = 1 << 30) -> None:
        self.now = 50.0
        self.picks: list[int] = []
        self.terms = Terms(public=True, pins=True)
        self.switch = Switch("00" * 16, self._choose, self.now, limits=limits, memory=memory)

    def _choose(self, below: int) -> int:
        return self.picks.pop(0) if self.picks else 0

    def agent(self, number: int, *, offers: bool = False) -> Peer:
        peer = Peer(self, number)
        peer.say(frame(frames.HELLO, payload=Hello(versions=[1], secret=peer.secret.hex()).encode()))
        if offers:
            peer.offer()
        peer.hear()
        return peer

    def answer(self, *, known: bool = True) -> int:
        """Answer what the switch asks; returns how many questions it were."""
        questions = questions_of(self.switch)
        for question in questions:
            if isinstance(question, AskOffer):
                if known:
                    self.switch.offers.allowed(question, self.terms, self.now)
                else:
                    self.switch.offers.refused(question, "not_permitted", "no", now=self.now)
            elif isinstance(question, AskAttach):
                if known:
                    self.switch.attachments.allowed(question, self.now)
                else:
                    self.switch.attachments.refused(question, "unknown_service", "", self.now)
            elif known:
                self.switch.opens.allowed(question.route, self.terms, self.now)
            else:
                self.switch.opens.refused(question.route, "unknown_service", "", self.now)
        return len(questions)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        deadline = self.switch.next_deadline()
        if deadline is not None and deadline <= self.now:
            self.switch.handle_timeout(self.now)


class Peer:
    """An agent's session, driven by the test."""

    def __init__(self, relay: Relay, number: int) -> None:
        self.relay = relay
        self.secret = bytes([number]) * 32
        self.process = process_id(self.secret)
        self.session: SwitchSession = relay.switch.connect(f"192.0.2.{number}", relay.now)

    def say(self, *message: bytes) -> None:
        self.relay.switch.receive_frames(self.session, frames.decode(b"".join(message)), self.relay.now)

    def hear(self) -> Said:
        message = b"".join(self.session.outbox.collect(1 << 24, self.relay.now))
        return [(frames.TYPE_NAMES[t], s, v, bytes(p)) for t, _, s, v, p in frames.decode(message)] if message else []

    def names(self) -> list[str]:
        return [name for name, *_ in self.hear()]

    def offer(self, number: int = 1, token: str = "t") -> None:
        offer = Offer(service=SERVICE, host=host_id(self.process, SERVICE), digest="00" * 32, token=token)
        self.say(frame(frames.OFFER, number, payload=offer.encode()))
        self.relay.answer()

    def open(self, number: int = 1, **more: str | None) -> None:
        message = Open(service=SERVICE, uuid=f"{number:032x}", limit=1000, **more)  # type: ignore[arg-type]
        self.say(frame(frames.OPEN, number, payload=message.encode()))

    def opened(self, number: int, attempt: int = 1) -> None:
        self.say(frame(frames.OPENED, number, payload=Opened(limit=20_000, attempt=attempt).encode()))

    def reset(self, number: int, code: str = "cancelled") -> None:
        self.say(frame(frames.RESET, number, payload=Reset(code=code).encode()))

    def lose(self) -> None:
        self.relay.switch.disconnect(self.session, self.relay.now)


def code_of(said: Said) -> str:
    [(name, _, _, payload)] = said
    assert name == "RESET"
    return Reset.parse(payload).code


def connected(relay: Relay) -> tuple[Peer, Peer]:
    """A client and a host with an open stream: number 1 at the client, 2 at the host."""
    host, client = relay.agent(1, offers=True), relay.agent(2)
    client.open()
    host.opened(2)
    client.hear()
    host.hear()
    return client, host
