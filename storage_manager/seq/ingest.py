"""One request to a Seq server, and what its answer means.

Guarantees: never raises; takes about as long as it may, even if the answer comes byte by byte; never keeps more of an
answer than a little; follows no redirect, so that the key reaches no other host; what it says of an error holds
neither the key nor the password. Not guaranteed: that looking up the host's name ends in time.

Imported by the thread that ships: what it needs costs more to import than the rest of the tool.
"""

from __future__ import annotations

import base64
import encodings.idna  # noqa: F401  # imported otherwise when the first name is looked up
import functools
import http.client
import io
import json
import re
import socket
import ssl
import time
import urllib.parse
from contextlib import closing
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
        url = urllib.parse.urlsplit(server.url)
        self._is_tls = url.scheme == "https"
        self._context: Optional[ssl.SSLContext] = None
        self._host = urllib.parse.unquote(url.hostname or "")  # an IPv6 zone is written with %25
        self._port = (443 if self._is_tls else 80) if url.port is None else url.port
        self._path = f"{url.path}/ingest/clef"
        self._headers = {
            "Content-Type": "application/vnd.serilog.clef",
            "Accept": "application/json",
            "User-Agent": f"storage_manager/{__version__}",
            "Connection": "close",
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

    def post(self, body: bytes, timeout_secs: float) -> Answer:
        """Send `body`; what came of it."""
        try:
            answer = self._post(body, timeout_secs)
        # Whatever the other side sends, or a library makes of it. The text of the exception may hold a header.
        except Exception as error:  # noqa: BLE001
            answer = Answer(Verdict.UNAVAILABLE, _explained(error))
        if answer.verdict is not Verdict.ACCEPTED:
            self._context = None  # the system's certificates may have been mended by the next time
        return answer._replace(reason=self._shown(answer.reason))

    def _post(self, body: bytes, timeout_secs: float) -> Answer:
        # Follows no redirect and asks no proxy that the environment names: the key goes to the host of the URL.
        with closing(self._connection(timeout_secs)) as connection:
            connection.request("POST", self._path, body, self._headers)
            with connection.getresponse() as response:
                try:
                    content: Optional[bytes] = response.read(BODY_BYTES)
                except Exception:  # noqa: BLE001  # as above; the status has been read, and it counts
                    content = None
                return _judged(response.status, response.headers, content)

    def _connection(self, timeout_secs: float) -> _Connection:
        if not self._is_tls:
            return _Connection(self._host, self._port, timeout=timeout_secs)
        if self._context is None:
            self._context = ssl.create_default_context()
        return _TlsConnection(self._host, self._port, timeout=timeout_secs, context=self._context)

    def _shown(self, text: str) -> str:
        """A server may repeat the very key that it refuses."""
        return printable(self._secrets.sub("(not shown)", text), SHOWN_CHARACTERS)


def _judged(status: int, headers: http.client.HTTPMessage, content: Optional[bytes]) -> Answer:
    """`content` is None if it could not be read."""
    said = _object(content)
    # With a 201 the server has them, whatever else it says: sending again would double them.
    if status == 201 or (200 <= status < 300 and said is not None):
        return Answer(Verdict.ACCEPTED, "", status, minimum_level=_text(said, "MinimumLevelAccepted"))
    if 200 <= status < 300:
        return Answer(Verdict.MISDIRECTED, f"it answers HTTP {status} and something that Seq does not say", status)
    error = _text(said, "Error")
    reason = f"HTTP {status}: {error}" if error else f"HTTP {status}"
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


def _text(said: Optional[dict[str, Any]], name: str) -> Optional[str]:
    text = (said or {}).get(name)
    return text if isinstance(text, str) else None


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


def _allow_until(deadline: float, sock: socket.socket) -> None:
    left_secs = deadline - time.monotonic()
    if left_secs <= 0:
        raise TimeoutError
    sock.settimeout(left_secs)
