#!/bin/sh
# lighttpd 1.4.69 (Debian 12): a WebSocket on which only one end sends is cut for the silence of the other end.
#
# server.max-read-idle (60 s) counts the seconds without a byte from the client, however much the server sends.
# server.max-write-idle (360 s) counts the seconds without a byte to the client, although no byte waits to be written.
# This script sets each to 5 s, one at a time.
#
# Seen: with max-read-idle = 5 a WebSocket on which only the server sends lasts 6 s, with max-write-idle = 5 one on which
# only the client sends lasts 6 s; in the other two cases it lasts.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
for package in lighttpd=1.4.69-1 libnettle8 libpcre2-8-0 libxxhash0; do apt-get -qq download "$package" 2>"$work/apt"; done
for file in *.deb; do dpkg -x "$file" root; done
LD_LIBRARY_PATH=$(echo "$work"/root/usr/lib/*-linux-gnu) PYTHONPATH="$here" python3 - "$work" <<'END'
import pathlib, sys
from concurrent.futures import ThreadPoolExecutor
from websocket import free_port, lasts, running, upstream

work, fits = pathlib.Path(sys.argv[1]), True
for setting, cut in (("max-read-idle", "server"), ("max-write-idle", "client")):
    port, behind = free_port(), upstream()
    (work / "conf").write_text(f"""
server.modules = ("mod_proxy")
server.bind = "127.0.0.1"
server.port = {port}
server.document-root = "{work}"
server.errorlog = "{work}/error.log"
server.{setting} = 5
proxy.server = ("" => (("host" => "127.0.0.1", "port" => {behind})))
proxy.header = ("upgrade" => "enable")
""")
    command = [f"{work}/root/usr/sbin/lighttpd", "-D", "-m", f"{work}/root/usr/lib/lighttpd", "-f", f"{work}/conf"]
    with running(command, port), ThreadPoolExecutor() as pool:
        server = pool.submit(lasts, port, "/talks", most=12)
        client = pool.submit(lasts, port, "/mute", speaks=True, most=12)
        lasted = {"server": server.result(), "client": client.result()}
    for who, seconds in lasted.items():
        print(f"lighttpd 1.4.69, server.{setting} = 5: only the {who} speaks, the WebSocket lasts {seconds:.1f} s")
        fits = fits and (5 <= seconds < 9) == (who == cut)
sys.exit(0 if fits else 1)
END
