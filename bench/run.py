"""``make bench``: each benchmark alternately on the ruler and on kdispatch, in one table.

python -m bench.run [--only bulk,rtt,...] [--secs 5] [--rounds 3] [--plain] [--json FILE] [--page]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Final

from bench import chains, changes, machine, page, start
from bench.chains import Chain
from bench.sites import SITES
from bench.table import Line, table
from bench.works import WORKS, Work, by_turns

__all__: list[str] = []

_NAMES: Final = [*dict.fromkeys(work.name for work in WORKS), "start", "memory", "changes"]
_NO_RULER: Final = """\
**********************************************************************
HAProxy is not installed, so there is NO RULER: kdispatch is measured
alone, and no ratio can be told. To get it: apt-get install haproxy,
or as root: KDISPATCH_INSTALL=1 make programs
**********************************************************************"""


def main() -> int:
    """Run the benchmarks, print the table, and save the results."""
    parser = argparse.ArgumentParser(prog="make bench", description="How fast kdispatch is beside three HAProxy.")
    parser.add_argument("--only", default="", help=f"some of {','.join(_NAMES)}")
    parser.add_argument("--secs", type=float, default=5.0, help="seconds of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is done")
    parser.add_argument("--plain", action="store_true", help="kdispatch on asyncio's own event loop")
    parser.add_argument("--json", type=Path, help="a file to keep the results in")
    parser.add_argument("--page", action="store_true", help="write the table into docs/performance.md")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # run the clean-up, which ends the processes
    names = given.only.split(",") if given.only else _NAMES
    if unknown := set(names) - set(_NAMES):
        parser.error(f"no such work: {', '.join(sorted(unknown))}; there are {', '.join(_NAMES)}")
    if not chains.has_ruler():
        print(_NO_RULER, file=sys.stderr, flush=True)
    about = machine.describe() | {"measured": f"{given.rounds} rounds of {given.secs:g} s"}
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="kdispatch-bench-") as folder:
        for line in _measured(Path(folder), names, given, about):
            lines.append(line)
            print("  ".join(line.cells()), file=sys.stderr, flush=True)
    shown = table(lines, {name: site.title for name, site in SITES.items()} | start.TITLES | changes.TITLES)
    print("\n".join(f"{name}: {value}" for name, value in about.items()), f"\n{shown}", sep="\n")
    if given.json:
        found = {**about, "lines": [dataclasses.asdict(line) for line in lines]}
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    if given.page:
        page.write("table", "\n".join([*(f"* {name}: {value}" for name, value in about.items()), "", shown]))
    return 0


def _measured(folder: Path, names: list[str], given: argparse.Namespace, about: dict[str, str]) -> Iterator[Line]:
    with chains.service(folder / "service") as service:
        works = [work for work in WORKS if work.name in names]
        for place, group in groupby(works, key=lambda work: work.site):
            site = SITES[place]
            if lacks := site.lacks():
                print(f"SKIP: {site.title}: {lacks}", file=sys.stderr)
                continue
            with site.running(folder / place, service, plain=given.plain) as (ruler, kdispatch):
                roles = zip(("relay", "host", "client"), kdispatch.programs, strict=True)
                about["event loops"] = ", ".join(f"{role} {program.loop}" for role, program in roles)
                for work in group:
                    yield from _lines(work, service, ruler, kdispatch, secs=given.secs, rounds=given.rounds)
    if "start" in names:
        yield from start.lines(folder / "start", rounds=given.rounds, plain=given.plain)
    if "memory" in names:
        yield from start.memory_lines(plain=given.plain)
    if "changes" in names:
        yield from changes.lines(rounds=given.rounds)


def _lines(work: Work, service: int, ruler: Chain | None, kdispatch: Chain, *, secs: float, rounds: int) -> list[Line]:
    """Run all rounds of one benchmark, alternately on both chains; returns a line for each of its rows."""
    lines = {key: Line.of(work.site, row) for key, row in work.rows.items()}
    if work.bare:
        found = work.measure(chains.bare(service), secs)
        for key, line in lines.items():
            line.bare = found[key] / work.rows[key].scale
    for theirs, ours in by_turns(work.measure, ruler, kdispatch, secs=secs, rounds=rounds):
        for key, line in lines.items():
            scale = work.rows[key].scale
            line.kdispatch.append(ours[key] / scale)
            line.kdispatch_cpu += [ours["cpu"]] if "cpu" in ours else []
            if theirs is not None:
                line.ruler.append(theirs[key] / scale)
                line.ruler_cpu += [theirs["cpu"]] if "cpu" in theirs else []
    for line in lines.values():
        line.resident = kdispatch.resident
    return list(lines.values())


if __name__ == "__main__":
    sys.exit(main())
