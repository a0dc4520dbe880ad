"""A real HTTP server on loopback that serves a folder with ranges and ETags, and misbehaves when told to."""

from __future__ import annotations

import hashlib
import re
import socket
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Fault = Callable[["Handler", bytes], bool]
"""Answers instead of the server and returns True, or lets it go on."""


class FileServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.directory = directory
        self.faults: list[Fault] = []
        """Used up one request each."""
        self.always: Fault | None = None
        self.has_ranges = True
        self.etag: Callable[[bytes], str | None] = lambda data: f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        self.requests: list[tuple[str, str | None, str | None]] = []
        """Path, Range and If-Match of each."""
        self.released = threading.Event()
        self.guard = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        """Clients that hang up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: FileServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        server = self.server
        path = server.directory / urlsplit(self.path).path.lstrip("/")
        with server.guard:
            server.requests.append((self.path, self.headers["Range"], self.headers["If-Match"]))
            fault = server.faults.pop(0) if server.faults else server.always
        if not path.is_file():
            self.answer(404, b"")
            return
        data = path.read_bytes()
        if fault is not None and fault(self, data):
            return
        self.serve(data)

    def serve(self, data: bytes) -> None:
        etag = self.server.etag(data)
        tags = {"ETag": etag} if etag else {}
        if self.headers["If-Match"] not in (None, etag):
            self.answer(412, b"", tags)
            return
        span = self.span(data)
        if span is None or not self.server.has_ranges:
            self.answer(200, data, tags)
            return
        start, stop = span
        self.answer(206, data[start:stop], {**tags, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})

    def span(self, data: bytes) -> tuple[int, int] | None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
        return (int(match[1]), min(int(match[2]) + 1, len(data))) if match else None

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def status(code: int) -> Fault:
    """Answer with a status."""

    def fault(handler: Handler, _: bytes) -> bool:
        handler.answer(code, b"sorry")
        return True

    return fault


def stall(handler: Handler, _: bytes) -> bool:
    """Say nothing until the test is over."""
    handler.server.released.wait(20)
    handler.close_connection = True
    return True


def reset(handler: Handler, _: bytes) -> bool:
    """Reset the connection."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True
    return True


def truncate(handler: Handler, data: bytes) -> bool:
    """Promise all, send half, hang up."""
    span = handler.span(data)
    assert span is not None
    start, stop = span
    handler.send_response(206)
    handler.send_header("ETag", handler.server.etag(data) or "")
    handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
    handler.send_header("Content-Length", str(stop - start))
    handler.end_headers()
    handler.wfile.write(data[start : start + (stop - start) // 2])
    handler.close_connection = True
    return True


def short(handler: Handler, data: bytes) -> bool:
    """An answer that is well-formed and holds fewer bytes than its range says."""
    span = handler.span(data)
    assert span is not None
    start, stop = span
    headers = {"ETag": handler.server.etag(data) or "", "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
    handler.answer(206, data[start : stop - 1], headers)
    return True


def other_range(handler: Handler, data: bytes) -> bool:
    """The right number of bytes from the wrong place, said honestly."""
    span = handler.span(data)
    assert span is not None
    start, stop = span[0] + 1, span[1] + 1
    headers = {"ETag": handler.server.etag(data) or "", "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
    handler.answer(206, data[start:stop], headers)
    return True
