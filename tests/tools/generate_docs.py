"""Write the generated pages: python -m tests.tools.generate_docs, or make docs.

With --check nothing is written, and the status is 1 if a page differs from the
code. ``docs/errors.md`` is generated completely. In other pages the part between
``<!-- generated: NAME -->`` and ``<!-- end -->`` is generated.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from kdispatch.settings import ENVIRONMENT, Settings, setting_of
from kdispatch_protocol.errors import CODES, Code
from kdispatch_protocol.limits import DEFAULT_LIMITS
from kdispatch_relay.api.route import Section
from kdispatch_relay.auth import RIGHTS, Party, Right
from kdispatch_relay.limiter import CAPS, RATES, Rate
from kdispatch_relay.settings import SETTINGS, RelaySettings, environment_name
from tests.tools import rest_page, state_machines
from tests.tools.markdown import table

ROOT: Final = Path(__file__).parents[2]
_PART: Final = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

_ERRORS: Final = """\
# Error codes

<!-- Generated from kdispatch_protocol.errors by `make docs`: change it there. -->

Every failure has a code that stays the same from version to version; the texts around it may change. The command line
prints it in brackets, the REST API has it as `code` of a problem, the library as `code` of a `KdispatchError`, and
agents and relay tell it each other when a connection or a session ends.

- **Where** is the hop that failed, seen from the machine that reports it: `you`, `you -> relay`, `relay`,
  `relay -> host` or `host -> service`.
- **HTTP** is the status of a REST answer with this code.
- **Exit** is the status of a command that ends with it. Others are 0 (done), 1 (a defect, or a missing package),
  2 (the command line was not understood), 130 and 143 (interrupted).
