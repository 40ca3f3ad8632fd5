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
    "tests/agent/cli/test_bare.py::test_closed_descriptors[agent": "one more command; two stay",
    "tests/agent/cli/test_every_command.py": "each example of each help as a process; tests/agent/cli has the commands",
    "tests/agent/cli/test_output.py::test_output_that_takes_nothing[agent": "one more command; each way to write stays",
    "tests/agent/cli/test_output.py::test_output_that_takes_nothing[relay": "one more command; each way to write stays",
    "tests/agent/cli/test_start.py::test_completion_is_shown_and_installed[fish": "one more shell; bash stays",
    "tests/agent/cli/test_start.py::test_completion_is_shown_and_installed[zsh": "one more shell; bash stays",
    "tests/agent/cli/test_start.py::test_completion_knows_every_command_without_a_heavy_import[fish": "one more shell",
    "tests/agent/cli/test_start.py::test_completion_knows_every_command_without_a_heavy_import[zsh": "one more shell",
    "tests/agent/test_outages.py::test_a_thousand_do_not_come_at_once": "played with a thousand agents",
    "tests/agent/test_outages.py::test_an_outage_just_below_the_grace": "played a hundred times; one real outage stays",
    "tests/agent/test_outages.py::test_services_are_back_soon[0-": "without streams; with streams stays",
    "tests/agent/test_places.py": "records of other machines and boots, with processes for each",
    "tests/chaos/": "all faults at once, in small; tests/faults has them one by one",
    "tests/core/test_mistakes.py": "planted mistakes: whether the worlds would find them",
    "tests/edges/test_canary.py": "ten servers' logs",
    "tests/edges/test_limits.py": "what ten servers pass on",
    "tests/edges/test_recipes.py": "ten servers' configurations from the page",
    "tests/edges/test_relay_behind.py::test_relay_moves_to_another_port": "one more replacement of a relay",
    "tests/edges/test_resumption.py": "reloads and deaths of ten servers; test_relay_behind stays",
    "tests/edges/test_silence.py": "the silence that each server bears",
    "tests/first_minutes/test_canary.py": "a token through every command, route and failure",
    "tests/first_minutes/test_mistakes.py::test_the_relay_is_down": "a time-out for each of many commands",
    "tests/first_minutes/test_screens.py": "what a terminal shows, letter by letter",
    "tests/guards/": "planted faults: whether the guards of the tests would find them",
    "tests/net/test_aborted.py": "transfers that are given up, with the memory of three processes",
    "tests/net/test_bad_sessions.py::test_bad_sessions_of_one_source[_bad_json": "one more kind; a bad frame stays",
    "tests/net/test_bad_sessions.py::test_bad_sessions_of_one_source[_bad_websocket": "one more kind",
    "tests/net/test_detach.py::test_failures": "a time-out for each way in which a start in the background fails",
    "tests/net/test_detached_memory.py": "the memory of many detached streams",
    "tests/net/test_drain.py::test_docker_stop": "the default drain times, waited for; their sum stays",
    "tests/net/test_flood.py": "floods; tests/core/test_effort.py has the rule",
    "tests/net/test_idle_memory.py": "the memory of idle streams",
    "tests/net/test_look_ups.py": "a rate beside bulk",
    "tests/net/test_moving_memory.py": "the memory of moves",
    "tests/net/test_reconnect.py::test_connections_go_on[SIGTERM": "one more way to end a relay; SIGKILL stays",
    "tests/net/test_scanners.py::test_scanners": "what scanners cost; tests/relay/test_door.py has the rule",
    "tests/net/test_start_cost.py": "what a start costs",
    "tests/net/test_stopped_reader.py": "a reader that stops for long",
    "tests/net/test_thousand_agents.py": "a fleet of processes; tests/agent/test_outages.py has the rule",
    "tests/networks/test_boxes.py::test_a_real_relay_behind_a_box[origin": "one more header; that of the upgrade stays",
    "tests/networks/test_boxes.py::test_a_real_relay_behind_a_box[token": "one more header; that of the upgrade stays",
    "tests/pauses/": "programs that meet a pause",
    "tests/programs/test_curl.py": "one more program; ssh stays",
    "tests/programs/test_git.py": "one more program",
    "tests/programs/test_iperf3.py": "one more program",
    "tests/programs/test_netcat.py": "one more program",
    "tests/programs/test_page.py": "the examples of docs/programs.md, with their programs",
    "tests/programs/test_postgres.py": "one more program",
    "tests/programs/test_redis.py": "one more program",
    "tests/programs/test_restarts.py": "programs that outlive relays",
    "tests/relay/test_migrate.py::test_several_at_once": "the command, too; test_upgrade and test_storage have relays",
    "tests/relay/test_room.py::test_little_memory[120": "amounts between those that stay",
    "tests/relay/test_room.py::test_little_memory[140": "amounts between those that stay",
    "tests/relay/test_schemathesis.py": "thousands of requests that a tool makes up",
    "tests/soak/": "a little of everything for a while",
    "tests/speed/": "rates in small",
    "tests/upgrade/": "older versions, and systemd's sockets",
    "tests/windows/": "agents under Wine, whose every start takes seconds",
}


def is_in_test_all(name: str) -> bool:
    """Whether ``make test`` leaves out the test of this name, as pytest has it."""
    return any(name.startswith(begin) for begin in IN_TEST_ALL)
