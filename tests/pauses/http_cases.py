"""HTTP clients, and servers that forward HTTP."""

from __future__ import annotations

import os
import sys
import urllib.request
from pathlib import Path
from typing import Final

from tests.pauses.rig import Case, Site, script

__all__ = ["CASES"]

_HERE: Final = Path(__file__).parent


async def _slow(site: Site) -> int:
    port = site.free_port()
    await site.serve("slow", sys.executable, str(_HERE / "slow_http.py"), str(port), port=port)
    site.notes["count"] = f"http://127.0.0.1:{port}/count"
    return port


def _url(site: Site, path: str) -> str:
    return f"http://127.0.0.1:{site.port}{path}"


def _posts(site: Site, text: str) -> str:
    """Compare the server's count with the number of requests that the client saw succeed."""
    with urllib.request.urlopen(site.notes["count"], timeout=10) as answer:
        done = int(answer.read())
    told = sum(line.startswith("ok") for line in text.splitlines())
    return f"{done} done, {told} told" if done != told else ""


_LOOP: Final = """
import sys, time
url = f"http://127.0.0.1:{sys.argv[1]}/do"
%s
failed = ""
end = time.monotonic() + 6
while time.monotonic() < end:
    try:
        post()
        print("ok", flush=True)
    except Exception as error:
        failed = f"{type(error).__name__}: {error}"
        print(failed, flush=True)
    time.sleep(0.25)
time.sleep(1)
if failed:
    sys.exit(failed)
"""

_HTTPX: Final = (
    _LOOP % "import httpx\nclient = httpx.Client()\ndef post(): client.post(url, content=b'x').raise_for_status()"
)
_REQUESTS: Final = (
    _LOOP % "import requests\nsession = requests.Session()\ndef post(): session.post(url, data=b'x').raise_for_status()"
)
_AIOHTTP: Final = """
import asyncio, sys, aiohttp
async def main():
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{sys.argv[1]}/wait?s=6") as answer:
            print(await answer.text())
asyncio.run(main())
"""
_FETCH: Final = """
const answer = await fetch(`http://127.0.0.1:${process.argv[2]}/wait?s=6`);
console.log(await answer.text());
"""
_GO: Final = """package main
import ("fmt"; "io"; "net/http"; "os")
func main() {
	answer, err := http.Get("http://127.0.0.1:" + os.Args[1] + "/drip")
	if err != nil { fmt.Println(err); os.Exit(1) }
	n, err := io.Copy(io.Discard, answer.Body)
	fmt.Println(n, err)
	if err != nil { os.Exit(1) }
}
"""
_JAVA: Final = """
import java.net.URI;
import java.net.http.*;
public class Get {
    public static void main(String[] a) throws Exception {
        System.out.println("begins");
        var answer = HttpClient.newHttpClient().send(
            HttpRequest.newBuilder(URI.create("http://127.0.0.1:" + a[0] + "/wait?s=6")).build(),
            HttpResponse.BodyHandlers.ofString());
        System.out.println(answer.statusCode());
    }
}
"""


async def _slow_for_go(site: Site) -> int:
    site.file("get.go", _GO)
    await site.run("env", f"GOCACHE={site.folder.parent.parent / 'gocache'}", "go", "build", "-o", "get", "get.go")
    return await _slow(site)


async def _nginx(site: Site) -> int:
    port = await _slow(site)
    site.notes["front"] = str(site.free_port())
    return port


def _behind_nginx(site: Site) -> list[str]:
    # nginx is the program under test: it reaches the service through the tunnel, and curl asks nginx.
    front = site.notes["front"]
    conf = site.file(
        "nginx.conf",
        f"daemon off; pid nginx.pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path t; proxy_temp_path t2;\n"
        "fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;\n"
        f"server {{ listen 127.0.0.1:{front}; location / {{ proxy_pass http://127.0.0.1:{site.port}; }} }} }}\n",
    )
    return _asked(f"nginx -e stderr -p . -c {conf}", front)


def _behind_haproxy(site: Site) -> list[str]:
    # The timeouts of Debian's /etc/haproxy/haproxy.cfg.
    front = site.notes["front"]
    conf = site.file(
        "haproxy.cfg",
        "defaults\n mode http\n timeout connect 5000\n timeout client 50000\n timeout server 50000\n"
        f"frontend f\n bind 127.0.0.1:{front}\n default_backend b\nbackend b\n server s 127.0.0.1:{site.port}\n",
    )
    return _asked(f"haproxy -f {conf}", front)


def _asked(server: str, front: str) -> list[str]:
    """A command that runs the server, asks it by curl, and ends it."""
    ask = f"curl -sSf http://127.0.0.1:{front}/wait?s=6"
    return ["sh", "-c", f"{server} & server=$!; sleep 0.5; {ask}; status=$?; kill $server; exit $status"]


CASES: Final = [
    Case(
        "curl",
        "download",
        _slow,
        lambda s: ["curl", "-sSf", "-o", os.devnull, _url(s, "/drip")],
        ("curl",),
        version=("curl", "--version"),
    ),
    Case(
        "wget",
        "download",
        _slow,
        lambda s: ["wget", "-q", "-O", os.devnull, _url(s, "/drip")],
        ("wget",),
        version=("wget", "--version"),
    ),
    Case(
        "httpx",
        "POSTs",
        _slow,
        script(_HTTPX),
        good=_posts,
        counts=True,
        helps="`timeout=150`",
        version=("pip", "httpx"),
    ),
    Case("requests", "POSTs", _slow, script(_REQUESTS), good=_posts, counts=True, version=("pip", "requests")),
    Case(
        "aiohttp",
        "GET, waits for the answer",
        _slow,
        script(_AIOHTTP),
        helps="`ClientTimeout(total=…)` above 300 s is not needed",
        version=("pip", "aiohttp"),
    ),
    Case(
        "Node.js fetch",
        "GET, waits for the answer",
        _slow,
        lambda s: ["node", s.file("get.mjs", _FETCH), str(s.port)],
        ("node",),
        version=("node", "--version"),
    ),
    Case(
        "Go net/http",
        "download",
        _slow_for_go,
        lambda s: [str(s.folder / "get"), str(s.port)],
        ("go",),
        version=("go", "version"),
    ),
    Case(
        "Java HttpClient",
        "GET, waits for the answer",
        _slow,
        lambda s: ["java", s.file("Get.java", _JAVA), str(s.port)],
        ("java",),
        begun="begins",
        version=("java", "-version"),
    ),
    Case(
        "nginx (proxy_pass)",
        "waits for the first byte",
        _nginx,
        _behind_nginx,
        ("nginx", "curl"),
        version=("nginx", "-v"),
        helps="`proxy_read_timeout 150s`",
    ),
    Case(
        "HAProxy",
        "waits for the first byte",
        _nginx,
        _behind_haproxy,
        ("haproxy", "curl"),
        version=("haproxy", "-v"),
        helps="`timeout server 150s`",
    ),
]
