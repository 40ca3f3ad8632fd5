"""What must hold once the faults are over, whatever they were."""

from __future__ import annotations

from kdispatch_protocol.endpoint.states import END_STATES
from kdispatch_protocol.session import outbox
from kdispatch_relay.switch import agents, sessions
from kdispatch_relay.switch.agents import AgentSession
from kdispatch_relay.switch.sessions import SwitchSession
from kdispatch_relay.switch.switch import Switch
from tests.core.world import PARTING, SERVICE, Agent, End, World

__all__ = ["check", "check_dropped", "check_held", "held", "queued", "quiesce"]

#: What may end a stream that both ends knew, beside a program: an end that was killed, or a wait that was too long.
_EXCUSES = frozenset({"resume_expired", "peer_restarted", "own", "cancelled"})


def check_dropped(world: World) -> None:
    """After the end of a program, its peer is credited for at most the bound. This holds after each step."""
    for _, end in world.made:
        assert end.stream.inbound.consumed <= end.most_credited, "what is dropped is credited without a bound"


def check_held(world: World) -> None:
    """The budget equals a full count and stays within its total. This holds after each step."""
    for relay in world.relays:
        connected = {
            connection.session
            for agent in world.agents
            for connection in agent.connections
            if connection.relay is relay and connection.relay_side
        }
        for session in relay.sessions | connected:
            assert session.held == held(session), f"{session} holds {held(session)}, and is counted as {session.held}"
        _check_budget(relay, relay.sessions | connected)


def _check_budget(relay: Switch, connected: set[AgentSession]) -> None:
    budget = relay.budget
    assert budget.held == sum(map(held, connected)), "what sessions hold is not what the budget says"
    assert budget.queued == sum(map(queued, connected)), "what waits is not what the budget says"
    assert budget.queued + budget.held <= budget.total


def held(session: SwitchSession) -> int:
    """A full count of what a session makes the relay keep, without the data that waits for it."""
    legs = len(session.legs) * sessions._LEG
    early = sum(len(leg.route.early) for leg in session.legs.values() if leg.route.client is leg)
    control = sum(len(frame) + outbox._CONTROL for frame in session.outbox.control)
    of_agent = _held_of_agent(session) if isinstance(session, AgentSession) else 0
    return legs + early + of_agent + control + session.partial + session._unsent


def _held_of_agent(session: AgentSession) -> int:
    halves = len(session.halves) * agents._HALF
    offers = sum(map(agents._weigh_offer, session.offers.values()))
    return halves + offers + session.offers_asked * agents._ASKED_OFFER


def queued(session: SwitchSession) -> int:
    """A full count of the data that waits for a session, with the cost of its frames."""
    waiting = [item for leg in session.legs.values() for item in leg._queue or ()]
    return sum(len(item[3]) + sessions._FRAME_COST for item in waiting)


def quiesce(world: World) -> None:
    """Stop all faults: every agent is connected, reads, and writes the end, and time runs until nothing moves."""
    for agent in world.agents:
        for connection in [*agent.older, *([agent.connection] if agent.connection else [])]:
            if connection.up.eats or not connection.relay_side:
                world.cut(agent, connection)  # its silence was noticed
        for ghost in list(agent.ghosts):
            world.relay_notices(agent, ghost)
        world.connect(agent)
    began = world.now
    for _ in range(8000):
        moved = _settle_once(world)
        if not moved and not _waiting(world):
            return
        if not moved:
            assert world.now - began <= world.limits.grace + 45, f"too long: {_waiting(world)}"
            _wait(world)
    raise AssertionError(f"a stall: {_waiting(world)}")


def _wait(world: World) -> None:
    """Go to the next deadline of any party."""
    deadlines = [
        *(relay.next_deadline() for relay in world.relays),
        *(agent.endpoint.next_deadline() for agent in world.agents),
    ]
    for agent in world.agents:
        deadlines += [one.left_at + world.limits.leave + 0.001 for one in agent.older if one.left_at is not None]
    due = min((when for when in deadlines if when is not None), default=world.now)
    world.pass_time(max(due - world.now, 0.001))


