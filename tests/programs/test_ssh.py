"""The installed ssh and rsync, and a real sshd."""

from __future__ import annotations

import hashlib
import re
import shlex
from pathlib import Path

import pytest

from tests.net.harness import Network, needs, sizes
from tests.programs.install import find
from tests.programs.servers import Ssh
from tests.programs.trees import make_tree, same_trees
from tests.programs.tunnel import MB, digest, random_file, succeeds, tunnel

pytestmark = [pytest.mark.slow, needs("ssh", "ssh-keygen", find("sshd"))]


@pytest.fixture
def ssh(network: Network, tmp_path: Path) -> Ssh:
    return Ssh(network, tmp_path)


async def test_ssh(network: Network, ssh: Ssh, tmp_path: Path) -> None:
    """ssh runs commands with output and status, pipes bytes both ways, and still detects a wrong host key."""
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


@needs("rsync", "diff")
@pytest.mark.parametrize("size", sizes(5 * MB, 200 * MB))
async def test_rsync(network: Network, ssh: Ssh, tmp_path: Path, size: int) -> None:
    """rsync copies a tree, copies its changes, and copies it back: all three trees are equal."""
    given, there, back = (tmp_path / name for name in ("given", "there", "back"))
    make_tree(given, size)
    port = await tunnel(network, await ssh.serve())
    ssh.knows(port, ssh.host_key)
    rsync = ["rsync", "-a", "--checksum", "-e", f"{ssh.shell_command} -p {port}"]

    await succeeds(network.program("push", *rsync, f"{given}/", f"127.0.0.1:{there}/"), 300)
    await same_trees(network, given, there)

    with (given / "large").open("r+b") as large:
        large.seek(size // 2)
        large.write(b"a change in the middle")
    (given / "plain" / "file-4").unlink()
    changes = network.program("change", *rsync, "--delete", f"{given}/", f"127.0.0.1:{there}/")
    await succeeds(changes, 300)
    await same_trees(network, given, there)

    await succeeds(network.program("pull", *rsync, f"127.0.0.1:{there}/", f"{back}/"), 300)
    await same_trees(network, given, back)
