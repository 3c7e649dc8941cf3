"""A proxy that refuses requests, breaks them off and counts them, and a clock that does not wait."""

import http.client
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Fault:
    """What a request gets instead of the server's answer; status 0 breaks the connection off.

    `raw` is sent in place of `body`; `announced` bytes are promised, however many come.
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=lambda: {"error": {"message": "as the test wants"}})
    raw: bytes | None = None
    announced: int | None = None


class FlakyProxy(ThreadingHTTPServer):
    """Forwards to `upstream` unless `fault` of a request's number, from 0, says otherwise. `asked` is what they say."""

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), FlakyHandler)
        self.upstream, self.lock = urlsplit(upstream).netloc, threading.Lock()
        self.fault: Callable[[int], Fault | None] = lambda n: None
        self.asked: list[str] = []


class FlakyHandler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        proxy = cast(FlakyProxy, self.server)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with proxy.lock:
            number = len(proxy.asked)
            proxy.asked.append(json.loads(body)["messages"][-1]["content"])
        fault = proxy.fault(number)
        if fault and not fault.status:
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault:
            length = {} if fault.announced is None else {"Content-Length": str(fault.announced)}
            raw = json.dumps(fault.body).encode() if fault.raw is None else fault.raw
            self.answer(fault.status, raw, {**fault.headers, **length})
        else:
            upstream = http.client.HTTPConnection(proxy.upstream)
            upstream.request("POST", self.path, body, dict(self.headers))
            reply = upstream.getresponse()
            self.answer(reply.status, reply.read(), {})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class FakeClock(list[float]):
    """Stands in for the client's `time`: the waits it asked for, none of them waited."""

    sleep = list.append

    def time(self) -> float:
        return sum(self)
