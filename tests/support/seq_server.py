"""A Seq server for tests: real HTTP on a real socket, which follows Seq's rules and can be told to break them."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

EVENT_BYTES = 256 * 1024
REQUEST_BYTES = 10 * 1024 * 1024

# How long a test waits for something that has to come.
PATIENCE_SECS = 30.0


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def lines(self) -> list[bytes]:
        return self.body.splitlines()


class Reply(NamedTuple):
    """What the server answers; Seq's own way unless told otherwise."""

    status: int
    said: dict[str, Any] | None = None
    headers: dict[str, str] = {}


Behaviour = Callable[["SeqServer", "Exchange", Request], "Reply | None"]
"""Decides on a request. A reply, or None when it has done with the connection what it wanted."""


class Exchange(BaseHTTPRequestHandler):
    """One connection."""

    server: Any

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, self.rfile.read(length))
        seq: SeqServer = self.server.seq
        with suppress(OSError):  # a client that has lost its patience
            reply = seq.decide(self, request)
            if reply is not None:
                self.reply(reply)

    do_GET = do_POST

    def reply(self, reply: Reply) -> None:
        body = b"" if reply.said is None else json.dumps(reply.said).encode()
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def raw(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()

    def reset(self) -> None:
        """End the connection as a crash does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 100

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle of things is not an error of the test."""


class SeqServer:
    """Listens from the start. What it accepted is in `events`, all that it was asked in `requests`."""

    def __init__(self, behaviour: Behaviour | None = None, certificate: str | None = None) -> None:
        self.behaviour: Behaviour = behaviour or accept
        self.requests: list[Request] = []
        self.lines: list[bytes] = []
        self.released = threading.Event()
        """Set at the end: whoever hangs may go on."""
        self._changed = threading.Condition()
        self._http = _Server(("127.0.0.1", 0), Exchange)
        self._http.seq = self  # type: ignore[attr-defined]
        self.port: int = self._http.server_address[1]
        self.scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            # The handshake in the connection's own thread: one that fails must not end accept().
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
            self.scheme = "https"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    @property
    def keys(self) -> list[str]:
        return [item["event"] for item in self.events]

    def decide(self, exchange: Exchange, request: Request) -> Reply | None:
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
        return self.behaviour(self, exchange, request)

    def take(self, request: Request) -> None:
        with self._changed:
            self.lines += request.lines
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[], object], secs: float = PATIENCE_SECS) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, secs), f"{len(self.requests)} requests, {len(self.lines)} lines"

    def close(self) -> None:
        self.released.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(PATIENCE_SECS)


@contextmanager
def seq_server(behaviour: Behaviour | None = None, **options: Any) -> Iterator[SeqServer]:
    server = SeqServer(behaviour, **options)
    try:
        yield server
    finally:
        server.close()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- Behaviours


def accept(server: SeqServer, exchange: Exchange, request: Request) -> Reply | None:
    """As Seq does: all of the batch or nothing of it."""
    if (request.method, request.path) != ("POST", "/ingest/clef"):
        return Reply(404, {"Error": "not found"})
    if request.headers.get("content-type") != "application/vnd.serilog.clef":
        return Reply(400, {"Error": "the content type is not CLEF"})
    if len(request.body) > REQUEST_BYTES:
        return Reply(413, {"Error": "the request is too large"})
    for number, line in enumerate(request.lines, 1):
        try:
            item = json.loads(line)
        except ValueError:
            return Reply(400, {"Error": f"line {number} is not JSON"})
        if "@t" not in item:
            return Reply(400, {"Error": f"line {number} has no time stamp"})
        if len(line) > EVENT_BYTES:
            return Reply(400, {"Error": f"line {number} is too large"})
    server.take(request)
    return Reply(201, {"MinimumLevelAccepted": None})


def accept_at(level: str) -> Behaviour:
    """Accept, and say that nothing below a level is wanted."""

    def decide(server: SeqServer, exchange: Exchange, request: Request) -> Reply | None:
        reply = accept(server, exchange, request)
        return reply._replace(said={"MinimumLevelAccepted": level}) if reply and reply.status == 201 else reply

    return decide


def reject_if(bad: Callable[[bytes], bool], status: int = 400, error: str = "an event is malformed") -> Behaviour:
    """Accept a batch only if none of its lines is bad."""

    def decide(server: SeqServer, exchange: Exchange, request: Request) -> Reply | None:
        if any(bad(line) for line in request.lines):
            return Reply(status, {"Error": error})
        return accept(server, exchange, request)

    return decide


def always(status: int, said: dict[str, Any] | None = None, **headers: str) -> Behaviour:
    return lambda server, exchange, request: Reply(
        status, said, {name.replace("_", "-"): value for name, value in headers.items()}
    )


def first(count: int, then: Behaviour, afterwards: Behaviour = accept) -> Behaviour:
    """One behaviour for the first requests, another for the rest."""

    def decide(server: SeqServer, exchange: Exchange, request: Request) -> Reply | None:
        return (then if len(server.requests) <= count else afterwards)(server, exchange, request)

    return decide


def hang(server: SeqServer, exchange: Exchange, request: Request) -> None:
    """Say nothing."""
    exchange.close_connection = True
    server.released.wait(PATIENCE_SECS)


def hang_after(data: bytes) -> Behaviour:
    """Say something, then nothing more."""

    def decide(server: SeqServer, exchange: Exchange, request: Request) -> None:
        exchange.raw(data)
        hang(server, exchange, request)

    return decide


def drip(data: bytes, pause_secs: float = 0.02) -> Behaviour:
    """Say the first part, then one byte after the other, without end."""

    def decide(server: SeqServer, exchange: Exchange, request: Request) -> None:
        exchange.close_connection = True
        exchange.raw(data)
        while not server.released.wait(pause_secs):
            exchange.raw(b"x")

    return decide


def flood(data: bytes, more: bytes) -> Behaviour:
    """Say the first part, then the second again and again, as fast as it goes."""

    def decide(server: SeqServer, exchange: Exchange, request: Request) -> None:
        exchange.close_connection = True
        exchange.raw(data)
        while not server.released.is_set():
            exchange.raw(more * 100)

    return decide


def say(data: bytes) -> Behaviour:
    """Say just this, and end the connection."""

    def decide(server: SeqServer, exchange: Exchange, request: Request) -> None:
        exchange.close_connection = True
        exchange.raw(data)

    return decide


def reset(server: SeqServer, exchange: Exchange, request: Request) -> None:
    """End the connection without a word."""
    exchange.reset()
