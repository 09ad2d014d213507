"""The Seq server that a URL names, and secrets that show themselves to nobody."""

from __future__ import annotations

from typing import NamedTuple, Optional


class Secret:
    """A text that shows itself to nobody who does not ask for it."""

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "(not shown)"


class SeqServer(NamedTuple):
    """Where events are shipped to."""

    url: str
    """The server, as it may be shown: without user and password, without a slash at the end."""
    user_info: Optional[Secret]
    """`user:password` of the URL, percent-decoded, for a proxy in front of the server."""
    api_key: Optional[Secret]


def seq_server(text: str) -> SeqServer:
    """Raises ValueError, which names no part of the text that may be secret."""
    from urllib.parse import unquote, urlsplit  # few runs need it

    if not (text.isascii() and text.isprintable() and " " not in text):
        raise ValueError("it has characters that no URL can have")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("its host or port is not valid") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("it is not a URL such as http://seq:5341 or https://seq.example.org")
    if parts.query or parts.fragment:
        raise ValueError("it has a query or a fragment; give the key as SEQ_API_KEY")
    path = parts.path.rstrip("/")
    for ending in ("/ingest/clef", "/api/events/raw"):
        path = path[: -len(ending)] if path.endswith(ending) else path
    host = f"[{host}]" if ":" in host else host
    user_info, at, _ = parts.netloc.rpartition("@")
    return SeqServer(
        f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{path}",
        Secret(unquote(user_info)) if at else None,
        None,
    )
