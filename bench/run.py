"""``make bench``: the three processes on loopback, beside the bare connection to the same service in the same run.

A first look: ratios of one run on one machine. A ruler that does comparable work, several rounds and more kinds of
work come with the issue on speed.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from bench import service

KDISPATCH = str(Path(sys.executable).with_name("kdispatch"))
SIZE = 512 * 1024 * 1024
SECONDS = 3.0


class Chain:
    """Relay, host and client as processes; ``port`` leads through them to the service."""

    def __init__(self, folder: Path, service_port: int) -> None:
        self._folder = folder
        self._environment = {**os.environ, "KDISPATCH_CONFIG_DIR": str(folder / "config")}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        relay = self._start(
            "relay", "relay", "serve", "--listen", "127.0.0.1:0", "--database", str(folder / "relay.db")
        )
        self._run("sign-up", "bench", "--relay", self._says(relay, r"http://\S+"))
        self._run("service", "create", "bench")
        self._says(self._start("host", "agent", "host", "bench/bench", "--port", str(service_port)), "is offered")
        client = self._start("client", "agent", "connect", "bench/bench", "--quiet")
        self.port = int(self._says(client, r"\d+"))

    def _start(self, name: str, *words: str) -> Path:
        log = self._folder / name
        with log.open("wb") as file:
            self.processes[name] = subprocess.Popen(
                [KDISPATCH, *words], env=self._environment, stdout=file, stderr=file
            )
        return log

    def _run(self, *words: str) -> None:
        subprocess.run([KDISPATCH, *words], env=self._environment, check=True, capture_output=True)

    @staticmethod
    def _says(log: Path, pattern: str) -> str:
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            if found := re.search(pattern, log.read_text()):
                return found[0]
            time.sleep(0.02)
        raise RuntimeError(f"{log.name} never said {pattern!r}: {log.read_text()}")

    def cpu(self) -> float:
        """Processor seconds of the three together."""
        ticks = 0
        for process in self.processes.values():
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory(self) -> str:
        """Resident MiB of each."""
        sizes = []
        for name, process in self.processes.items():
            status = Path(f"/proc/{process.pid}/status").read_text()
            sizes.append(f"{name} {int(status.split('VmRSS:')[1].split()[0]) >> 10}")
        return ", ".join(sizes)

    def stop(self) -> None:
        """End them, the agents first."""
        for name in ("client", "host", "relay"):
            process = self.processes.get(name)
            if process is not None:
                process.send_signal(signal.SIGTERM)
                process.wait(15)


def main() -> None:
    """Measure and print one table."""
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=service.serve, args=(listener,), daemon=True).start()
    bare = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        chain = Chain(Path(folder), bare)
        try:
            print(f"{'work':34} {'bare':>10} {'kdispatch':>10}")
            for name, move in (
                ("bulk down, 1 stream, MB/s", service.download),
                ("bulk up, 1 stream, MB/s", service.upload),
            ):
                direct = move(bare, SIZE) / 1e6
                before = chain.cpu()
                through = move(chain.port, SIZE) / 1e6
                print(f"{name:34} {direct:10.0f} {through:10.0f}")
                print(f"{'  CPU seconds a GB, 3 processes':34} {'':10} {(chain.cpu() - before) / (SIZE / 1e9):10.2f}")
            direct_trip, through_trip = (service.round_trips(port, SECONDS) for port in (bare, chain.port))
            print(f"{'round trip of 64 B, us, median':34} {direct_trip[0] * 1e6:10.0f} {through_trip[0] * 1e6:10.0f}")
            print(f"{'round trip of 64 B, us, p99':34} {direct_trip[1] * 1e6:10.0f} {through_trip[1] * 1e6:10.0f}")
            direct_opens, through_opens = (service.opens(port, SECONDS) for port in (bare, chain.port))
            print(f"{'opens a second, 1 worker':34} {direct_opens:10.0f} {through_opens:10.0f}")
            print(f"resident memory afterwards, MiB: {chain.memory()}")
        finally:
            chain.stop()


if __name__ == "__main__":
    main()
