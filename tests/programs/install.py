"""Install the programs that the tests run: python tests/programs/install.py, or make programs.

It installs missing programs with apt-get, as root and only if CI is set or KDISPATCH_INSTALL=1. For each program
still missing it prints a line that begins with SKIP and gives the reason, and the tests that need it skip. No
service is started. It runs on any Python from 3.11 on, with the standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["PACKAGES", "find", "main"]

#: The Debian package of each program.
PACKAGES: Final = {
    "apache2": "apache2",
    "curl": "curl",
    "git": "git",
    "haproxy": "haproxy",
    "initdb": "postgresql",
    "iperf3": "iperf3",
    "lighttpd": "lighttpd-mod-openssl",  # this also installs lighttpd
    "nc": "netcat-openbsd",
    "nghttpx": "nghttp2-proxy",
    "nginx": "nginx",
    "pgbench": "postgresql-contrib",
    "privoxy": "privoxy",
    "psql": "postgresql-client",
    "redis-benchmark": "redis-tools",
    "redis-cli": "redis-tools",
    "redis-server": "redis-server",
    "rsync": "rsync",
    "squid": "squid",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
    "stunnel": "stunnel4",
    "tinyproxy": "tinyproxy",
    "tmux": "tmux",
    "traffic_manager": "trafficserver",
    "varnishd": "varnish",
}
_POLICY: Final = Path("/usr/sbin/policy-rc.d")
_APT: Final = ("apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120")


def find(program: str) -> str:
    """The program's path, including server directories such as /usr/sbin; its bare name if it is not installed."""
    # Debian's psql on the PATH is a script that selects a version; this prefers the real one, the newest if several.
    postgres = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name, reverse=True)
    places = [*map(str, postgres), os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"]
    return shutil.which(program, path=os.pathsep.join(places)) or program


def _missing() -> list[str]:
    return [program for program in PACKAGES if find(program) == program]


def _refused() -> str:
    """The reason why this run may not install; empty if it may."""
    if not os.environ.get("CI") and os.environ.get("KDISPATCH_INSTALL") != "1":
        return "KDISPATCH_INSTALL=1 lets root's make programs install it"
    if os.geteuid() != 0:
        return "only root can install it"
    return "" if shutil.which("apt-get") else "there is no apt-get to install it with"


@contextlib.contextmanager
def _no_service_starts() -> Iterator[None]:
    """Packages start their servers; this prevents it, and keeps a policy that the machine already has."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()


def _apt(*arguments: str) -> str:
    """Run apt-get; returns its last line of output if it failed, else an empty string."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    ended = subprocess.run(
        [*_APT, *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    lines = (ended.stderr or ended.stdout).strip().splitlines()
    return (lines[-1] if lines else f"exit {ended.returncode}") if ended.returncode else ""


def _install(programs: list[str]) -> dict[str, str]:
    """Install the packages of the programs; returns the reason for each package that could not be installed."""
    failures: dict[str, str] = {}
    with _no_service_starts():
        if failed := _apt("update"):
            print(f"apt-get update failed, going on with what is known: {failed}")
        for package in sorted({PACKAGES[program] for program in programs}):
            failed = _apt("install", "-y", "--no-install-recommends", package)
            failures |= {package: f"apt-get could not install {package}: {failed}"} if failed else {}
    return failures


def main() -> int:
    """Install missing programs if allowed; print what is installed and what is missing."""
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several runs in one checkout only the first installs
        missing = _missing()
        reason, failures = _refused(), dict[str, str]()
        if missing and not reason:
            failures = _install(missing)
            missing = _missing()
    for program in missing:
        why = reason or failures.get(PACKAGES[program], "its package does not bring it")
        print(f"SKIP: {program} is not installed (package {PACKAGES[program]}), its tests skip: {why}")
    print(f"{len(PACKAGES) - len(missing)} of {len(PACKAGES)} programs from outside are there")
    return 0


if __name__ == "__main__":
    sys.exit(main())
