"""The record of the measurements, and the table of docs/programs.md made from it."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from tests.pauses.rig import Case, Outcome
from tests.programs.install import find

__all__ = ["PAGE", "RECORD", "add", "read", "table", "version", "write_page"]

RECORD: Final = Path(__file__).with_name("measured.json")
PAGE: Final = Path(__file__).parents[2] / "docs" / "programs.md"
_BEGIN: Final = "<!-- begin: pauses, written by python -m tests.pauses.run --page -->"
_END: Final = "<!-- end: pauses -->"

#: By case: ``doing``, ``version``, and ``pauses``, which maps seconds to the outcome.
Record = dict[str, dict[str, Any]]


def version(case: Case, python: str) -> str:
    """The version of the program, or of the library in the clients' Python; empty if it is not available."""
    if not case.version:
        return ""
    if case.version[0] == "pip":
        code = f"import importlib.metadata as m; print(m.version({case.version[1]!r}))"
        return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    told = subprocess.run([find(case.version[0]), *case.version[1:]], capture_output=True, text=True, check=False)
    # MariaDB's clients print their own version first, and then the release's.
    found = re.search(r"(?<=Distrib )[\d.]+", told.stdout) or re.search(r"\d+\.\d[\w.]*", told.stdout + told.stderr)
    return found[0].rstrip(".") if found else ""


def read() -> Record:
    """Return the measurements so far."""
    record: Record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    return record


def add(case: Case, outcome: Outcome, python: str) -> None:
    """Record the outcome; it replaces an older one of the same program and pause."""
    record = read()
    entry = record.setdefault(case.name, {"pauses": {}})
    entry |= {"doing": case.doing, "version": version(case, python)}
    told = asdict(outcome)
    entry["pauses"][f"{outcome.pause:g}"] = {
        key: told[key] for key in ("survived", "status", "after", "words", "wrong")
    }
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def table(cases: list[Case], record: Record) -> str:
    """Return the Markdown table: a row for each program, in the order of the cases."""
    rows = [
        "| program | version | what it does | 20 s | 45 s | 90 s | 115 s | its words | what helps |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        entry = record.get(case.name)
        if entry is None:
            continue
        cells = [_cell(entry["pauses"].get(pause)) for pause in ("20", "45", "90", "115")]
        failed = [told for told in entry["pauses"].values() if not told["survived"]]
        words = f"`{_short(failed[0]['words'])}`" if failed and failed[0]["words"] else ""
        helps = case.helps if failed else ""
        rows.append(f"| {' | '.join([case.name, entry['version'], case.doing, *cells, words, helps])} |")
    return "\n".join(rows)


def write_page(cases: list[Case]) -> None:
    """Write the table between its marks in docs/programs.md."""
    text = PAGE.read_text()
    before, rest = text.split(_BEGIN)
    _, after = rest.split(_END)
    PAGE.write_text(f"{before}{_BEGIN}\n\n{table(cases, read())}\n\n{_END}{after}")


def _cell(told: dict[str, Any] | None) -> str:
    if told is None:
        return "-"
    if told["survived"]:
        return "goes on"
    if told["wrong"] and told["status"] is not None:
        return "**wrong**"
    return f"ends after {told['after']:.0f} s" if told["status"] is not None else "waits for ever"


def _short(words: str) -> str:
    """Return one line without text that differs between runs, such as addresses and ports."""
    words = re.sub(r"0x[0-9a-f]+", "0x…", words)
    words = re.sub(r"(127\.0\.0\.1|localhost)[: ]\d+", "127.0.0.1", words)
    return words.replace("|", "\\|").replace("`", "'")[:110]
