#!/bin/sh
# tinyproxy 1.11.1 (Debian 12): with MaxClients connections open the next client gets no answer and no refusal.
#
# Debian's MaxClients is 100, and a CONNECT counts while it is open. The kernel accepts connection number 101, which waits
# there unread until another one ends. To the client a full proxy looks like a network that loses packets.
# (privoxy answers 503 in this case.)
#
# Seen with MaxClients 3: three of 4 CONNECTs are answered at once, and one not within 5 s, until one of the others closes.
set -eu
version=1.11.1-2.1+deb12u1
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get -qq download "tinyproxy-bin=$version" 2>"$work/apt"
for file in *.deb; do dpkg -x "$file" root; done
PYTHONPATH="$here" python3 - "$work" <<'END'
import pathlib, socket, sys
from websocket import free_port, running, upstream

work = pathlib.Path(sys.argv[1])
port, behind = free_port(), upstream()
(work / "conf").write_text(f"""
Listen 127.0.0.1
Port {port}
Timeout 600
MaxClients 3
LogFile "{work}/log"
Allow 127.0.0.1
""")


def connect():
    sock = socket.create_connection(("127.0.0.1", port), timeout=5)
    sock.sendall(f"CONNECT 127.0.0.1:{behind} HTTP/1.1\r\nHost: 127.0.0.1:{behind}\r\n\r\n".encode())
    return sock


def answer(sock):
    try:
        return sock.recv(4096).partition(b"\r\n")[0].decode()
    except TimeoutError:
        return "none in 5 s"


with running([f"{work}/root/usr/bin/tinyproxy", "-d", "-c", f"{work}/conf"], port):
    import time
    time.sleep(1)  # until the connection of the readiness check has ended
    socks, answers = [], []
    for _ in range(4):
        socks.append(connect())
        answers.append(answer(socks[-1]))
    socks[0].close()
    answers.append(answer(socks[3]))
for number, text in enumerate(answers, 1):
    print(f"tinyproxy 1.11.1, MaxClients 3, " + (f"client {number}: {text}" if number < 5 else f"client 4 once client 1 has left: {text}"))
good = [" 200 " in text for text in answers]
sys.exit(0 if good == [True, True, True, False, True] else 1)
END
