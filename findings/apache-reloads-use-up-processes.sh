#!/bin/sh
# Apache httpd 2.4 (Debian 12, mpm_event): every graceful reload keeps the processes that still have a WebSocket, and they
# count against ServerLimit, not against MaxRequestWorkers. So after some reloads a server with a few WebSockets, far below
# MaxRequestWorkers, accepts no new client: the kernel accepts the connections, and Apache never answers them.
#
# Seen with 2.4.71, ServerLimit 4, ThreadsPerChild 25, MaxRequestWorkers 50: with one WebSocket opened before each reload
# no request is answered after the fourth reload, with 4 of 50 workers in use. The error log says "scoreboard is full, not at
# MaxRequestWorkers".
set -eu
version=2.4.71-1~deb12u1
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
for package in "apache2-bin=$version" libapr1 libaprutil1 libexpat1 libpcre2-8-0 libuuid1; do
    apt-get -qq download "$package" 2>"$work/apt"
done
for file in *.deb; do dpkg -x "$file" root; done
chmod 755 "$work"
LD_LIBRARY_PATH=$(echo "$work"/root/usr/lib/*-linux-gnu) PYTHONPATH="$here" python3 - "$work" <<'END'
import pathlib, signal, sys, time
from websocket import asked, free_port, running, upgraded, upstream

work = pathlib.Path(sys.argv[1])
modules = "\n".join(f"LoadModule {name}_module {work}/root/usr/lib/apache2/modules/mod_{name}.so"
                    for name in ("mpm_event", "authz_core", "proxy", "proxy_http"))
port, behind = free_port(), upstream()
(work / "conf").write_text(f"""
ServerRoot {work}
DefaultRuntimeDir {work}
PidFile {work}/pid
ErrorLog {work}/error.log
ServerName localhost
User www-data
Group www-data
{modules}
Listen 127.0.0.1:{port}
StartServers 1
MinSpareThreads 1
MaxSpareThreads 50
ServerLimit 4
ThreadsPerChild 25
MaxRequestWorkers 50
ProxyPass / http://127.0.0.1:{behind}/ upgrade=websocket
""")
held, stuck = [], 0
with running([f"{work}/root/usr/sbin/apache2", "-f", f"{work}/conf", "-DFOREGROUND"], port) as process:
    for reload in range(1, 7):
        held.append(upgraded(port)[0])
        process.send_signal(signal.SIGUSR1)
        time.sleep(3)
        try:
            answer = asked(port, wait=10).decode()
        except OSError as error:
            answer = f"none in 10 s ({type(error).__name__})"
        print(f"Apache 2.4.71 after reload {reload}, with {len(held)} WebSockets: {answer}", flush=True)
        if "200" not in answer:
            stuck = reload
            break
log = (work / "error.log").read_text()
print("\n".join(line for line in log.splitlines() if "scoreboard" in line.lower())[:300])
sys.exit(0 if stuck else 1)
END
