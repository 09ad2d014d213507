"""One request to a Seq server, and what its answer means.

Guarantees: never raises; takes about as long as it may, even if the answer comes byte by byte; never keeps more of an
answer than a little; follows no redirect, so that the key reaches no other host; what it says of an error holds
neither the key nor the password. Not guaranteed: that looking up the host's name ends in time.

Imported by the thread that ships: what it needs costs more to import than the rest of the tool.
"""

from __future__ import annotations

import base64
import functools
import http.client
import io
import json
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Optional

from storage_manager import __version__
from storage_manager.base.errors import describe_errno
from storage_manager.base.text import printable
from storage_manager.seq.delivery import Answer, Verdict
from storage_manager.seq.server import SeqServer

# An answer of Seq's has some hundred bytes; whoever sends more than this is not one, and is not listened to.
ANSWER_BYTES = 256 * 1024
BODY_BYTES = 64 * 1024

# So much of a request is handed to the system at once: between two parts it is asked whether there is time left.
SEND_BYTES = 64 * 1024

# What the server says is shown up to here.
SHOWN_CHARACTERS = 200

# A server that wants to be left alone for longer is asked all the same: it may be wrong.
LONGEST_RETRY_AFTER_SECS = 60.0


class Ingest:
    """The ingestion endpoint of one server."""

    def __init__(self, server: SeqServer) -> None:
        self._url = f"{server.url}/ingest/clef"
        self._headers = {
            "Content-Type": "application/vnd.serilog.clef",
            "Accept": "application/json",
            "User-Agent": f"storage_manager/{__version__}",
        }
        secrets = []
        if server.api_key is not None:
            secrets.append(server.api_key.reveal())
            self._headers["X-Seq-ApiKey"] = secrets[-1]
        if server.user_info is not None:
            user_info = server.user_info.reveal()
            encoded = base64.b64encode(user_info.encode("utf-8", "surrogateescape")).decode("ascii")
            self._headers["Authorization"] = f"Basic {encoded}"
            secrets += [user_info, encoded, user_info.partition(":")[2]]
        forms = {form for secret in secrets for form in (secret, urllib.parse.quote(secret, safe="")) if form}
        # The longest first: one may be a part of another.
        self._secrets = re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True))) or "(?!)", re.I)
        # No handler of redirects, or of proxies that the environment names: the key goes to the host of the URL. No
        # handler of error statuses: every answer comes back as it is. One opener for all: it is a cycle of references,
        # which nobody collects during a long sleep of the loop.
        self._https = _Https()
        self._opener = urllib.request.OpenerDirector()
        self._opener.add_handler(_Http())
        self._opener.add_handler(self._https)

    def post(self, body: bytes, timeout_secs: float) -> Answer:
        """Send `body`; what came of it."""
        try:
            answer = self._post(body, timeout_secs)
        # Whatever the other side sends, or a library makes of it. The text of the exception may hold a header.
        except Exception as error:  # noqa: BLE001
            answer = Answer(Verdict.UNAVAILABLE, _explained(error))
        if answer.verdict is not Verdict.ACCEPTED:
            self._https.context = None  # the system's certificates may have been mended by the next time
        return answer._replace(reason=self._shown(answer.reason))

    def _post(self, body: bytes, timeout_secs: float) -> Answer:
        request = urllib.request.Request(self._url, body, self._headers, method="POST")
        with self._opener.open(request, timeout=timeout_secs) as response:
            try:
                content: Optional[bytes] = response.read(BODY_BYTES)
            except Exception:  # noqa: BLE001  # as above; the status has been read, and it counts
                content = None
            return _judged(response.status, response.headers, content)

    def _shown(self, text: str) -> str:
        """A server may repeat the very key that it refuses."""
        return printable(self._secrets.sub("(not shown)", text), SHOWN_CHARACTERS)


