#!/bin/sh
# uvloop 0.23.0 (PyPI): a connection that fails in its first write closes a descriptor that belongs to something else.
#
# loop.create_connection(..., sock=sock) gives the descriptor to the transport at once, but ties the socket object to the
# transport only after connection_made. If the connection ends before that, the transport has closed the descriptor, and
# the object still has its number: when the object is freed, it closes whatever has that number by then. A client that
# reconnects to a server that has just gone, and writes in connection_made, hits this occasionally.
#
# Seen, with a peer that has reset the connection before the first write:
#   asyncio: the object has no descriptor after connection_lost, and the next opened file stays open
#   uvloop:  the object has the number, and the next opened file is closed when the object is freed
#
# Exit status: 0 if this is still so, 1 if not.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/v"
"$work/v/bin/pip" install --quiet --disable-pip-version-check uvloop==0.23.0
"$work/v/bin/python" - <<'END'
import asyncio
import os
import socket
import struct
import sys

import uvloop


class FirstWrite(asyncio.Protocol):
    def __init__(self):
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        transport.write(b"hello")

    def connection_lost(self, error):
        if not self.lost.done():
            self.lost.set_result(None)


def reset_connection():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    ours.setblocking(False)
    return ours


async def survives():
    """Whether a file that gets the connection's old number stays open."""
    sock = reset_connection()
    protocol = FirstWrite()
    await asyncio.get_running_loop().create_connection(lambda: protocol, sock=sock)
    await protocol.lost
    await asyncio.sleep(0.05)
    held = sock.fileno()
    number = os.open("/dev/null", os.O_RDONLY)
    del sock
    try:
        os.fstat(number)
    except OSError:
        return held, False
    return held, True


seen = {}
for name, run in (("asyncio", asyncio.run), ("uvloop", uvloop.run)):
    seen[name] = held, kept = run(survives())
    print(f"{name}: the object holds {'no descriptor' if held < 0 else 'a number'}, the next file "
          f"{'stays open' if kept else 'is closed with it'}")
sys.exit(0 if seen["asyncio"] == (-1, True) and not seen["uvloop"][1] and seen["uvloop"][0] >= 0 else 1)
END
