#!/bin/sh
# OpenSSH 9.2 as a SOCKS5 proxy (ssh -D) never sends a refusal: if the target accepts no connection, it closes the
# client's connection without a reply. RFC 1928, 6 has replies 1 to 8 for that (5 is "connection refused").
# So "the proxy closed without an answer" does not mean that the proxy is broken: ssh reports a refusal this way.
#
# Seen with Debian's openssh-client and openssh-server 1:9.2p1-2+deb12u10:
#   a port with a listener:     method 0500, reply 05000001000000000000
#   a port without a listener:  method 0500, then the end of the connection without a byte
#
# Exit status: 0 if this is still so, 1 if not, 2 if the script could not try it.
set -eu
version=1:9.2p1-2+deb12u10
folder=$(mktemp -d)
pids=
trap 'for pid in $pids; do kill "$pid" 2>/dev/null || true; done; rm -rf "$folder"' EXIT
cd "$folder"
apt-get download -qq "openssh-client=$version" "openssh-server=$version" >/dev/null 2>&1 ||
    { echo "can't get openssh $version" >&2; exit 2; }
for package in openssh-*.deb; do dpkg -x "$package" root; done
ports=$(python3 -c 'import socket
socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(s.getsockname()[1] for s in socks))')
# shellcheck disable=SC2086
set -- $ports
ssh_keygen=root/usr/bin/ssh-keygen
$ssh_keygen -q -t ed25519 -N "" -f host && $ssh_keygen -q -t ed25519 -N "" -f user
cp user.pub keys && chmod 600 keys
[ "$(id -u)" != 0 ] || mkdir -p /run/sshd
cat > sshd_config <<CONF
Port $1
ListenAddress 127.0.0.1
HostKey $folder/host
AuthorizedKeysFile $folder/keys
StrictModes no
UsePAM no
PidFile none
CONF
"$folder/root/usr/sbin/sshd" -D -f "$folder/sshd_config" 2>sshd.log &
pids=$!
sleep 1
root/usr/bin/ssh -V
root/usr/bin/ssh -F none -i user -o StrictHostKeyChecking=no -o UserKnownHostsFile=known -o BatchMode=yes \
    -N -D "127.0.0.1:$2" -p "$1" 127.0.0.1 2>ssh.log &
pids="$pids $!"
python3 - "$1" "$2" "$3" <<'PY'
import socket, sys, time

there, proxy, nobody = map(int, sys.argv[1:])


def replies(port):
    for _ in range(100):
        try:
            sock = socket.create_connection(("127.0.0.1", proxy), timeout=10)
            break
        except OSError:
            time.sleep(0.1)
    sock.sendall(b"\x05\x01\x00")
    method = sock.recv(2)
    sock.sendall(b"\x05\x01\x00\x01\x7f\x00\x00\x01" + port.to_bytes(2, "big"))
    try:
        reply = sock.recv(10)
    except ConnectionResetError:
        reply = b""
    sock.close()
    return method, reply


good, bad = replies(there), replies(nobody)
print("a port that listens:      ", *(one.hex() or "the end" for one in good))
print("a port on which nobody is:", *(one.hex() or "the end" for one in bad))
same = good[0] == bad[0] == b"\x05\x00" and good[1][:2] == b"\x05\x00" and bad[1] == b""
print("as described" if same else "NOT as described any more")
sys.exit(not same)
PY