"""

#: The sections of the page with a test for their codes; a code goes into the first section that accepts it.
_SECTIONS: Final[tuple[tuple[str, str, Callable[[Code], bool]], ...]] = (
    (
        "Commands and requests",
        "These end a command, or answer a request.",
        lambda code: code.exit is not None and not _on_the_way(code),
    ),
    ("The way to the relay", "These end a command while it starts.", lambda code: code.exit is not None),
    (
        "One connection or session",
        "These end one connection, or one session between an agent and the relay; the agent goes on.",
        lambda _: True,
    ),
)
_ON_THE_WAY: Final = 6  # the exit status for every problem between an agent and its relay

#: The limits that the relay enforces on others; the rest concerns agents, or never affects an operator.
_RELAY_LIMITS: Final = (
    "streams_client",
    "streams_host",
    "opens",
    "offers",
    "tries",
    "failed_opens_rate",
    "failed_opens_burst",
    "early_resets_rate",
    "early_resets_burst",
    "idle_rate",
    "idle_burst",
    "storm_rate",
    "storm_burst",
    "attach_wait",
    "credit",
    "message",
    "hello",
    "arrivals",
    "arrivals_source",
    "keep_alive",
    "open_host",
    "open_total",
    "open_wait_start",
    "open_wait_lost",
    "dead_relay",
    "quiet",
    "slow_consumer",
)


def _on_the_way(code: Code) -> bool:
    return code.exit == _ON_THE_WAY


def errors_page() -> str:
    """The whole of docs/errors.md."""
    parts = [_ERRORS]
    left = list(CODES.values())
    for title, text, takes in _SECTIONS:
        rows = [code for code in left if takes(code)]
        left = [code for code in left if code not in rows]
        parts.append(f"## {title}\n\n{text}\n\n{_codes(rows)}")
    return "\n".join(parts)


def _codes(codes: Iterable[Code]) -> str:
    rows = (
        (f"`{c.name}`", c.hop, str(c.http or "-"), "-" if c.exit is None else str(c.exit), c.meaning, c.hint)
        for c in codes
    )
    return table(("code", "where", "HTTP", "exit", "meaning", "what to try"), rows)


def relay_settings() -> str:
    """The settings of ``kdispatch relay serve``."""
    rows = (
        (
            _flag(name),
            f"`{environment_name(name)}`",
            _default(field.default),
            field.metadata["help"],
        )
        for name, field in SETTINGS.items()
    )
    return table(("flag", "environment", "default", "meaning"), rows)


def agent_settings() -> str:
    """The settings of agents, and the variables that are not settings."""
    rows = [
        (f"`{field.name}`", f"`{setting.flag}`", f"`{setting.env}`", _default(field.default), setting.text)
        for field in dataclasses.fields(Settings)
        for setting in (setting_of(field.name),)
    ]
    rows += [("-", "-", f"`{name}`", "-", text) for name, text in ENVIRONMENT.items()]
    return table(("config.toml", "flag", "environment", "default", "meaning"), rows)


def relay_limits() -> str:
    """The limits that an operator may meet, with their comments in the code."""
    source = (ROOT / "shared" / "kdispatch_protocol" / "limits.py").read_text()
    told = dict(re.findall(r"^    (\w+): (?:int|float) = .*?#: (.+)$", source, re.MULTILINE))
    rows = ((f"`{name}`", _number(getattr(DEFAULT_LIMITS, name)), told[name]) for name in _RELAY_LIMITS)
    return table(("limit", "value", "meaning"), rows)


_DEFAULTS: Final = RelaySettings()
_TIMES: Final = {1: "a second", 10: "in 10 s", 60: "a minute", 3600: "an hour"}


def relay_rates() -> str:
    """The rates and counts beyond which a relay refuses."""
    rows = [
        (f"`{rate.kind}`", rate.per, _rate(rate), _flag(rate.setting), f"`rate_limited`: {rate.told}")
        for rate in RATES
    ]  # fmt: skip
    rows += [
        (f"`{kind}`", "source" if "source" in kind else "relay", _number(_count(name)), _flag(name), "`busy`")
        for kind, name in CAPS.items()
    ]
    rows += [
        (f"`{kind}`", per, f"{_count(name)} percent", _flag(name), f"`{code}`")
        for kind, per, name, code in (
            ("public_streams", "account", "limit_public_streams", "quota_exceeded"),
            ("source_streams", "source at an account", "limit_source_streams", "busy"),
        )
    ]
    return table(("counted as", "of one", "default", "setting", "beyond"), rows)


def _rate(rate: Rate) -> str:
    count = _count(rate.setting)
    return f"{_number(count)} {_TIMES[rate.seconds]}, {_number(count * rate.at_once - rate.less)} at once"


def _count(setting: str) -> int:
    return int(getattr(_DEFAULTS, setting))


def _flag(name: str) -> str:
    return f"`--{name.replace('_', '-')}`"


def _number(value: float) -> str:
    return f"{value:,}".removesuffix(".0")


def _default(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"`{value}`" if value or value == 0 else "-"


def rights() -> str:
    """The rights, from the table that the relay uses."""
    return table(("to", "may"), ((right.does, _who(right)) for right in RIGHTS.values()))


def _who(right: Right) -> str:
    told = ", ".join(party.value for party in Party if party in right.parties)
    return f"{told}; where it is public, anybody" if right.public else told


PARTS: Final[Mapping[str, Callable[[], str]]] = {
    "relay-settings": relay_settings,
    "agent-settings": agent_settings,
    "relay-limits": relay_limits,
    "rest-routes": rest_page.routes,
    "rest-problem": rest_page.problem,
    "rest-codes": rest_page.codes,
    **{f"rest-{section.name.lower()}": partial(rest_page.section, section) for section in Section},
    "relay-rates": relay_rates,
    "rights": rights,
    "stream-states": state_machines.stream_states,
    "leg-states": state_machines.leg_states,
    "route-states": state_machines.route_states,
}
#: The pages with generated parts, in ``docs/``.
_PARTED: Final = ("design.md", "operations.md", "protocol.md", "rest-api.md", "security.md")


def pages() -> dict[Path, str]:
    """Return every generated page with its new text."""
    parted = (ROOT / "docs" / name for name in _PARTED)
    return {
        ROOT / "docs" / "errors.md": errors_page(),
        **{
            page: _PART.sub(lambda found: f"{found[1]}{PARTS[found[2]]()}{found[3]}", page.read_text())
            for page in parted
        },
    }


def main(arguments: list[str]) -> int:
    """Write the pages, or with --check name those that are out of date."""
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(f"{path.relative_to(ROOT)} {'is not current: run make docs' if arguments else 'is written'}")
        if not arguments:
            path.write_text(pages()[path])
    return 1 if arguments and stale else 0


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit("usage: python -m tests.tools.generate_docs [--check]")
    sys.exit(main(sys.argv[1:]))
