"""Measure what programs do in a pause: python -m tests.pauses.run --python V/bin/python --only psql --record."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.demo.processes import KDISPATCH, Programs
from tests.pauses import page
from tests.pauses.catalogue import CASES
from tests.pauses.rig import Case, Outcome, measure
from tests.programs.install import find

__all__ = ["main", "measure_all"]

_PAUSES: Final = (20.0, 45.0, 90.0, 115.0)


async def _one(
    case: Case, pause: float, folder: Path, relay_port: int, python: str, gate: asyncio.Semaphore, record: bool
) -> Outcome | str:
    """Measure, and record the outcome at once, because a run over all programs takes half an hour."""
    async with gate:
        slug = "".join(c if c.isalnum() else "-" for c in case.name.lower()).strip("-")
        own = folder / f"{slug}-{pause:.0f}"
        own.mkdir()
        try:
            outcome = await measure(case, pause, own, relay_port, python)
        except Exception as error:  # noqa: BLE001 - the set-up of one of fifty servers may fail in any way
            text = f"FAILED {case.name} {pause:g}: {type(error).__name__}: {error}"
            print(text, flush=True)
            return text
    print(
        f"{'survives' if outcome.survived else 'GIVES UP'} {case.name} {pause:g} s: "
        f"status {outcome.status}, {outcome.after} s: {outcome.words}",
        flush=True,
    )
    if record:
        page.add(case, outcome, python)
    return outcome


async def measure_all(
    cases: list[Case], pauses: list[float], folder: Path, python: str, at_once: int, record: bool = False
) -> list[Outcome | str]:
    """Run every case with every pause below ``folder``; returns outcomes, and texts of failed set-ups."""
    environment = {"KDISPATCH_CONFIG_DIR": str(folder / "config"), "KDISPATCH_STATE_DIR": str(folder / "state")}
    async with Programs(folder / "relay", environment) as programs:
        listen = ["--listen", "127.0.0.1:0", "--database", str(folder / "relay.db")]
        relay = await programs.start("relay", KDISPATCH, "relay", "serve", *listen)
        url = await relay.says(r"listening on (http://127\.0\.0\.1:\d+)")
        signed_up = await programs.run(KDISPATCH, "sign-up", "ann", "--relay", url)
        if signed_up.status:
            raise RuntimeError(signed_up.err)
        gate = asyncio.Semaphore(at_once)
        port = int(url.rpartition(":")[2])
        each = (_one(case, pause, folder, port, python, gate, record) for pause in pauses for case in cases)
        return await asyncio.gather(*each)


def main() -> int:
    """Run the chosen cases, print a line each, and record the outcomes if asked to."""
    parser = argparse.ArgumentParser(prog="python -m tests.pauses.run", description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="has the packages of tests/pauses/requirements.txt")
    parser.add_argument("--only", default="", help="names of cases, with semicolons between")
    parser.add_argument("--pauses", default=",".join(f"{pause:g}" for pause in _PAUSES), help="seconds")
    parser.add_argument("--at-once", type=int, default=10)
    parser.add_argument("--record", action="store_true", help="put the outcomes into measured.json and the page")
    parser.add_argument("--keep", action="store_true", help="keep the folder with all logs")
    options = parser.parse_args()
    only = [name for name in options.only.split(";") if name]
    cases = [case for case in CASES if not only or case.name in only]
    for case in list(cases):
        if missing := [program for program in case.needs if shutil.which(find(program)) is None]:
            print(f"SKIP: {case.name} needs {', '.join(missing)}")
            cases.remove(case)
    pauses = [float(text) for text in options.pauses.split(",")]
    folder = Path(tempfile.mkdtemp(prefix="kdispatch-pauses-"))
    folder.chmod(0o755)  # for servers that drop root
    (folder / "relay").mkdir()
    try:
        outcomes = asyncio.run(measure_all(cases, pauses, folder, options.python, options.at_once, options.record))
    finally:
        if options.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    if options.record:
        page.write_page(CASES)
    return any(isinstance(outcome, str) for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())
