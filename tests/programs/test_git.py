"""The installed git, over git daemon and over ssh."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.net.harness import Network, needs, sizes
from tests.programs.install import find
from tests.programs.servers import GIT, Ssh, git_daemon
from tests.programs.tunnel import MB, random_file, succeeds, tunnel

pytestmark = [pytest.mark.slow, needs("git")]


def _git(folder: Path, *words: str) -> str:
    """Run git in a folder without network; returns its output."""
    command = [*GIT, "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.strip()


def _commit(folder: Path, size: int, name: str) -> str:
    """Commit an incompressible file; returns the commit."""
    random_file(folder, size, name)
    _git(folder, "add", "--all")
    _git(folder, "commit", "--quiet", "--message", f"add {name}")
    return _git(folder, "rev-parse", "HEAD")


def _bare(folder: Path, size: int) -> Path:
    """Create a repository to clone, with a few commits of ``size`` bytes in total."""
    origin, bare = folder / "origin", folder / "served" / "project.git"
    origin.mkdir()
    _git(origin, "init", "--quiet")
    for number in range(4):
        _commit(origin, size // 4 + number, f"blob {number}")
    bare.parent.mkdir()
    _git(folder, "clone", "--quiet", "--bare", str(origin), str(bare))
    return bare


async def _clone_and_push(network: Network, bare: Path, url: str, size: int, *settings: str) -> None:
    """Clone, push a commit, and clone again: each repository passes fsck and has the other's commits."""
    folder = bare.parents[1]
    git = [*GIT, *(part for setting in settings for part in ("-c", setting))]
    work, again = folder / "work", folder / "again"
    await succeeds(network.program("clone", *git, "clone", url, str(work)), 300)
    assert _git(work, "rev-parse", "HEAD") == _git(bare, "rev-parse", "main")
    _git(work, "fsck", "--full", "--strict")

    pushed = _commit(work, size, "more")
    await succeeds(network.program("push", *git, "-C", str(work), "push", "origin", "main"), 300)
    assert _git(bare, "rev-parse", "main") == pushed
    _git(bare, "fsck", "--full", "--strict")

    await succeeds(network.program("clone", *git, "clone", url, str(again)), 300)
    _git(again, "fsck", "--full", "--strict")
    assert _git(again, "rev-parse", "HEAD") == pushed
    assert (again / "more").read_bytes() == (work / "more").read_bytes()


@pytest.mark.parametrize("size", sizes(4 * MB, 100 * MB))
async def test_git_daemon(network: Network, tmp_path: Path, size: int) -> None:
    """A repository of random blobs is cloned from a git daemon, and a commit is pushed to it."""
    bare = _bare(tmp_path, size)
    port = await tunnel(network, await git_daemon(network, bare.parent))
    await _clone_and_push(network, bare, f"git://127.0.0.1:{port}/project.git", size)


@pytest.fixture
async def ssh_port(network: Network, tmp_path: Path) -> tuple[Ssh, int]:
    ssh = Ssh(network, tmp_path)
    port = await tunnel(network, await ssh.serve())
    ssh.knows(port, ssh.host_key)
    return ssh, port


@needs("ssh", "ssh-keygen", find("sshd"))
@pytest.mark.parametrize("size", sizes(4 * MB, 100 * MB))
async def test_git_over_ssh(network: Network, tmp_path: Path, ssh_port: tuple[Ssh, int], size: int) -> None:
    """A repository of random blobs is cloned over ssh, and a commit is pushed over it."""
    ssh, port = ssh_port
    bare = _bare(tmp_path, size)
    url = f"ssh://{ssh.user}@127.0.0.1:{port}{bare}"
    await _clone_and_push(network, bare, url, size, f"core.sshCommand={ssh.shell_command}")
