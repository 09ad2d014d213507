"""What systemd wants to hear: sd_notify's datagrams, without its library."""

from __future__ import annotations

from storage_manager.base.text import printable

# systemd shows the status in one line.
LONGEST_STATUS = 300
READY = "READY=1"
STOPPING = "STOPPING=1"
WATCHDOG = "WATCHDOG=1"


def status(text: str) -> str:
    """A datagram's line; a line break in it would begin another assignment."""
    return f"STATUS={printable(text, LONGEST_STATUS)}"


def notify(address: str, *lines: str) -> None:
    """Send one datagram. Never waits: a service manager that does not read is told again later. Raises OSError."""
    import socket  # few runs need it

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as channel:
        # An @ stands for the zero byte in front of an abstract address. As bytes: a path need not be UTF-8.
        path = address.encode("utf-8", "surrogateescape")
        channel.sendto(
            "\n".join(lines).encode("utf-8", "backslashreplace"), b"\0" + path[1:] if path[:1] == b"@" else path
        )
