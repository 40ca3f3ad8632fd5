#!/bin/sh
# mosquitto_pub 2.0.11 (Debian 12) with -l and QoS 0, its default: lines that it read during a network pause are lost when
# it reconnects, and its exit status is 0.
#
# It sends each line of its input as a message. If the broker is silent for longer than the keep-alive, it reconnects.
# Lines that it has written to the old connection are lost, without a report. With QoS 1 it sends them again.
#
# Seen, with -k 5 and a broker that reads nothing for 12 s, of 60 lines: QoS 0: some are missing, exit 0; QoS 1: all
# 60, exit 0.
#
# Exit status: 0 if this is still so, 1 if not.
set -eu
version=2.0.11-1.2+deb12u2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get -qq download "mosquitto-clients=$version" "libmosquitto1=$version" libcjson1 2>"$work/apt"
for file in *.deb; do dpkg -x "$file" root; done
LD_LIBRARY_PATH=$(find "$work/root" -name 'lib*.so*' -exec dirname {} \; | sort -u | paste -sd:)
export LD_LIBRARY_PATH
python3 - <<'END'
import socket, subprocess, sys, threading, time


class Broker:
    """As much of MQTT 3.1.1 as one publisher needs; from 2 s to 14 s after its start it reads nothing, as a lost network."""

    def __init__(self):
        self.lines = set()
        self.start = time.monotonic()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def wait(self):
        if 2 < time.monotonic() - self.start < 14:
            time.sleep(max(0.0, self.start + 14 - time.monotonic()))

    def accept(self):
        while True:
            sock, _ = self.listener.accept()
            self.wait()
            threading.Thread(target=self.serve, args=(sock, self.start), daemon=True).start()

    def serve(self, sock, _start):
        file = sock.makefile("rb")
        before = time.monotonic() < self.start + 2
        while head := file.read(1):
            if before and time.monotonic() > self.start + 2:
                time.sleep(60)  # like a connection whose network does not come back
            size, shift = 0, 0
            while True:
                byte = file.read(1)[0]
                size |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
            body, kind = file.read(size), head[0] >> 4
            answer = b""
            if kind == 1:
                answer = b"\x20\x02\x00\x00"
            elif kind == 12:
                answer = b"\xd0\x00"
            elif kind == 3:
                topic = int.from_bytes(body[:2], "big")
                rest = body[2 + topic:]
                if head[0] & 6:
                    answer, rest = b"\x40\x02" + rest[:2], rest[2:]
                self.lines.add(bytes(rest))
            elif kind == 14:
                return
            try:
                sock.sendall(answer)
            except OSError:
                return


def tried(qos):
    broker = Broker()
    command = ["root/usr/bin/mosquitto_pub", "-p", str(broker.port), "-t", "lines", "-l", "-k", "5", "-q", str(qos)]
    publisher = subprocess.Popen(command, stdin=subprocess.PIPE)
    for number in range(60):
        publisher.stdin.write(b"line %d\n" % number)
        publisher.stdin.flush()
        time.sleep(0.4)
    publisher.stdin.close()
    status = publisher.wait(60)
    time.sleep(1)
    return len(broker.lines), status


seen = [tried(0), tried(1)]
for qos, (arrived, status) in enumerate(seen):
    print(f"mosquitto_pub 2.0.11 -l -k 5, QoS {qos}: {arrived} of 60 lines arrived, exit {status}")
sys.exit(0 if seen[0][0] < 60 and seen[0][1] == 0 and seen[1] == (60, 0) else 1)
END
