#!/bin/sh
# Apache httpd 2.4 (Debian 12, mod_proxy_http with upgrade=websocket): the LONGER one of Timeout and ProxyTimeout limits a
# WebSocket's silence. Neither alone makes it shorter: ProxyTimeout 3 with Debian's Timeout 300 leaves 300 s, and so does
# Timeout 3 with ProxyTimeout 300. The timeout= of ProxyPass acts like ProxyTimeout.
#
# Seen with 2.4.71: with Timeout 3 alone (the default of ProxyTimeout) 3 s; with either at 30 longer than 10 s.
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
import pathlib, sys
from websocket import free_port, lasts, running, upstream

work, fits = pathlib.Path(sys.argv[1]), True
modules = "\n".join(f"LoadModule {name}_module {work}/root/usr/lib/apache2/modules/mod_{name}.so"
                    for name in ("mpm_event", "authz_core", "proxy", "proxy_http"))
for directives, short in (("Timeout 3", True), ("Timeout 30\nProxyTimeout 3", False), ("Timeout 3\nProxyTimeout 30", False)):
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
{directives}
ProxyPass / http://127.0.0.1:{behind}/ upgrade=websocket
""")
    with running([f"{work}/root/usr/sbin/apache2", "-f", f"{work}/conf", "-DFOREGROUND"], port):
        seconds = lasts(port, "/mute", most=10)
    print(f"Apache 2.4.71, {directives.replace(chr(10), ', ')}: a silent WebSocket lasts {seconds:.1f} s"
          + ("" if seconds < 10 else " and longer"))
    fits = fits and (seconds < 6) == short
sys.exit(0 if fits else 1)
END
