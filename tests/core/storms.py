"""Random events in a world: programs at work, wires that deliver a little, and the faults of a storm."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.core import verdict
from tests.core.world import Agent, End, World

__all__ = ["CALM", "LAST_WORDS", "LOSSES", "PLANNED", "STORM", "TRUSTY", "Action", "Storm", "play"]

#: A weight, and what then happens.
Action = tuple[float, Callable[[], None]]


@dataclass(frozen=True)
class Storm:
    """Which faults may happen."""

    resets: bool = True  # programs give up
    losses: bool = True  # connections are lost, at one side or at both
    moves: bool = True  # agents move to other connections, and a new relay replaces a running one
    relays: bool = True  # relays are killed
    agents: bool = True  # agents are killed
    partings: bool = False  # programs end, and what they wrote must arrive first
    jumps: bool = True  # time jumps by more than deadlines


CALM = Storm(resets=False, losses=False, moves=False, relays=False, agents=False)
#: Only what an operator does: nobody may notice.
PLANNED = Storm(resets=False, losses=False, relays=False, agents=False, jumps=False)
#: Everything that a stream must survive, and nothing else: each that was opened must finish.
LOSSES = Storm(resets=False, agents=False, jumps=False)
#: The same with programs that give up.
TRUSTY = Storm(agents=False, jumps=False)
#: Programs that end in the middle of everything that a stream must survive.
LAST_WORDS = Storm(resets=False, partings=True, agents=False, jumps=False)
STORM = Storm()


def play(
    rng: random.Random,
    world: World,
    steps: int,
    storm: Storm,
    *,
    also: Callable[[Agent], list[Action]] = lambda _: [],
) -> None:
    """Let ``steps`` random things happen, including those of ``also``; check each relay's tables after each."""
    if rng.random() < 0.9:
        world.warm_up()
    for _ in range(rng.choice((0, 0, 1, 3))):  # often some streams are open before anything goes wrong
        world.open()
        world.warm_up(accept=True)
    refusing = rng.choice((0.1, 0.5, 0.8))
    rate = rng.choice((0.05, 0.15, 0.4))
    for _ in range(steps):
        agent = rng.choice(world.agents)
        actions = _session_actions(rng, world, agent, refusing)
        if agent.ends:
            actions += _program_actions(rng, world, agent, rng.choice(list(agent.ends.values())), storm)
        if rng.random() < rate:
            actions += _faults(rng, world, agent, storm)
        actions += also(agent)
        rng.choices([act for _, act in actions], [weight for weight, _ in actions])[0]()
        verdict.check_held(world)
        verdict.check_dropped(world)
        world.check_books()


def _session_actions(rng: random.Random, world: World, agent: Agent, refusing: float) -> list[Action]:
    return [
        (0.5 if world.made else 20, world.open),
        (4, lambda: world.pump(agent)),
        (4, lambda: world.flush(agent)),
        (4, lambda: world.deliver(agent, rng.choice((1, 3, 17, 200, 5000)), up=True)),
        (4, lambda: world.deliver(agent, rng.choice((1, 3, 17, 200, 5000)), up=False)),
        (2, lambda: world.answer_dial(agent, accept=rng.random() >= refusing)),
        (1, lambda: world.pass_time(rng.choice((0.001, 0.03, 0.11, 0.3)))),
        (2, world.answer_question),
        *([(2.0, lambda: world.depart(agent))] if agent.older else []),
    ]


def _program_actions(rng: random.Random, world: World, agent: Agent, end: End, storm: Storm) -> list[Action]:
    actions: list[Action] = [
        (4, lambda: world.write(agent, end, rng.choice((1, 2, 30, 256, 700)))),
        (4, lambda: world.read(agent, end, rng.choice((1, 100, 5000)))),
        (1, lambda: world.write_eof(agent, end)),
    ]
    if storm.resets and rng.random() < 0.1:
        actions.append((1, lambda: world.give_up(agent, end)))
    if storm.partings and rng.random() < 0.3:
        actions.append((1, lambda: world.part(agent, end)))
    return actions


def _faults(rng: random.Random, world: World, agent: Agent, storm: Storm) -> list[Action]:
    actions: list[Action] = []
    if storm.moves:
        actions += [(4, lambda: world.move(agent)), (1, world.upgrade)]
    if (storm.losses or storm.relays) and agent.connection is None:
        actions.append((20, lambda: world.connect(agent)))
    elif storm.losses:
        actions += [
            (2, lambda: world.cut(agent)),
            (3, lambda: _moved(world, agent)),
            (1, lambda: world.black_hole(agent)),
        ]
        actions += [(2, functools.partial(world.agent_notices, agent))]
        actions += [(1, functools.partial(world.intrude, agent, other)) for other in agent.connections[-1:]]
        actions += [(2, functools.partial(world.cut, agent, other)) for other in agent.older]
        actions += [(1, functools.partial(world.agent_notices, agent, other)) for other in agent.older]
        actions += [(2, functools.partial(world.relay_notices, agent, other)) for other in agent.connections[:1]]
    if storm.relays:
        actions.append((1.5, world.restart_relay))
        actions += [(1, functools.partial(world.end_relay, relay)) for relay in world.relays[:-1]]
    if storm.agents:
        actions.append((1, lambda: world.restart_agent(agent, slot=rng.random() < 0.5)))
    if storm.jumps:
        actions.append((3, lambda: world.pass_time(rng.choice((1.0, 5.1, 16.0, 31.0)))))
    return actions


def _moved(world: World, agent: Agent) -> None:
    """An agent reconnects at once, while the relay still keeps the earlier connection."""
    world.agent_notices(agent)
    world.connect(agent)
