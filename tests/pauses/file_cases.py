"""Remote shells and files: ssh and programs over it, rsync, git, Subversion, Samba, FTP, block devices."""

from __future__ import annotations

import os
import pwd
from typing import Final

from tests.pauses.rig import Case, Site
from tests.programs.install import find

__all__ = ["CASES"]


async def _sshd(site: Site) -> int:
    await site.run("mkdir", "-p", "-m", "755", "/run/sshd")  # sshd's privilege separation needs it
    for key in ("host_key", "user_key"):
        await site.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(site.folder / key))
    (site.folder / "authorized_keys").write_text((site.folder / "user_key.pub").read_text())
    port = site.free_port()
    conf = site.file(
        "sshd_config",
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {site.folder}/host_key\nStrictModes no\nUsePAM no\n"
        f"AuthorizedKeysFile {site.folder}/authorized_keys\nPermitRootLogin prohibit-password\n"
        "PidFile none\nSubsystem sftp internal-sftp\n",
    )
    await site.serve("sshd", find("sshd"), "-D", "-e", "-f", conf, port=port)
    return port


def _ssh(site: Site, *options: str) -> str:
    words = [
        "-F",
        os.devnull,
        "-i",
        f"{site.folder}/user_key",
        "-o",
        "StrictHostKeyChecking=no",
        "-o",
        "LogLevel=ERROR",
    ]
    words += ["-o", f"UserKnownHostsFile={os.devnull}", "-o", "BatchMode=yes", *options]
    return " ".join(["ssh", *words])


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


_COUNT: Final = "'for n in $(seq 30); do echo $n; sleep 0.2; done'"


def _ssh_count(site: Site, *options: str) -> list[str]:
    return ["bash", "-c", f"{_ssh(site, *options)} -p {site.port} {_user()}@127.0.0.1 {_COUNT}"]


def _big(site: Site, megabytes: int = 300) -> str:
    big = site.folder / "big"
    if not big.exists():
        big.write_bytes(os.urandom(1 << 20) * megabytes)
    return str(big)


def _same(site: Site, _text: str) -> str:
    return "" if (site.folder / "copy").read_bytes() == (site.folder / "big").read_bytes() else "the copy differs"


async def _sshd_big(site: Site) -> int:
    _big(site)
    return await _sshd(site)


def _scp(site: Site) -> list[str]:
    command = _ssh(site).replace("ssh ", "scp ", 1)
    return ["bash", "-c", f"{command} -l 400000 -P {site.port} {_user()}@127.0.0.1:{site.folder}/big copy"]


def _rsync_ssh(site: Site) -> list[str]:
    return [
        "rsync",
        "--bwlimit=50m",
        "-e",
        f"{_ssh(site)} -p {site.port}",
        f"{_user()}@127.0.0.1:{site.folder}/big",
        "copy",
    ]


def _borg(site: Site) -> list[str]:
    rsh = f"{_ssh(site)} -p {site.port}"
    repository = f"ssh://{_user()}@127.0.0.1{site.folder}/repo"
    create = f"borg create --upload-ratelimit 60000 {repository}::a many"
    steps = f"borg init -e none {repository} && echo made && {create} && echo kept"
    environment = f"BORG_RSH='{rsh}' BORG_BASE_DIR={site.folder} BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes"
    return [
        "bash",
        "-c",
        f"export {environment}; {steps}",
    ]


async def _sshd_many(site: Site) -> int:
    many = site.folder / "many"
    many.mkdir()
    for number in range(40):
        (many / str(number)).write_bytes(os.urandom(10_000_000))
    return await _sshd(site)


_PARAMIKO: Final = """
import sys, time, paramiko
client = paramiko.SSHClient()
client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
client.connect("127.0.0.1", int(sys.argv[1]), key_filename=sys.argv[2])
print("connected", flush=True)
for number in range(30):
    _, out, _ = client.exec_command("echo there")
    if out.read() != b"there\\n": sys.exit("no answer")
    time.sleep(0.2)
"""


def _paramiko(site: Site) -> list[str]:
    return [site.python, site.file("client.py", _PARAMIKO), str(site.port), f"{site.folder}/user_key"]


async def _rsyncd(site: Site) -> int:
    _big(site)
    port = site.free_port()
    conf = site.file(
        "rsyncd.conf",
        f"use chroot = no\nlog file = /dev/stderr\n[m]\n path = {site.folder}\n uid = root\n gid = root\n",
    )
    await site.serve(
        "rsyncd",
        "rsync",
        "--daemon",
        "--no-detach",
        f"--config={conf}",
        "--address=127.0.0.1",
        f"--port={port}",
        port=port,
    )
    return port


def _rsync(site: Site) -> list[str]:
    return ["rsync", "--bwlimit=50m", f"rsync://127.0.0.1:{site.port}/m/big", "copy"]


_GIT: Final = ("git", "-c", "user.name=ann", "-c", "user.email=ann@example.org", "-c", "safe.directory=*", "-C")


async def _git(site: Site) -> int:
    repository = site.folder / "srv" / "p"
    repository.mkdir(parents=True)
    await site.run("git", "init", "-q", str(repository))
    _big(site, 400)
    (site.folder / "big").rename(repository / "big")
    await site.run(*_GIT, str(repository), "-c", "core.compression=0", "add", "big")
    await site.run(*_GIT, str(repository), "commit", "-q", "-m", "x")
    port = site.free_port()
    daemon = (await site.run("git", "--exec-path")).strip() + "/git-daemon"
    await site.serve(
        "git",
        daemon,
        "--export-all",
        "--listen=127.0.0.1",
        f"--port={port}",
        f"--base-path={site.folder}/srv",
        port=port,
    )
    return port


