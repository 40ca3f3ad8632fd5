#!/bin/sh
# tinyproxy 1.11.1 answers a CONNECT with a wrong password with 401 and WWW-Authenticate, like an origin server.
# RFC 9110, 15.5.8 has 407 and Proxy-Authenticate for a proxy; tinyproxy itself answers 407 without a password.
# So a client that checks only for 407 takes a wrong password for a refusal of the target, and does not ask for another.
#
# Seen with Debian's tinyproxy-bin 1.11.1-2.1+deb12u1:
#   without a password:  HTTP/1.0 407 Proxy Authentication Required, Proxy-Authenticate: Basic realm="Tinyproxy"
#   with a wrong one:    HTTP/1.0 401 Unauthorized, WWW-Authenticate: Basic realm="Tinyproxy"
#
# Exit status: 0 if this is still so, 1 if not, 2 if the script could not try it.
set -eu
version=1.11.1-2.1+deb12u1
folder=$(mktemp -d)
pid=
trap '[ -z "$pid" ] || kill "$pid"; rm -rf "$folder"' EXIT
cd "$folder"
apt-get download -qq "tinyproxy-bin=$version" >/dev/null 2>&1 || { echo "can't get tinyproxy-bin $version" >&2; exit 2; }
dpkg -x tinyproxy-bin_*.deb root
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat > tinyproxy.conf <<CONF
Port $port
Listen 127.0.0.1
Timeout 10
LogFile "$folder/log"
BasicAuth user right
CONF
root/usr/bin/tinyproxy -v
root/usr/bin/tinyproxy -d -c tinyproxy.conf &
pid=$!
python3 - "$port" <<'PY'
import base64, socket, sys, time

port = int(sys.argv[1])


def answer(password):
    for _ in range(50):
        try:
            sock = socket.create_connection(("127.0.0.1", port), timeout=5)
            break
        except OSError:
            time.sleep(0.1)
    lines = ["CONNECT 127.0.0.1:9 HTTP/1.1", "Host: 127.0.0.1:9"]
    if password:
        lines.append("Proxy-Authorization: Basic " + base64.b64encode(f"user:{password}".encode()).decode())
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    text = b""
    while b"\r\n\r\n" not in text and (data := sock.recv(4096)):
        text += data
    sock.close()
    head = text.split(b"\r\n\r\n")[0].decode()
    asks = [line for line in head.split("\r\n") if "authenticate" in line.lower()]
    return head.split("\r\n")[0], asks


none, wrong = answer(""), answer("wrong")
print("without a password:", *none)
print("with a wrong one:  ", *wrong)
same = " 407 " in none[0] and " 401 " in wrong[0] and wrong[1] and wrong[1][0].lower().startswith("www-")
print("as described" if same else "NOT as described any more")
sys.exit(not same)
PY
