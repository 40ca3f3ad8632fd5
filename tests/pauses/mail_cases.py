"""Mail and directories: SMTP, IMAP, LDAP."""

from __future__ import annotations

from typing import Final

from tests.pauses.rig import Case, Site, script, served_by

__all__ = ["CASES"]


async def _slapd(site: Site) -> int:
    port = site.free_port()
    (site.folder / "db").mkdir()
    conf = site.file(
        "slapd.conf",
        "include /etc/ldap/schema/core.schema\nmodulepath /usr/lib/ldap\nmoduleload back_mdb\n"
        f"pidfile {site.folder}/pid\ndatabase mdb\nsuffix dc=x\nrootdn cn=a,dc=x\nrootpw s\n"
        f"directory {site.folder}/db\n",
    )
    await site.serve("slapd", "slapd", "-d", "0", "-f", conf, "-h", f"ldap://127.0.0.1:{port}/", port=port)
    return port


_LDAP3: Final = """
import sys, time, ldap3
connection = ldap3.Connection(ldap3.Server("127.0.0.1", int(sys.argv[1])), "cn=a,dc=x", "s", auto_bind=True)
for number in range(60):
    connection.search("", "(objectClass=*)", ldap3.BASE)
    time.sleep(0.1)
"""


async def _dovecot(site: Site) -> int:
    port = site.free_port()
    mail = site.folder / "mail" / "cur"
    for part in ("cur", "new", "tmp"):
        (site.folder / "mail" / part).mkdir(parents=True)
    for number in range(400):
        (mail / f"{number}:2,S").write_text(f"From: a@example.org\r\nSubject: {number}\r\n\r\n" + "x" * 60 + "\r\n")
    (site.folder / "pw").write_text("ann:{PLAIN}secret:1000:1000::/tmp\n")
    conf = site.file(
        "dovecot.conf",
        f"base_dir = {site.folder}/run\nlog_path = /dev/stderr\nprotocols = imap\nssl = no\n"
        f"mail_location = maildir:{site.folder}/mail\ndisable_plaintext_auth = no\n"
        f"default_internal_user = dovecot\ndefault_login_user = dovenull\nfirst_valid_uid = 1\n"
        f"passdb {{\n driver = passwd-file\n args = {site.folder}/pw\n}}\n"
        f"userdb {{\n driver = static\n args = uid=mail gid=mail home={site.folder}/mail\n}}\n"
        f"service imap-login {{\n inet_listener imap {{\n address = 127.0.0.1\n port = {port}\n }}\n"
        f" inet_listener imaps {{\n port = 0\n }}\n}}\n",
    )
    await site.run("chown", "-R", "mail:mail", str(site.folder / "mail"))
    await site.serve("dovecot", "dovecot", "-F", "-c", conf, port=port)
    return port


def _mbsync(site: Site) -> list[str]:
    local = site.folder / "local"
    local.mkdir()
    conf = site.file(
        "mbsyncrc",
        f"IMAPStore r\nHost 127.0.0.1\nPort {site.port}\nUser ann\nPass secret\nSSLType None\nAuthMechs LOGIN\n\n"
        f"MaildirStore l\nPath {local}/\nInbox {local}/inbox\n\n"
        "Channel c\nFar :r:\nNear :l:\nPatterns INBOX\nCreate Near\n",
    )
    return ["bash", "-c", f"for n in $(seq 30); do mbsync -c {conf} c || exit; sleep 0.2; done"]


_SMTP_SERVER: Final = """
import sys, socketserver, time
class Smtp(socketserver.StreamRequestHandler):
    def handle(self):
        say = lambda text: self.wfile.write(text + b"\\r\\n")
        say(b"220 here")
        data = False
        for line in self.rfile:
            if data:
                if line == b".\\r\\n":
                    data = False; time.sleep(6); say(b"250 taken")
            elif line.upper().startswith(b"DATA"): data = True; say(b"354 go on")
            elif line.upper().startswith(b"QUIT"): say(b"221 bye"); return
            else: say(b"250 ok")
class Server(socketserver.ThreadingTCPServer): allow_reuse_address = True
Server(("127.0.0.1", int(sys.argv[1])), Smtp).serve_forever()
"""


def _swaks(site: Site) -> list[str]:
    return [
        "swaks",
        "--server",
        f"127.0.0.1:{site.port}",
        "--to",
        "a@example.org",
        "--from",
        "b@example.org",
        "--helo",
        "x",
    ]


def _msmtp(site: Site) -> list[str]:
    message = site.file("message", "Subject: x\n\nx\n")
    command = f"msmtp --host=127.0.0.1 --port={site.port} --from=b@example.org a@example.org < {message}"
    return ["bash", "-c", command]


CASES: Final = [
    Case("ldap3", "a search each 0.1 s", _slapd, script(_LDAP3), ("slapd",), version=("pip", "ldap3")),
    Case(
        "mbsync",
        "synchronises each 0.2 s",
        _dovecot,
        _mbsync,
        ("mbsync", "dovecot"),
        helps="`Timeout 150`",
        version=("mbsync", "--version"),
    ),
    Case(
        "swaks",
        "waits for the last answer",
        served_by(_SMTP_SERVER),
        _swaks,
        ("swaks",),
        version=("swaks", "--version"),
    ),
    Case(
        "msmtp",
        "waits for the last answer",
        served_by(_SMTP_SERVER),
        _msmtp,
        ("msmtp",),
        version=("msmtp", "--version"),
    ),
]