async def _svn(site: Site) -> int:
    await site.run("svnadmin", "create", f"{site.folder}/repo")
    (site.folder / "import").mkdir()
    for number in range(600):
        (site.folder / "import" / f"f{number}").write_bytes(os.urandom(300_000))
    await site.run("svn", "import", "-q", "-m", "x", f"{site.folder}/import", f"file://{site.folder}/repo")
    port = site.free_port()
    await site.serve(
        "svnserve",
        "svnserve",
        "-d",
        "--foreground",
        "--listen-host",
        "127.0.0.1",
        "--listen-port",
        str(port),
        "-r",
        str(site.folder),
        port=port,
    )
    return port


async def _samba(site: Site) -> int:
    _big(site, 600)
    port = site.free_port()
    for part in ("private", "lock", "state", "cache", "pid", "ncalrpc"):
        (site.folder / part).mkdir()
    conf = site.file(
        "smb.conf",
        f"[global]\nsmb ports = {port}\nbind interfaces only = yes\ninterfaces = lo\nmap to guest = Bad User\n"
        f"guest account = root\nserver role = standalone server\n"
        f"disable netbios = yes\nlog file = {site.folder}/smb.log\n"
        f"private dir = {site.folder}/private\nlock directory = {site.folder}/lock\n"
        f"state directory = {site.folder}/state\n"
        f"cache directory = {site.folder}/cache\npid directory = {site.folder}/pid\n"
        f"ncalrpc dir = {site.folder}/ncalrpc\n"
        f"[share]\npath = {site.folder}\nguest ok = yes\nread only = no\n",
    )
    await site.serve("smbd", "smbd", "-F", "--no-process-group", "-s", conf, port=port)
    return port


def _smbclient(site: Site) -> list[str]:
    return [
        "smbclient",
        "-s",
        os.devnull,
        "-N",
        "-p",
        str(site.port),
        "//127.0.0.1/share",
        "-c",
        "get big copy; get big copy; get big copy",
    ]


async def _nbd(site: Site) -> int:
    port = site.free_port()
    await site.serve(
        "nbdkit",
        "nbdkit",
        "-f",
        "-p",
        str(port),
        "-i",
        "127.0.0.1",
        "pattern",
        "400M",
        "--filter=rate",
        "rate=400M",
        port=port,
    )
    return port


def _qemu_img(site: Site) -> list[str]:
    return ["qemu-img", "convert", "-O", "raw", f"nbd://127.0.0.1:{site.port}", "copy"]


async def _gdbserver(site: Site) -> int:
    port = site.free_port()
    await site.serve("gdbserver", "gdbserver", "--multi", f"127.0.0.1:{port}", ready="Listening on port")
    return port


def _gdb(site: Site) -> list[str]:
    steps = "".join("shell sleep 0.2\nmonitor help\n" for _ in range(30))
    script = site.file("steps.gdb", f"set pagination off\ntarget extended-remote 127.0.0.1:{site.port}\n{steps}quit\n")
    return ["gdb", "-nx", "-batch", "-x", script]


CASES: Final = [
    Case("ssh", "a command that prints", _sshd, _ssh_count, ("ssh", "sshd"), version=("ssh", "-V")),
    Case(
        "ssh, ServerAliveInterval 15",
        "a command that prints",
        _sshd,
        lambda s: _ssh_count(s, "-o", "ServerAliveInterval=15"),
        ("ssh", "sshd"),
        helps="`ServerAliveCountMax 10`",
        version=("ssh", "-V"),
    ),
    Case("scp", "300 MB", _sshd_big, _scp, ("scp", "sshd"), good=_same, version=("ssh", "-V")),
    Case(
        "rsync over ssh", "300 MB", _sshd_big, _rsync_ssh, ("rsync", "sshd"), good=_same, version=("rsync", "--version")
    ),
    Case("rsync daemon", "300 MB", _rsyncd, _rsync, ("rsync",), good=_same, version=("rsync", "--version")),
    Case(
        "borg",
        "400 MB over ssh",
        _sshd_many,
        _borg,
        ("borg", "sshd"),
        begun="made",
        after=3.0,
        version=("borg", "--version"),
    ),
    Case(
        "paramiko", "a command each 0.2 s", _sshd, _paramiko, ("sshd",), begun="connected", version=("pip", "paramiko")
    ),
    Case(
        "git",
        "clone of 400 MB",
        _git,
        lambda s: ["git", "clone", "-q", f"git://127.0.0.1:{s.port}/p", "copy"],
        ("git",),
        after=0.8,
        version=("git", "--version"),
    ),
    Case(
        "svn",
        "checkout of 180 MB",
        _svn,
        lambda s: ["svn", "checkout", "-q", f"svn://127.0.0.1:{s.port}/repo", "copy"],
        ("svn", "svnserve"),
        after=0.6,
        version=("svn", "--version", "-q"),
    ),
    Case(
        "smbclient",
        "600 MB",
        _samba,
        _smbclient,
        ("smbclient", "smbd"),
        after=1.0,
        good=_same,
        version=("smbclient", "--version"),
        helps="`-t 150`",
    ),
    Case(
        "qemu-img (NBD)",
        "400 MB",
        _nbd,
        _qemu_img,
        ("qemu-img", "nbdkit"),
        after=0.5,
        version=("qemu-img", "--version"),
    ),
    Case(
        "gdb",
        "a question each 0.2 s",
        _gdbserver,
        _gdb,
        ("gdb", "gdbserver"),
        version=("gdb", "--version"),
        helps="`set remotetimeout 150`",
    ),
]