def _settle_once(world: World) -> bool:
    moved = bool(world.questions)
    world.answer_question()
    for agent in world.agents:
        while agent.dialing:
            moved = True
            world.answer_dial(agent, accept=True)
        for end in list(agent.ends.values()):
            moved = moved or end.unread > 0
            world.read(agent, end, end.unread)
            world.write_eof(agent, end)
        moved = world.move_on(agent) or moved
        world.flush(agent)
        for up in (True, False):
            if any(connection.up.bytes if up else connection.down.bytes for connection in agent.connections):
                moved = True
                world.deliver(agent, 1_000_000, up=up)
    return moved


def _waiting(world: World) -> list[str]:
    """Streams of living agents that have not ended."""
    return [f"{name} {end.stream}" for name, end in world.made if not end.killed and end.stream.state not in END_STATES]


def check(world: World, *, all_finish: bool = False) -> None:
    """Check what must hold after :func:`quiesce`. ``all_finish``: nothing happened that may end an opened stream."""
    hosts: dict[str, list[End]] = {}  # a host that accepted in vain has an end as well, which was reset
    for _, end in world.made:
        assert end.over, "neither finished nor reset"
        if not end.stream.is_client:
            hosts.setdefault(end.stream.uuid, []).append(end)
    for _, client in world.made:
        if client.stream.is_client:
            _check_last_words(client, hosts.get(client.stream.uuid, []))
            _check_stream(world, client, hosts.get(client.stream.uuid, []), all_finish=all_finish)
    for agent in world.agents:
        _check_agent(agent)
    assert world.switch.budget.queued == 0
    assert len(world.switch.attachments) == 0
    assert all(host.streams == 0 for host in world.switch.registry.hosts_of(SERVICE))


def _check_stream(world: World, client: End, hosts: list[End], *, all_finish: bool) -> None:
    assert len(world.delivered_to.get(client.stream.uuid, ())) <= 1, "a request reached two services"
    assert sum(host.read > 0 for host in hosts) <= 1, "a request was delivered twice"
    whole = [h for h in hosts if (h.read, client.read) == (client.written, h.written) and h.eof_read]
    if client.finished:
        assert client.eof_read
        assert any(host.finished or host.killed or host.reset in _EXCUSES for host in whole), "bytes are missing"
    assert sum(host.finished for host in hosts) <= 1
    for host in hosts:
        if host.finished:
            assert host in whole and client.eof_read, "bytes are missing"
            assert client.finished or client.killed or client.reset in _EXCUSES, f"a wrong reset: {client.reset}"
        if host.reset == "unknown_stream":
            assert host.read == 0, "a stream that was used is not known any more"
    if client.opened:
        assert client.reset is None or client.reset in _EXCUSES, f"a wrong reset: {client.reset}"
        assert client.finished or client.killed or not all_finish, f"an open stream was reset: {client.reset}"


def _check_last_words(client: End, hosts: list[End]) -> None:
    """All that a program wrote before it ended arrives before the reset."""

    def has_all(one: End, other: End) -> bool:
        return (one.read, one.eof_read) == (other.written, other.eof_written)

    if client.last_word == PARTING and not client.parting:  # of one of the hosts: others took the stream in vain
        assert any(host.parting and has_all(client, host) for host in hosts), "a reset came before last words"
    for host in hosts:
        if host.last_word == PARTING and not host.parting:
            assert has_all(host, client), "a reset came before last words"
    if client.parting and client.last_word == PARTING and client.written:
        assert any(host.parting or host.read == client.written for host in hosts), "last words are missing"


def _check_agent(agent: Agent) -> None:
    table = agent.endpoint.table
    assert not table.by_uuid and all(session.idle for session in table.sessions), "a stream was not forgotten"
    assert table.replay_held == 0 and table.budget.promised == 0, "not everything was given back"
    assert agent.connection is not None and not agent.ghosts
    session = agent.connection.session
    assert not session.legs and not session.halves and session.queued == 0
    assert session.unanswered == 0 and session.streams_opened == 0
