"""Fuzz the parsers with atheris, which follows the code's branches, or else with built-in mutations.

Usage: python -m tests.fuzz.run [--runs 1000000] [--seed N] [--corpus FOLDER] [--own]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

#: Modules that atheris instruments when it imports them first.
_PARSERS: Final = ("kdispatch_protocol.wire.frames", "kdispatch_protocol.wire.websocket")


def main() -> None:
    """Run the inputs; the first that breaks a rule ends the run with a traceback."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description="Fuzz the parsers.")
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", help="atheris keeps what it found in this folder, and goes on from there")
    parser.add_argument("--own", action="store_true", help="use no atheris")
    arguments = parser.parse_args()
    if arguments.own or importlib.util.find_spec("atheris") is None:
        print("fuzz: by mutations of its own" + ("" if arguments.own else "; pip install atheris for better ones"))
        _by_mutation(arguments.runs, arguments.seed)
    else:
        with tempfile.TemporaryDirectory(prefix="kdispatch-fuzz-") as folder:
            _by_atheris(arguments.runs, arguments.seed, Path(arguments.corpus or folder))


def _by_mutation(runs: int, seed: int) -> None:
    parsers = importlib.import_module("tests.fuzz.parsers")
    chance, counts = random.Random(seed), Counter[str]()
    known = parsers.seeds()
    began = time.monotonic()
    for _ in range(runs):
        data = parsers.spoiled(chance.choice(known), chance)
        _run(parsers.check, data, counts)
        if chance.random() < 0.01:  # some mistakes need several mutations
            known[chance.randrange(len(known))] = data if chance.random() < 0.5 else chance.choice(parsers.seeds())
    _report(counts, time.monotonic() - began)


def _by_atheris(runs: int, seed: int, corpus: Path) -> None:
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=list(_PARSERS)):
        for name in _PARSERS:
            importlib.import_module(name)
    parsers = importlib.import_module("tests.fuzz.parsers")
    counts = Counter[str]()
    began = time.monotonic()

    def one(data: bytes) -> None:
        _run(parsers.check, data, counts)
        if counts["inputs"] == runs:  # libFuzzer exits without returning here
            _report(counts, time.monotonic() - began)

    for place, data in enumerate(parsers.seeds()):
        (corpus / f"seed{place}").write_bytes(data)
    options = [f"-runs={runs}", f"-seed={seed}", "-max_len=300", "-verbosity=0"]
    atheris.Setup([sys.argv[0], str(corpus), *options], one)
    atheris.Fuzz()


def _run(check: Callable[[bytes, Counter[str]], None], data: bytes, counts: Counter[str]) -> None:
    try:
        check(data, counts)
    except BaseException:
        print(f"fuzz: input {counts['inputs'] + 1}: {data.hex()}", file=sys.stderr)
        raise


def _report(counts: Counter[str], seconds: float) -> None:
    print(f"fuzz: {counts['inputs']:,} inputs in {seconds:.0f} s, {counts['inputs'] / seconds:,.0f} a second")
    for name, count in sorted(counts.items(), key=lambda item: -item[1]):
        print(f"  {name:40} {count:12,}")


if __name__ == "__main__":
    main()
