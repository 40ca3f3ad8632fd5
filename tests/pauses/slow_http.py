"""A slow web server: python slow_http.py PORT.

GET /wait?s=8 answers after 8 s; /drip sends 12 MB at 1 MB/s; POST /do takes 8 s and counts; /count says how often.
"""

from __future__ import annotations

import http.server
import sys
import time

_done: list[float] = []
_MB = 1000 * 1000


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.startswith("/wait"):
            time.sleep(float(self.path.partition("s=")[2] or 8))
            self._answer(b"waited\n")
        elif self.path.startswith("/drip"):
            self.send_response(200)
            self.send_header("Content-Length", str(12 * _MB))
            self.end_headers()
            for _ in range(12):
                self.wfile.write(b"d" * _MB)
                time.sleep(1)
        else:
            self._answer(f"{len(_done)}\n".encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        _done.append(time.monotonic())
        self._answer(b"done\n")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing."""


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
