#!/bin/sh
# Traffic Server 9.2 (Debian 12): it looks a request with "Upgrade: websocket" up as ws://, and a map of http:// does not match.
#
# With only `map http://HOST/ http://BACKEND/` a WebSocket's request gets 404, although the same URL without Upgrade gets 200.
# It needs a second line, `map ws://HOST/ ws://BACKEND/` (wss:// behind TLS). And proxy.config.websocket.active_timeout,
# 3600 s by default, cuts a WebSocket at that age if only one end sends, but not if both ends send.
#
# Seen with 9.2.9 (package 9.2.5+ds-0+deb12u4): 404 with one map, 101 with two; with active_timeout 5 a WebSocket on which only
# the server sends ends after 5 to 7 s, and an echo lasts 20 s and longer.
set -eu
version=9.2.5+ds-0+deb12u4
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
for package in "trafficserver=$version" libhwloc15 libyaml-cpp0.7 libpcre3 libcap2 libunwind8; do
    apt-get -qq download "$package" 2>"$work/apt"
done
for file in *.deb; do dpkg -x "$file" root; done
libraries=$(echo "$work"/root/usr/lib/*-linux-gnu):$(echo "$work"/root/lib/*-linux-gnu):$work/root/usr/lib/trafficserver
LD_LIBRARY_PATH=$libraries PYTHONPATH="$here" python3 - "$work" <<'END'
import pathlib, sys
from websocket import asked, free_port, lasts, running, upgraded, upstream

work, results = pathlib.Path(sys.argv[1]), []
for maps in (("http",), ("http", "ws")):
    port, behind = free_port(), upstream()
    folder = work / f"maps-{len(maps)}"
    folder.mkdir()
    places = dict.fromkeys(("prefix", "exec_prefix", "sysconfdir", "datadir", "includedir", "localstatedir", "runtimedir", "logdir",
                            "mandir", "infodir", "cachedir", "libexecdir"), folder)
    places |= {"bindir": work / "root/usr/bin", "sbindir": work / "root/usr/sbin", "libdir": work / "root/usr/lib"}
    (folder / "runroot.yaml").write_text("".join(f"{name}: {path}\n" for name, path in places.items()))
    (folder / "records.config").write_text(f"""
CONFIG proxy.config.http.server_ports STRING {port}:ip-in=127.0.0.1
CONFIG proxy.config.http.cache.http INT 0
CONFIG proxy.config.reverse_proxy.enabled INT 1
CONFIG proxy.config.url_remap.remap_required INT 1
CONFIG proxy.config.admin.user_id STRING #-1
CONFIG proxy.config.http.transaction_active_timeout_in INT 900
CONFIG proxy.config.websocket.active_timeout INT 5
""")
    lines = [f"map {scheme}://localhost/ {scheme}://127.0.0.1:{behind}/\n" for scheme in maps]
    (folder / "remap.config").write_text("".join(lines))
    for name in ("storage.config", "plugin.config"):
        (folder / name).write_text("")
    (folder / "ip_allow.yaml").write_text("ip_allow:\n  - {apply: in, ip_addrs: 0/0, action: allow, methods: ALL}\n")
    with running([f"{work}/root/usr/bin/traffic_server", f"--run-root={folder}/runroot.yaml"], port):
        plain, (sock, answer) = asked(port), upgraded(port)
        sock.close()
        print(f"Traffic Server 9.2.9, maps of {' and '.join(maps)}: plain {plain.decode()!r}, upgrade {answer.decode()!r}", flush=True)
        results.append((plain.split()[1], answer.split()[1]))
        if b" 101 " in answer:
            for path, speaks in (("/talks", False), ("/echo", True)):
                seconds = lasts(port, path, speaks=speaks, most=20)
                print(f"Traffic Server 9.2.9, websocket.active_timeout 5: {path[1:]} lasts {seconds:.1f} s", flush=True)
                results.append(seconds < 15)
sys.exit(0 if results == [(b"200", b"404"), (b"200", b"101"), True, False] else 1)
END
