#!/bin/sh
# lighttpd 1.4.69 (Debian 12): while a reload (SIGUSR1) waits for one WebSocket to end, no new request is answered.
#
# The kernel accepts new connections, and they get no answer until the last old one has ended and the server has restarted.
# With "server.graceful-shutdown-timeout" => 5, Debian's setting, that takes 5 to 9 s.
# "server.graceful-restart-bg" helps, because the old process continues in the background, but only if the server was
# started by its path. Started by its bare name, as in `lighttpd -D`, it ignores the setting silently.
#
# Seen: started by its bare name it answers the next request 6.1 s after the reload, started by its path after 0.3 s.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
for package in lighttpd=1.4.69-1 libnettle8 libpcre2-8-0 libxxhash0; do apt-get -qq download "$package" 2>"$work/apt"; done
for file in *.deb; do dpkg -x "$file" root; done
PATH="$work/root/usr/sbin:$PATH" LD_LIBRARY_PATH=$(echo "$work"/root/usr/lib/*-linux-gnu) \
    PYTHONPATH="$here" python3 - "$work" <<'END'
import pathlib, signal, sys, threading, time
from websocket import asked, free_port, running, upgraded, upstream

work = pathlib.Path(sys.argv[1])


def seconds(program):
    port, behind = free_port(), upstream()
    (work / "conf").write_text(f"""
server.modules = ("mod_proxy")
server.bind = "127.0.0.1"
server.port = {port}
server.document-root = "{work}"
server.errorlog = "{work}/error.log"
server.feature-flags += ("server.graceful-restart-bg" => "enable", "server.graceful-shutdown-timeout" => 5)
proxy.server = ("" => (("host" => "127.0.0.1", "port" => {behind})))
proxy.header = ("upgrade" => "enable")
""")
    with running([program, "-D", "-m", f"{work}/root/usr/lib/lighttpd", "-f", f"{work}/conf"], port) as process:
        tunnel, answer = upgraded(port)
        assert b" 101 " in answer, answer
        stop = threading.Event()

        def chat():
            try:
                while not stop.wait(0.2):
                    tunnel.sendall(b"x")
                    if not tunnel.recv(10):
                        break
            except OSError:
                pass
            tunnel.close()

        threading.Thread(target=chat, daemon=True).start()
        time.sleep(1)
        process.send_signal(signal.SIGUSR1)
        began = time.monotonic()
        time.sleep(0.3)
        answer = asked(port)
        took = time.monotonic() - began
        assert b" 200 " in answer, answer
        stop.set()
        return took


bare, path = seconds("lighttpd"), seconds(f"{work}/root/usr/sbin/lighttpd")
print(f"lighttpd 1.4.69: the next request is answered {bare:.1f} s after a reload, by its path {path:.1f} s")
sys.exit(0 if 4 < bare < 14 and path < 3 else 1)
END
