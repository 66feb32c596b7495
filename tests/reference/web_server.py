"""A web server on this machine that keeps parts of files, and breaks off, changes its mind or refuses as it is told."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Served:
    """A file and how it is sent.

    Attributes:
        body: its bytes.
        etag: with quotation marks; "" for none.
        modified: its date; "" for none.
        ranges: whether parts of it can be asked for.
        cuts: after how many bytes the next answers break off.
        statuses: of the next answers, instead of the file; 0 for the file.
        shift: bytes by which a part begins elsewhere than it was asked for.
        chunked: sent without saying how long it is.
    """

    body: bytes
    etag: str = '"1"'
    modified: str = ""
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    shift: int = 0
    chunked: bool = False


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Site

    def do_GET(self) -> None:
        part, same = self.headers.get("Range"), self.headers.get("If-Range")
        self.server.requests.append((self.path, part, same))
        file = self.server.files.get(self.path)
        status = file.statuses.pop(0) if file is not None and file.statuses else 0
        if file is None or status:
            self.close_connection = True
            self.send_error(status or 404)
            return
        start = 0
        if file.ranges and part is not None and same in (None, file.etag or None, file.modified or None):
            start = int(part.removeprefix("bytes=").removesuffix("-"))
            if start >= len(file.body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(file.body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start += file.shift
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(file.body) - 1}/{len(file.body)}")
        else:
            self.send_response(200)
        self.send(file, file.body[start:])

    def send(self, file: Served, body: bytes) -> None:
        for name, value in (("ETag", file.etag), ("Last-Modified", file.modified)):
            if value:
                self.send_header(name, value)
        length = ("Transfer-Encoding", "chunked") if file.chunked else ("Content-Length", str(len(body)))
        self.send_header(*length)
        self.end_headers()
        cut = file.cuts.pop(0) if file.cuts else None
        self.close_connection = cut is not None
        if file.chunked:
            self.wfile.write(f"{len(body):x}\r\n".encode())
        self.wfile.write(body[:cut])
        if file.chunked and cut is None:
            self.wfile.write(b"\r\n0\r\n\r\n")

    def log_message(self, *arguments: object) -> None:
        pass


class Site(http.server.ThreadingHTTPServer):
    """``files`` by path, and ``requests`` so far: (path, Range, If-Range)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, Served] = {}
        self.requests: list[tuple[str, str | None, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving() -> Iterator[Site]:
    with Site() as site:
        threading.Thread(target=site.serve_forever, args=(0.01,), daemon=True).start()
        yield site
        site.shutdown()
