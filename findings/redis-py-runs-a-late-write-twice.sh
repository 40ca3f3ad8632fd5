#!/bin/sh
# redis-py 8.1.0 (PyPI): a write whose answer is late runs twice, and the library reports one success.
#
# A client with default settings has a timeout of 5 s, and retries automatically, including commands that are not safe to
# repeat. If the network pauses, the first try has reached the server, and only its answer is late.
#
# Seen, with a server whose first answer to INCR takes 6 s:
#   default settings: INCR returned 2 without an error, and ran 2 times
#   retry=None:       TimeoutError after 5 s, and ran 1 time
#
# Exit status: 0 if this is still so, 1 if not.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/v"
"$work/v/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0
"$work/v/bin/python" - <<'END'
import socket, sys, threading, time
import redis


class Server:
    """As much of RESP as a counter needs; the first INCR is answered late."""

    def __init__(self):
        self.ran = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            threading.Thread(target=self.serve, args=self.listener.accept()[:1], daemon=True).start()

    def serve(self, sock):
        file = sock.makefile("rwb")
        while head := file.readline():
            words = []
            for _ in range(int(head[1:])):
                size = int(file.readline()[1:])
                words.append(file.read(size + 2)[:-2].upper())
            answer = b"+OK\r\n"
            if words[0] == b"HELLO":
                answer = b"%1\r\n$5\r\nproto\r\n:3\r\n" if words[1] == b"3" else b"*2\r\n$5\r\nproto\r\n:2\r\n"
            elif words[0] in (b"INCR", b"INCRBY"):
                self.ran += 1
                answer = b":%d\r\n" % self.ran
                if self.ran == 1:
                    time.sleep(6)
            try:
                file.write(answer)
                file.flush()
            except OSError:
                return


def tried(**settings):
    server = Server()
    try:
        told = f"INCR returned {redis.Redis(port=server.port, **settings).incr('n')} without an error"
    except redis.exceptions.RedisError as error:
        told = type(error).__name__
    return told, server.ran


seen = [tried(), tried(retry=None, socket_timeout=5)]
for name, (told, ran) in zip(("default settings", "retry=None"), seen):
    print(f"redis-py {redis.__version__}, {name}: {told}, and ran {ran} times")
sys.exit(0 if seen == [("INCR returned 2 without an error", 2), ("TimeoutError", 1)] else 1)
END
