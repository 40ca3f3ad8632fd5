"""ssh and rsync, as they are installed here, and a real sshd."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shlex
import stat
from pathlib import Path

import pytest

from tests.net.harness import Network, needs, sizes
from tests.programs.install import find
from tests.programs.servers import Ssh
from tests.programs.tunnel import KB, MB, digest, random_file, succeeds, tunnel

pytestmark = [pytest.mark.slow, needs("ssh", "ssh-keygen", find("sshd"))]


@pytest.fixture
def ssh(network: Network, tmp_path: Path) -> Ssh:
    return Ssh(network, tmp_path)


async def test_ssh(network: Network, ssh: Ssh, tmp_path: Path) -> None:
    """ssh runs commands with their output and status, pipes bytes both ways, and still knows a wrong host key."""
    port = await tunnel(network, await ssh.serve())
    ssh.knows(port, ssh.host_key)

    talking = ssh.run(port, "echo to one; echo to the other >&2; exit 42")
    assert await talking.ended() == 42
    assert (talking.out, talking.err) == (b"to one\n", "to the other\n")

    given = random_file(tmp_path, 5 * MB)
    there_and_back = await succeeds(ssh.run(port, "cat", given))
    assert hashlib.sha256(there_and_back).hexdigest() == digest(given)
    fetched = await succeeds(ssh.run(port, f"cat {shlex.quote(str(given))}"))
    assert hashlib.sha256(fetched).hexdigest() == digest(given)

    ssh.knows(port, ssh.user_key)
    refused = ssh.run(port, "true")
    assert await refused.ended() == 255
    assert re.search("host key verification failed", refused.err, re.IGNORECASE)


def _tree(folder: Path, size: int) -> None:
    """Files of many sizes, names that need care, symbolic links, an empty directory, bits and times."""
    for name in ("plain", "a name with blanks", "ünïcode", "deep/er/down", "empty"):
        (folder / name).mkdir(parents=True)
    for number, length in enumerate([0, 1, 2, 1023, 1024, 65_535, 65_536, 65_537, 300 * KB]):
        random_file(folder / "plain", length, f"file-{number}")
    random_file(folder / "a name with blanks", 5 * KB, " begins and ends with one ")
    random_file(folder / "deep/er/down", 7 * KB, "-begins-with-a-dash 'and' \"quotes\" $HOME *")
    random_file(folder / "ünïcode", 9 * KB, "größe")
    for number in range(200):
        random_file(folder / "deep", random.Random(number).randrange(3 * KB), f"small-{number}")
    random_file(folder, size, "large")
    program = folder / "plain" / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o750)
    (folder / "plain" / "file-1").chmod(0o400)
    os.utime(folder / "plain" / "file-2", (1_000_000_000, 1_000_000_000))
    (folder / "link").symlink_to("plain/file-3")
    (folder / "link to a directory").symlink_to("deep")
    (folder / "link to nothing").symlink_to("nowhere/at all")


def _facts(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Mode, time and link target of all that is below, where ``diff`` looks at contents alone."""
    facts = {}
    for path in [folder, *folder.rglob("*")]:
        of = path.lstat()
        target = str(path.readlink()) if stat.S_ISLNK(of.st_mode) else ""
        facts[str(path.relative_to(folder))] = (of.st_mode, int(of.st_mtime), target)
    return facts


async def _same(network: Network, one: Path, other: Path) -> None:
    await succeeds(network.program("diff", "diff", "-r", "--no-dereference", str(one), str(other)))
    assert _facts(one) == _facts(other)


@needs("rsync", "diff")
@pytest.mark.parametrize("size", sizes(5 * MB, 200 * MB))
async def test_rsync(network: Network, ssh: Ssh, tmp_path: Path, size: int) -> None:
    """rsync brings a tree there, brings its changes there, and brings it back: the three are equal in everything."""
    given, there, back = (tmp_path / name for name in ("given", "there", "back"))
    _tree(given, size)
    port = await tunnel(network, await ssh.serve())
    ssh.knows(port, ssh.host_key)
    rsync = ["rsync", "-a", "--checksum", "-e", f"{ssh.shell_command} -p {port}"]

    await succeeds(network.program("push", *rsync, f"{given}/", f"127.0.0.1:{there}/"), 300)
    await _same(network, given, there)

    with (given / "large").open("r+b") as large:
        large.seek(size // 2)
        large.write(b"a change in the middle")
    (given / "plain" / "file-4").unlink()
    changes = network.program("change", *rsync, "--delete", f"{given}/", f"127.0.0.1:{there}/")
    await succeeds(changes, 300)
    await _same(network, given, there)

    await succeeds(network.program("pull", *rsync, f"127.0.0.1:{there}/", f"{back}/"), 300)
    await _same(network, given, back)
