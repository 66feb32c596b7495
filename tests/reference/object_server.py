"""A web server on this machine that keeps objects and answers range requests, or misbehaves as it is told."""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Store

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        store, asked = self.server, self.headers.get("Range")
        with store.lock:
            store.requests.append((self.command, self.path, asked))
            store.ports.append(self.client_address[1])
            fault = store.faults.pop(0) if store.faults and with_body else None
        if fault == "wait":
            store.waiting.set()
            store.gate.wait()
        if isinstance(fault, int):
            self.send_whole(fault, b"", with_body)
        elif self.path.endswith("/"):
            below = sorted({name[len(self.path) :].split("/")[0] for name in store.files if name.startswith(self.path)})
            ends = ["/" if f"{self.path}{name}" not in store.files else "" for name in below]
            page = "".join(f'<a href="{name}{end}">{name}</a>' for name, end in zip(below, ends, strict=True))
            self.send_whole(200 if below else 404, page.encode(), with_body, "text/html")
        elif self.path not in store.files:
            is_folder = any(name.startswith(f"{self.path}/") for name in store.files)
            self.send_whole(301 if is_folder else 404, b"", with_body)
        elif asked is None or not store.ranges:
            self.send_whole(200, store.files[self.path], with_body)
        else:
            self.send_part(store.files[self.path], asked, fault)

    def send_whole(self, status: int, body: bytes, with_body: bool, kind: str = "application/octet-stream") -> None:
        self.send_response(status)
        if status == 301:
            self.send_header("Location", f"{self.path}/")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            try:
                self.wfile.write(body)
                self.server.sent_bytes += len(body)
            except OSError:
                self.close_connection = True

    def send_part(self, body: bytes, asked: str, fault: object) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
        assert match is not None, asked
        first, last = int(match[1]), min(int(match[2]), len(body) - 1)
        part = body[first : last + 1]
        if fault == "short":
            part = part[:-1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.close_connection = fault == "cut"
        self.wfile.write(part[: len(part) // 2] if fault == "cut" else part)
        self.server.sent_bytes += len(part)

    def log_message(self, *arguments: object) -> None:
        pass


class Store(http.server.ThreadingHTTPServer):
    """``files`` by path.

    Attributes:
        requests: (method, path, Range) so far; ``ports`` of the clients, one each, tell connections apart.
        faults: of the next answers to GET: a status, "short" (a byte too few), "cut" (breaks off), "wait" (until ``gate``
            is set; ``waiting`` is set meanwhile), or None.
        ranges: whether parts are sent.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.ports: list[int] = []
        self.faults: list[object] = []
        self.ranges = True
        self.sent_bytes = 0
        self.lock, self.gate, self.waiting = threading.Lock(), threading.Event(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving() -> Iterator[Store]:
    with Store() as store:
        threading.Thread(target=store.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield store
        finally:
            store.gate.set()
            store.shutdown()
