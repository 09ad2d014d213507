"""sd_notify's datagrams, received by real sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loops import loop
from stores import event, make_store, run_tool

from storage_manager.loop.notify import READY, STOPPING, WATCHDOG, notify, status

Bind = Callable[[str], socket.socket]


@pytest.fixture
def manager() -> Iterator[Bind]:
    """Makes sockets such as a service manager listens on, given their address as NOTIFY_SOCKET has it."""
    channels = []

    def bind(address: str) -> socket.socket:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        channels.append(channel)
        channel.settimeout(30)
        name = os.fsencode(address)
        channel.bind(b"\0" + name[1:] if name.startswith(b"@") else name)
        return channel

    yield bind
    for channel in channels:
        channel.close()


def addresses(directory: Path) -> list[str]:
    return [str(directory / "socket"), f"@storage_manager-test-{os.getpid()}", os.fsdecode(bytes(directory) + b"/\xff")]


@pytest.mark.parametrize("number", range(3), ids=["path", "abstract", "not UTF-8"])
def test_one_datagram_arrives_whole(manager: Bind, tmp_path_factory: pytest.TempPathFactory, number: int) -> None:
    address = addresses(tmp_path_factory.mktemp("n"))[number]
    channel = manager(address)
    before = len(os.listdir("/proc/self/fd"))
    notify(address, READY, status("10 MB of\n20 MB \ud800 é"))
    assert channel.recv(4096).decode() == "READY=1\nSTATUS=10 MB of\\x0a20 MB \\ud800 é"
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_status_is_one_line_that_a_datagram_has_room_for() -> None:
    assert len(status("é" * 10_000)) < 400
    assert "\n" not in status("a\nWATCHDOG=1\r\n")


def test_nobody_who_listens_is_an_error_at_once(tmp_path: Path) -> None:
    for address in (str(tmp_path / "absent"), "@storage_manager-absent", "", "x" * 200):
        with pytest.raises(OSError):
            notify(address, WATCHDOG)


def test_a_manager_that_does_not_read_is_not_waited_for(
    manager: Bind, tmp_path_factory: pytest.TempPathFactory
) -> None:
    address = str(tmp_path_factory.mktemp("n") / "s")
    manager(address)
    with pytest.raises(BlockingIOError):
        for _ in range(100_000):
            notify(address, WATCHDOG)


# The loop


def received(channel: socket.socket) -> list[str]:
    """What has been sent so far."""
    channel.setblocking(False)
    found = []
    while True:
        try:
            found += channel.recv(4096).decode().split("\n")
        except BlockingIOError:
            return found


def test_a_service_manager_is_told_of_start_cycles_and_end(
    storage: Path, manager: Bind, tmp_path_factory: pytest.TempPathFactory
) -> None:
    make_store(storage, 3, size=1000)
    address = str(tmp_path_factory.mktemp("n") / "s")
    channel = manager(address)
    with loop(storage, env={"NOTIFY_SOCKET": address, "GOFR_DIG_MAX_STORAGE_MB": "2000B"}) as tool:
        tool.wait_for("housekeeper.cycle_start")
        assert channel.recv(4096) == b"READY=1\nSTATUS=started"
        tool.wait_for("housekeeper.sleep")
        tool.process.terminate()
        assert tool.end() == 0
    assert received(channel) == [
        "STATUS=2.0 KB of 2.0 KB in 2 sessions; deleted 1 session, 1000 B; 2.0 KB remain",
        STOPPING,
    ]


def test_a_failed_cycle_shows_in_the_status(
    tmp_path: Path, manager: Bind, tmp_path_factory: pytest.TempPathFactory
) -> None:
    address = str(tmp_path_factory.mktemp("n") / "s")
    channel = manager(address)
    with loop(tmp_path / "absent", "--once", env={"NOTIFY_SOCKET": address}) as tool:
        assert tool.end() == 1
    lines = received(channel)
    assert lines[-2].startswith("STATUS=the cycle ended with exit code 1: the storage directory")


def test_the_watchdog_is_fed_while_the_loop_sleeps(
    storage: Path, manager: Bind, tmp_path_factory: pytest.TempPathFactory
) -> None:
    make_store(storage, 1)
    address = str(tmp_path_factory.mktemp("n") / "s")
    channel = manager(address)
    with loop(storage, env={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "400000"}) as tool:
        tool.wait_for("housekeeper.sleep")
        fed = 0
        while fed < 3:
            fed += channel.recv(4096).decode().split("\n").count(WATCHDOG)
        tool.process.terminate()
        assert tool.end() == 0
        assert tool.count("housekeeper.sleep") == 1


def test_an_address_that_is_too_long_is_told_without_an_errno(storage: Path) -> None:
    make_store(storage, 1)
    done = run_tool("run-loop", "--once", "--storage-dir", storage, env={"NOTIFY_SOCKET": "/" + "x" * 200})
    assert done.returncode == 0
    told = event(done.stderr, "housekeeper.status_failed")
    assert told["errno"] is None and "None" not in told["@m"]


def test_a_manager_that_is_not_there_does_not_stop_the_loop_and_is_told_once(storage: Path, tmp_path: Path) -> None:
    make_store(storage, 1)
    with loop(storage, env={"NOTIFY_SOCKET": str(tmp_path / "absent")}) as tool:
        tool.wait_for("housekeeper.sleep")
        tool.wake_up_until("housekeeper.cycle_ok", 3)
        tool.process.terminate()
        assert tool.end() == 0
        assert tool.count("housekeeper.status_failed") == 1
