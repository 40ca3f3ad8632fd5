"""Which tests ``make test`` leaves to ``make test-all``.

``make test`` proves the product in four minutes. What costs much and shows a rule for one more server or program, or
looks for planted mistakes, runs in ``make test-all``, which ``.ci/run`` calls. Both run a test in the same way, and
both leave out what only measures (``accept``). The random worlds of tests/core are fewer in ``make test``.
"""

from __future__ import annotations

from typing import Final

__all__ = ["IN_TEST_ALL", "is_in_test_all"]

#: By the beginning of a test's name, and why it is there. tests/packaging/test_tiers.py checks that each is a test's.
IN_TEST_ALL: Final[dict[str, str]] = {
    "tests/agent/cli/test_every_command.py": "each example of each help as a process; tests/agent/cli has the commands",
    "tests/agent/test_outages.py::test_a_thousand_do_not_come_at_once": "played with a thousand agents",
    "tests/agent/test_outages.py::test_an_outage_just_below_the_grace": "played a hundred times; one real outage stays",
    "tests/agent/test_places.py": "records of other machines and boots, with processes for each",
    "tests/chaos/": "all faults at once, in small; tests/faults has them one by one",
    "tests/core/test_mistakes.py": "planted mistakes: whether the worlds would find them",
    "tests/edges/test_canary.py": "ten servers' logs",
    "tests/edges/test_limits.py": "what ten servers pass on",
    "tests/edges/test_recipes.py": "ten servers' configurations from the page",
    "tests/edges/test_resumption.py": "reloads and deaths of ten servers; test_relay_behind stays",
    "tests/edges/test_silence.py": "the silence that each server bears",
    "tests/first_minutes/test_canary.py": "a token through every command, route and failure",
    "tests/first_minutes/test_mistakes.py::test_the_relay_is_down": "a time-out for each of many commands",
    "tests/first_minutes/test_screens.py": "what a terminal shows, letter by letter",
    "tests/guards/": "planted faults: whether the guards of the tests would find them",
    "tests/net/test_aborted.py": "transfers that are given up, with the memory of three processes",
    "tests/net/test_detach.py::test_failures": "a time-out for each way in which a start in the background fails",
    "tests/net/test_detached_memory.py": "the memory of many detached streams",
    "tests/net/test_flood.py": "floods; tests/core/test_effort.py has the rule",
    "tests/net/test_look_ups.py": "a rate beside bulk",
    "tests/net/test_start_cost.py": "what a start costs",
    "tests/net/test_stopped_reader.py": "a reader that stops for long",
    "tests/pauses/": "programs that meet a pause",
    "tests/programs/test_curl.py": "one more program; ssh stays",
    "tests/programs/test_git.py": "one more program",
    "tests/programs/test_iperf3.py": "one more program",
    "tests/programs/test_netcat.py": "one more program",
    "tests/programs/test_page.py": "the examples of docs/programs.md, with their programs",
    "tests/programs/test_postgres.py": "one more program",
    "tests/programs/test_redis.py": "one more program",
    "tests/programs/test_restarts.py": "programs that outlive relays",
    "tests/relay/test_schemathesis.py": "thousands of requests that a tool makes up",
    "tests/soak/": "a little of everything for a while",
    "tests/speed/": "rates in small",
    "tests/upgrade/": "older versions, and systemd's sockets",
}


def is_in_test_all(name: str) -> bool:
    """Whether ``make test`` leaves out the test of this name, as pytest has it."""
    return any(name.startswith(begin) for begin in IN_TEST_ALL)