def _judged(status: int, headers: http.client.HTTPMessage, content: Optional[bytes]) -> Answer:
    """`content` is None if it could not be read."""
    said = _object(content)
    if status == 201:  # the server has them, whatever else it says: sending again would double them
        return Answer(Verdict.ACCEPTED, "", status, minimum_level=_minimum_level(said))
    if 200 <= status < 300:
        if content and said is None:
            return Answer(Verdict.MISDIRECTED, f"it answers HTTP {status} and something that Seq does not say", status)
        return Answer(Verdict.ACCEPTED, "", status, minimum_level=_minimum_level(said))
    reason = f"HTTP {status}" + _error_text(said)
    if status in (400, 413):
        return Answer(Verdict.REFUSED, reason, status)
    if status in (401, 403):
        return Answer(Verdict.UNAUTHORISED, reason, status)
    if status in (408, 429) or status >= 500:
        return Answer(Verdict.UNAVAILABLE, reason, status, _retry_after_secs(headers.get("Retry-After", "")))
    if 300 <= status < 400:
        reason += _target_text(headers.get("Location", ""))
    return Answer(Verdict.MISDIRECTED, reason, status)


def _object(content: Optional[bytes]) -> Optional[dict[str, Any]]:
    try:
        said = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def _minimum_level(said: Optional[dict[str, Any]]) -> Optional[str]:
    level = (said or {}).get("MinimumLevelAccepted")
    return level if isinstance(level, str) else None


def _error_text(said: Optional[dict[str, Any]]) -> str:
    text = (said or {}).get("Error")
    return f": {text}" if isinstance(text, str) and text else ""


def _retry_after_secs(text: str) -> Optional[float]:
    """Seconds; a date is not understood, since the clocks may differ."""
    text = text.strip()
    if not (text.isascii() and text.isdigit()):
        return None
    return min(float(text[:10]), LONGEST_RETRY_AFTER_SECS)


def _target_text(location: str) -> str:
    """Scheme, host and port of a redirect, and nothing else of it."""
    try:
        parts = urllib.parse.urlsplit(location)
        host, port = parts.hostname, parts.port
    except ValueError:
        return ", a redirect that makes no sense"
    if not host:
        return ", a redirect"
    return f", a redirect to {parts.scheme or 'http'}://{host}" + (f":{port}" if port else "")


def _explained(error: BaseException) -> str:
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        error = error.reason
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"no TLS connection: {error.reason or type(error).__name__}"
    if isinstance(error, socket.gaierror):
        return f"its name cannot be looked up: {error.strerror}"
    if isinstance(error, (TimeoutError, socket.timeout)):  # two classes before Python 3.10
        return "no answer in time"
    if isinstance(error, http.client.RemoteDisconnected):
        return "it closed the connection without an answer"
    if isinstance(error, OSError) and error.strerror:
        return describe_errno(error)
    if isinstance(error, http.client.HTTPException):
        return f"its answer is not HTTP ({type(error).__name__})"
    return type(error).__name__


class _TimedReader(io.RawIOBase):
    """What comes from a socket until a moment, and not more of it than an answer may have."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, deadline: float) -> None:
        self._raw = raw  # closing it lets the socket go
        self._sock = sock
        self._deadline = deadline
        self._room_bytes = ANSWER_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> Optional[int]:
        if self._room_bytes <= 0:
            raise http.client.HTTPException
        _allow_until(self._deadline, self._sock)
        count = self._raw.readinto(buffer)
        self._room_bytes -= count or 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, deadline: float, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        reader: Any = self.fp
        self.fp = io.BufferedReader(_TimedReader(reader.detach(), sock, deadline))


class _Connection(http.client.HTTPConnection):
    """A connection whose time-out is for the whole of a request, not for each byte of it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._deadline = time.monotonic() + (self.timeout or 0.0)
        self.response_class: Any = functools.partial(_Response, deadline=self._deadline)

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        view = memoryview(data)
        while view:
            _allow_until(self._deadline, self.sock)
            self.sock.sendall(view[:SEND_BYTES])
            view = view[SEND_BYTES:]


class _TlsConnection(_Connection, http.client.HTTPSConnection):
    pass


class _Http(urllib.request.AbstractHTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, request)

    http_request = urllib.request.AbstractHTTPHandler.do_request_


class _Https(urllib.request.AbstractHTTPHandler):
    context: Optional[ssl.SSLContext] = None

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        if self.context is None:
            self.context = ssl.create_default_context()
        return self.do_open(_TlsConnection, request, context=self.context)

    https_request = urllib.request.AbstractHTTPHandler.do_request_


def _allow_until(deadline: float, sock: socket.socket) -> None:
    left_secs = deadline - time.monotonic()
    if left_secs <= 0:
        raise TimeoutError
    sock.settimeout(left_secs)
