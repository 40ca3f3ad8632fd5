#!/bin/sh
# lighttpd 1.4.69 (Debian 12): server.max-request-size, the limit of a request's body, also cuts a WebSocket.
#
# It counts all bytes that the client has sent since the upgrade. With 64 (KiB) a WebSocket ends when the client has sent
# 64 KiB, however small the pieces are and however old it is. The error log says "request-size too long ... -> 413".
#
# Seen, with 512 KiB sent to an echo: in pieces of 1 KiB 65,536 bytes come back, in pieces of 128 KiB none; without the
# limit all come back.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
for package in lighttpd=1.4.69-1 libnettle8 libpcre2-8-0 libxxhash0; do apt-get -qq download "$package" 2>"$work/apt"; done
for file in *.deb; do dpkg -x "$file" root; done
LD_LIBRARY_PATH=$(echo "$work"/root/usr/lib/*-linux-gnu) PYTHONPATH="$here" python3 - "$work" <<'END'
import pathlib, sys
from websocket import free_port, running, upgraded, upstream

work, size, fits = pathlib.Path(sys.argv[1]), 512 * 1024, True
for setting in ("", "server.max-request-size = 64"):
    port, behind = free_port(), upstream()
    (work / "conf").write_text(f"""
server.modules = ("mod_proxy")
server.bind = "127.0.0.1"
server.port = {port}
server.document-root = "{work}"
server.errorlog = "{work}/error.log"
{setting}
proxy.server = ("" => (("host" => "127.0.0.1", "port" => {behind})))
proxy.header = ("upgrade" => "enable")
""")
    command = [f"{work}/root/usr/sbin/lighttpd", "-D", "-m", f"{work}/root/usr/lib/lighttpd", "-f", f"{work}/conf"]
    with running(command, port):
        ended = {}
        for piece in (1024, 131072):
            sock, answer = upgraded(port)
            assert b" 101 " in answer, answer
            sock.settimeout(10)
            back = 0
            try:
                while back < size:
                    sock.sendall(b"x" * piece)
                    for _ in range(piece):
                        back += (count := len(sock.recv(65536)))
                        if not count or back % piece == 0:
                            break
                    if not count:
                        break
            except OSError:
                pass
            ended[piece] = back
            print(f"lighttpd 1.4.69, {setting or 'no limit'}: in pieces of {piece}, {back} of {size} bytes came back", flush=True)
    fits = fits and ended == ({1024: 65536, 131072: 0} if setting else {1024: size, 131072: size})
sys.exit(0 if fits else 1)
END
