"""Events reach a Seq server, and whatever the server does, the tool goes on, ends in time, and says what was lost."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import seq_server
import stores
from seq_server import Exchange, Reply, Request, SeqServer
from stores import event, events, make_store, run_tool

from storage_manager.base.errors import Interrupted
from storage_manager.base.log import EventLog, build_logger, close_logger
from storage_manager.seq import backlog, handler
from storage_manager.seq.backlog import Backlog
from storage_manager.seq.delivery import Answer, Verdict
from storage_manager.seq.events import SeqEvents
from storage_manager.seq.handler import SeqHandler
from storage_manager.seq.server import Secret
from storage_manager.seq.server import SeqServer as Server

KEY = "K3y-that-must-not-show"
PASSWORD = "Pa55-that-must-not-show"


@pytest.fixture(autouse=True)
def logging_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """build_logger() sets this for the process it thinks is its own."""
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, secs in (
        ("GATHER_SECS", 0.02), ("BACKOFF_SECS", 0.05), ("LONGEST_BACKOFF_SECS", 0.1), ("SHORTEST_BACKOFF_SECS", 0.01),
    ):  # fmt: skip
        monkeypatch.setattr(handler, name, secs)


@pytest.fixture
def short_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the real figures end in time, the tests in processes of their own show."""
    monkeypatch.setattr(handler, "FLUSH_SECS", 0.3)
    monkeypatch.setattr(handler, "GRACE_SECS", 0.2)


class Shipping:
    """A log to a file and to a server."""

    def __init__(self, path: Path, url: str, key: str | None = KEY, **bounds: int) -> None:
        self._path = path
        self._stream = open(path, "w")  # noqa: SIM115  # closed by close()
        self.logger = build_logger(self._stream, True, logging.DEBUG)
        self.log = EventLog(self.logger)
        self.server = Server(url, Secret(f"me:{PASSWORD}"), None if key is None else Secret(key))
        self.handler = SeqHandler(self.server, SeqEvents(self.log, self.server, "GOFR_DIG"), Backlog(**bounds))
        self.logger.addHandler(self.handler)

    def emit(self, count: int, first: int = 0, **fields: object) -> None:
        for number in range(first, first + count):
            self.log.info("storage_manager.test", f"number {number}", number=number, **fields)

    def told(self, what: str = "") -> list[dict[str, Any]]:
        """The events about shipping that the other handler got, or those of one key."""
        key = f"storage_manager.seq.{what}"
        return [item for item in events(self._path.read_text()) if item["event"].startswith(key)]

    def wait_until_told(self, what: str) -> None:
        wait_until(lambda: self.told(what))

    def close(self) -> None:
        close_logger(self.logger)
        self._stream.close()
        thread = self.handler._thread
        if thread is not None:
            thread.join(seq_server.PATIENCE_SECS)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + seq_server.PATIENCE_SECS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def ship(tmp_path: Path) -> Iterator[Callable[..., Shipping]]:
    started: list[Shipping] = []

    def start(url: str, **options: Any) -> Shipping:
        started.append(Shipping(tmp_path / f"events{len(started)}", url, **options))
        return started[-1]

    yield start
    for shipping in started:
        shipping.close()


def numbers(server: SeqServer) -> list[int]:
    """Of the test's own events that arrived."""
    return [item["number"] for item in server.events if item["event"] == "storage_manager.test"]


# --- What is shipped


def test_an_event_arrives_as_the_other_handlers_have_it(ship: Callable[..., Shipping], tmp_path: Path) -> None:
    with seq_server.seq_server() as server:
        shipping = ship(server.url)
        shipping.log.warning(
            "storage_manager.test", "größe {x} \ud800", **{"@t": 1, "guid": "a\nb", "nan": float("nan")}
        )
        shipping.close()
    assert server.lines == (tmp_path / "events0").read_bytes().splitlines()
    assert server.events[0]["@@t"] == 1
    assert server.requests[0].headers["x-seq-apikey"] == KEY


def test_every_level_is_shipped_whatever_standard_error_shows(ship: Callable[..., Shipping]) -> None:
    with seq_server.seq_server() as server:
        shipping = ship(server.url)
        shipping.logger.handlers[0].setLevel(logging.CRITICAL)
        for level in ("info", "warning", "error"):
            getattr(shipping.log, level)("storage_manager.test", level)
        shipping.close()
    assert [item["@l"] for item in server.events] == ["Information", "Warning", "Error"]


def test_thousands_arrive_in_order_in_batches(ship: Callable[..., Shipping]) -> None:
    with seq_server.seq_server() as server:
        shipping = ship(server.url)
        shipping.emit(5500)
        shipping.close()
    assert numbers(server) == list(range(5500))
    assert max(len(request.lines) for request in server.requests) <= 1000
    assert len(server.requests) < 50
    assert shipping.told() == []


def test_a_batch_of_large_events_has_a_megabyte_at_most(ship: Callable[..., Shipping]) -> None:
    with seq_server.seq_server() as server:
        shipping = ship(server.url)
        shipping.emit(30, padding="x" * 100_000)
        shipping.close()
    assert numbers(server) == list(range(30))
    assert max(len(request.body) for request in server.requests) <= backlog.BATCH_BYTES


def test_events_are_gathered_and_sent_without_being_asked(
    ship: Callable[..., Shipping], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler, "GATHER_SECS", 0.3)
    with seq_server.seq_server() as server:
        shipping = ship(server.url)
        shipping.emit(20)
        server.wait_for(lambda: len(server.lines) == 20)
        assert len(server.requests) == 1
        shipping.emit(1, first=20)
        server.wait_for(lambda: len(server.lines) == 21)


def test_a_full_batch_does_not_wait(ship: Callable[..., Shipping], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "GATHER_SECS", 1000.0)
    with seq_server.seq_server() as server:
        shipping = ship(server.url)
        shipping.emit(1000)
        server.wait_for(lambda: len(server.lines) == 1000)
        shipping.emit(999, first=1000)
        shipping.close()  # and neither does the end
    assert numbers(server) == list(range(1999))


def test_several_threads_may_log(ship: Callable[..., Shipping]) -> None:
    with seq_server.seq_server() as server:
        shipping = ship(server.url)
        threads = [threading.Thread(target=shipping.emit, args=(500, base)) for base in (0, 1000, 2000)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        shipping.close()
    assert sorted(numbers(server)) == [base + number for base in (0, 1000, 2000) for number in range(500)]


def test_no_thread_is_started_for_nothing(ship: Callable[..., Shipping]) -> None:
    before = set(threading.enumerate())  # one of a test before may be about to end
    shipping = ship("http://127.0.0.1:9")
    shipping.close()
    assert set(threading.enumerate()) <= before
    assert shipping.told() == []


def test_when_no_thread_can_be_started_the_events_wait(
    ship: Callable[..., Shipping], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with seq_server.seq_server() as server:
        shipping = ship(server.url)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            shipping.emit(3)
        monkeypatch.setattr(shipping.handler, "_start_again_at", 0.0)
        shipping.emit(1, first=3)
        shipping.close()
    assert numbers(server) == [0, 1, 2, 3]


# --- Events that the server does not want


def test_an_event_that_is_too_large_is_not_sent_and_told(ship: Callable[..., Shipping]) -> None:
    with seq_server.seq_server() as server:
        shipping = ship(server.url)
        shipping.emit(1)
        shipping.emit(1, first=1, padding="PRIVATE" * 40_000)
        shipping.emit(1, first=2, padding="x" * (handler.EVENT_BYTES - 1000))
        shipping.close()
    assert numbers(server) == [0, 2]
    [told] = shipping.told()
    assert (told["event"], told["@l"]) == ("storage_manager.seq.rejected", "Warning")
    assert (told["rejected_count"], told["rejected_event"]) == (1, "storage_manager.test")
    assert "256.0 KB" in told["reason"] and "PRIVATE" not in json.dumps(told)
    assert "storage_manager.seq.rejected" in server.keys


@pytest.mark.parametrize("status", [400, 413])
def test_a_rejected_event_does_not_cost_its_batch(ship: Callable[..., Shipping], status: int) -> None:
    def bad(line: bytes) -> bool:
        return b'"number":77}' in line or b'"number":501,' in line

    with seq_server.seq_server(seq_server.reject_if(bad, status, "line 3\nis bad")) as server:
        shipping = ship(server.url)
        shipping.emit(500)
        shipping.log.info("storage_manager.test", "PRIVATE", number=501, last=0)
        shipping.emit(400, first=502)
        shipping.close()
    assert numbers(server) == [number for number in range(902) if number not in (77, 500, 501)]
    told = shipping.told()
    assert sum(item["rejected_count"] for item in told) == 2
    for item in told:
        assert item["event"] == "storage_manager.seq.rejected"
        assert item["reason"] == f"HTTP {status}: line 3\\x0ais bad"
        assert "PRIVATE" not in json.dumps(item)


def test_a_report_that_is_rejected_itself_is_not_reported(ship: Callable[..., Shipping]) -> None:
    # The error text comes back in the report, and makes the server refuse the report as well.
    with seq_server.seq_server(seq_server.reject_if(lambda line: b"POISON" in line, 400, "POISON")) as server:
        shipping = ship(server.url)
        shipping.log.info("storage_manager.test", "POISON", number=1)
        server.wait_for(lambda: len(server.requests) >= 2)
        shipping.emit(1, first=2)
        server.wait_for(lambda: numbers(server) == [2])
        shipping.close()
    assert len(shipping.told()) == 1
    assert len(server.requests) < 8


def test_a_server_that_refuses_everything_is_told_once_and_asked_seldom(
    ship: Callable[..., Shipping], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler, "LONGEST_BACKOFF_SECS", 1000.0)
    with seq_server.seq_server(seq_server.always(400, {"Error": "no"})) as server:
        shipping = ship(server.url)
        shipping.emit(1000)
        shipping.wait_until_told("failed")
        assert len(server.requests) < 40
        shipping.emit(1000)
        shipping.close()
    assert len(shipping.told("failed")) == 1


# --- Levels


def test_a_least_level_is_honoured_and_raised_and_lowered(ship: Callable[..., Shipping]) -> None:
    with seq_server.seq_server(seq_server.accept_at("Warning")) as server:
        shipping = ship(server.url)
        shipping.emit(1)
        wait_until(lambda: shipping.handler.level == logging.WARNING)
        shipping.emit(10, first=1)
        server.behaviour = seq_server.accept_at("Error")
        shipping.log.warning("storage_manager.test", "x", number=100)
        wait_until(lambda: shipping.handler.level == logging.ERROR)
        server.behaviour = seq_server.accept
        shipping.log.warning("storage_manager.test", "x", number=101)
        shipping.log.error("storage_manager.test", "x", number=102)
        wait_until(lambda: shipping.handler.level == logging.DEBUG)
        shipping.emit(1, first=103)
        shipping.close()
    assert numbers(server) == [0, 100, 102, 103]


def test_a_least_level_is_forgotten_after_a_time(
    ship: Callable[..., Shipping], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler, "LEVEL_SECS", 0.1)
    with seq_server.seq_server(seq_server.first(1, seq_server.accept_at("Fatal"))) as server:
        shipping = ship(server.url)
        shipping.emit(1)
        wait_until(lambda: shipping.handler.level == logging.CRITICAL)
        wait_until(lambda: shipping.handler.level == logging.DEBUG)
        shipping.emit(1, first=1)
        shipping.close()
    assert numbers(server) == [0, 1]


@pytest.mark.parametrize("level", ["Verbose", "Debug", "nonsense", ""])
def test_a_level_that_excludes_nothing_excludes_nothing(ship: Callable[..., Shipping], level: str) -> None:
    with seq_server.seq_server(seq_server.accept_at(level)) as server:
        shipping = ship(server.url)
        shipping.emit(1)
        server.wait_for(lambda: len(server.lines) == 1)
        shipping.log._emit(logging.DEBUG, "storage_manager.test", "x", {"number": 1})
        shipping.close()
    assert numbers(server) == [0, 1]


# --- A server in trouble

TROUBLE = {
    "500": seq_server.always(500, {"Error": "x"}),
    "503": seq_server.always(503),
    "408": seq_server.always(408),
    "401": seq_server.always(401, {"Error": "x"}),
    "403": seq_server.always(403),
    "404": seq_server.always(404),
    "302": seq_server.always(302, None, Location="http://127.0.0.1:9/"),
    "reset": seq_server.reset,
    "garbage": seq_server.say(b"garbage\r\n\r\n"),
    "giant header": seq_server.say(b"HTTP/1.1 201 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"),
    "not Seq": seq_server.say(b"HTTP/1.1 200 OK\r\n\r\n<html>hello</html>"),
}


@pytest.mark.parametrize("behaviour", TROUBLE.values(), ids=TROUBLE)
def test_trouble_is_told_once_and_nothing_is_lost(
    ship: Callable[..., Shipping], behaviour: seq_server.Behaviour
) -> None:
    with seq_server.seq_server(behaviour) as server:
        shipping = ship(server.url)
        shipping.emit(3)
        server.wait_for(lambda: len(server.requests) >= 4)
        assert [item["event"] for item in shipping.told()] == ["storage_manager.seq.failed"]
        server.behaviour = seq_server.accept
        shipping.wait_until_told("recovered")
        shipping.emit(2, first=3)
        shipping.close()
    assert numbers(server) == [0, 1, 2, 3, 4]
    failed, recovered = shipping.told()
    assert (failed["@l"], recovered["@l"]) == ("Warning", "Information")
    assert failed["seq_url"] == server.url and failed["reason"]
    assert recovered["dropped_count"] == 0
    assert [key for key in server.keys if ".seq." in key] == [failed["event"], recovered["event"]]


def test_a_server_that_hangs_is_given_up_and_asked_again(
    ship: Callable[..., Shipping], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler, "REQUEST_SECS", 0.2)
    with seq_server.seq_server(seq_server.first(2, seq_server.hang)) as server:
        shipping = ship(server.url)
        shipping.emit(3)
        shipping.wait_until_told("recovered")
    assert numbers(server) == [0, 1, 2]
    assert [item["reason"] for item in shipping.told("failed")] == ["no answer in time"]


def test_a_second_outage_is_told_again(ship: Callable[..., Shipping]) -> None:
    with seq_server.seq_server(seq_server.first(1, seq_server.reset)) as server:
        shipping = ship(server.url)
        shipping.emit(1)
        shipping.wait_until_told("recovered")
        server.behaviour = seq_server.always(503)
        shipping.emit(1)
        wait_until(lambda: len(shipping.told("failed")) == 2)


def test_another_kind_of_failure_is_told_too(ship: Callable[..., Shipping]) -> None:
    with seq_server.seq_server(seq_server.first(2, seq_server.reset, seq_server.always(401))) as server:
        shipping = ship(server.url)
        shipping.emit(1)
        server.wait_for(lambda: len(server.requests) >= 6)
        assert [item["status"] for item in shipping.told("failed")] == [None, 401]


@pytest.mark.parametrize(("key", "hint"), [(KEY, "check GOFR_DIG_SEQ_API_KEY"), (None, "set GOFR_DIG_SEQ_API_KEY")])
def test_a_key_that_is_refused_names_the_variable(ship: Callable[..., Shipping], key: str | None, hint: str) -> None:
    with seq_server.seq_server(seq_server.always(401)) as server:
        shipping = ship(server.url, key=key)
        shipping.emit(1)
        shipping.wait_until_told("failed")
    assert hint in shipping.told()[0]["@m"]
    assert "GOFR_DIG_SEQ_URL" in shipping.told()[0]["@m"]  # the password may be what is wrong


def test_a_limited_client_waits_and_does_not_complain_at_once(ship: Callable[..., Shipping]) -> None:
    limit = seq_server.always(429, None, Retry_After="0")
    with seq_server.seq_server(seq_server.first(handler.LIMITED_IN_A_ROW - 1, limit)) as server:
        shipping = ship(server.url)
        shipping.emit(1)
        server.wait_for(lambda: len(server.lines) == 1)
        server.behaviour = limit
        shipping.emit(1)
        shipping.wait_until_told("failed")
    assert len(server.requests) >= 2 * handler.LIMITED_IN_A_ROW
    assert [item["event"] for item in shipping.told()][0] == "storage_manager.seq.failed"


def test_the_pauses_grow_to_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    down = Answer(Verdict.UNAVAILABLE)
    for failures, longest in ((1, 5), (2, 10), (3, 20), (4, 40), (5, 60), (6, 60), (10_000, 60)):
        pauses = [handler._pause_secs(down, failures) for _ in range(200)]
        assert 0.8 * longest <= min(pauses) < max(pauses) <= longest
    assert handler._pause_secs(Answer(Verdict.UNAUTHORISED), 1) == 60
    assert handler._pause_secs(Answer(Verdict.MISDIRECTED), 1) == 60
    assert handler._pause_secs(Answer(Verdict.UNAVAILABLE, retry_after_secs=7.0), 5) == 7
    assert handler._pause_secs(Answer(Verdict.UNAVAILABLE, retry_after_secs=0.0), 5) == 1


def test_between_attempts_there_is_a_pause_however_much_is_logged(
    ship: Callable[..., Shipping], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler, "BACKOFF_SECS", 1000.0)
    monkeypatch.setattr(handler, "LONGEST_BACKOFF_SECS", 1000.0)
    with seq_server.seq_server(seq_server.always(503)) as server:
        shipping = ship(server.url)
        shipping.emit(1)
        shipping.wait_until_told("failed")
        shipping.emit(5000)
        shipping.close()
    assert len(server.requests) == 2  # and one at the end


# --- Bounds


def test_an_outage_costs_the_oldest_and_tells_how_many(ship: Callable[..., Shipping]) -> None:
    with seq_server.seq_server(seq_server.always(503)) as server:
        shipping = ship(server.url, max_events=100)
        shipping.emit(1)
        shipping.wait_until_told("failed")
        shipping.emit(1000, first=1)
        server.behaviour = seq_server.accept
        shipping.wait_until_told("recovered")
        shipping.close()
    found = numbers(server)
    assert found == list(range(1001))[-len(found) :]
    assert 90 <= len(found) <= 100
    [recovered] = shipping.told("recovered")
    # The report of the failure went as well: it was older than what is left.
    assert recovered["dropped_count"] == 1001 + 1 - len(found)
    assert shipping.told("dropped") == []


def test_what_waits_is_bounded_in_bytes(ship: Callable[..., Shipping]) -> None:
    shipping = ship(f"http://127.0.0.1:{seq_server.free_port()}", max_bytes=1_000_000)
    shipping.emit(3000, padding="x" * 2000)
    assert shipping.handler._backlog._bytes <= 1_000_000
    shipping.close()
    assert sum(item["dropped_count"] for item in shipping.told("dropped")) >= 3000


def test_a_server_that_is_too_slow_is_told_with_the_number_that_went(ship: Callable[..., Shipping]) -> None:
    def slow(server: SeqServer, exchange: Exchange, request: Request) -> Reply | None:
        go_on.wait(seq_server.PATIENCE_SECS)
        return seq_server.accept(server, exchange, request)

    go_on = threading.Event()
    with seq_server.seq_server(slow) as server:
        shipping = ship(server.url, max_events=100)
        shipping.emit(1)
        server.wait_for(lambda: len(server.requests) == 1)
        shipping.emit(250, first=1)
        go_on.set()
        shipping.close()
    assert numbers(server) == [0, *range(151, 251)]
    [told] = shipping.told()
    assert (told["event"], told["dropped_count"], told["reason"]) == ("storage_manager.seq.dropped", 150, "queue_full")


# --- The end


def close_secs(shipping: Shipping) -> float:
    started = time.monotonic()
    close_logger(shipping.logger)
    return time.monotonic() - started


def test_the_end_waits_for_nothing_when_nothing_waits(ship: Callable[..., Shipping]) -> None:
    with seq_server.seq_server() as server:
        shipping = ship(server.url)
        shipping.emit(1)
        server.wait_for(lambda: len(server.lines) == 1)
        wait_until(lambda: not shipping.handler._in_flight_count)
        server.behaviour = seq_server.hang
        assert close_secs(shipping) < 0.5
    assert shipping.told() == []


@pytest.mark.usefixtures("short_end")
def test_a_server_that_hangs_does_not_hold_the_end_up(ship: Callable[..., Shipping]) -> None:
    with seq_server.seq_server(seq_server.hang) as server:
        shipping = ship(server.url)
        shipping.emit(5)
        assert close_secs(shipping) < 1.5
        failed, dropped = shipping.told()
    assert failed["event"] == "storage_manager.seq.failed"
    assert (dropped["event"], dropped["dropped_count"], dropped["reason"]) == ("storage_manager.seq.dropped", 5, "exit")


@pytest.mark.usefixtures("short_end")
def test_a_request_that_has_been_hanging_does_not_hold_the_end_up(ship: Callable[..., Shipping]) -> None:
    with seq_server.seq_server(seq_server.hang) as server:
        shipping = ship(server.url)
        shipping.emit(5)
        server.wait_for(lambda: server.requests)
        shipping.emit(2, first=5)
        assert close_secs(shipping) < 1.5
        [dropped] = shipping.told("dropped")
    assert dropped["dropped_count"] == 7


@pytest.mark.usefixtures("short_end")
def test_a_lookup_that_hangs_does_not_hold_the_end_up(
    ship: Callable[..., Shipping], monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def getaddrinfo(*arguments: Any, **options: Any) -> Any:
        released.wait(seq_server.PATIENCE_SECS)
        raise OSError

    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    shipping = ship("http://seq.invalid")
    shipping.emit(5)
    assert close_secs(shipping) < 1.5
    assert shipping.told("dropped")[0]["dropped_count"] == 5
    released.set()


def test_a_server_that_is_known_to_be_down_gets_one_quick_attempt_at_the_end(
    ship: Callable[..., Shipping], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler, "BACKOFF_SECS", 1000.0)
    monkeypatch.setattr(handler, "LONGEST_BACKOFF_SECS", 1000.0)
    with seq_server.seq_server(seq_server.first(1, seq_server.reset, seq_server.hang)) as server:
        shipping = ship(server.url)
        shipping.emit(1)
        shipping.wait_until_told("failed")
        assert close_secs(shipping) < handler.LAST_TRY_SECS + handler.GRACE_SECS + 0.5
        server.wait_for(lambda: len(server.requests) == 2)  # its thread may come to it later than the sender gave up


def test_a_server_that_came_back_gets_all_at_the_end(
    ship: Callable[..., Shipping], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handler, "BACKOFF_SECS", 1000.0)
    monkeypatch.setattr(handler, "LONGEST_BACKOFF_SECS", 1000.0)
    with seq_server.seq_server(seq_server.first(1, seq_server.reset)) as server:
        shipping = ship(server.url)
        shipping.emit(1)
        shipping.wait_until_told("failed")
        shipping.emit(2000, first=1)
        shipping.close()
    assert numbers(server) == list(range(2001))
    assert [item["event"] for item in shipping.told()][-1] == "storage_manager.seq.recovered"


def test_a_server_that_comes_back_while_the_end_begins_gets_all(ship: Callable[..., Shipping]) -> None:
    def go_down_at_the_end(server: SeqServer, exchange: Exchange, request: Request) -> None:
        wait_until(lambda: shipping.handler._closing)
        exchange.reset()

    with seq_server.seq_server(seq_server.first(1, go_down_at_the_end)) as server:
        shipping = ship(server.url)
        shipping.emit(3)
        server.wait_for(lambda: server.requests)
        shipping.close()
    assert numbers(server) == [0, 1, 2]
    assert shipping.told("dropped") == []


def test_a_port_that_nobody_listens_on_does_not_delay_the_end(ship: Callable[..., Shipping]) -> None:
    shipping = ship(f"http://127.0.0.1:{seq_server.free_port()}")
    shipping.emit(5)
    assert close_secs(shipping) < 1.5
    assert shipping.told("dropped")[0]["dropped_count"] == 5


def test_at_the_end_no_wait_is_so_long_that_a_signal_would_have_to_wait(
    ship: Callable[..., Shipping], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes between the last look for signals and the wait itself is seen after the wait."""
    with seq_server.seq_server(seq_server.hang) as server:
        shipping = ship(server.url)
        shipping.emit(5)
        server.wait_for(lambda: server.requests)
        wait, waited = shipping.handler._changed.wait, []

        def noted(secs: float | None = None) -> bool:
            if threading.current_thread() is threading.main_thread():
                waited.append(secs)
                if len(waited) == 3:
                    raise Interrupted(signal.SIGTERM)  # as its handler does
            return wait(secs)

        monkeypatch.setattr(shipping.handler._changed, "wait", noted)
        assert close_secs(shipping) < 1.5
    assert waited == [handler.SLICE_SECS] * 3
    assert shipping.told("dropped")[0]["dropped_count"] == 5


def test_a_signal_before_the_end_has_begun_leaves_no_second_one(
    ship: Callable[..., Shipping], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise Interrupted(signal.SIGTERM)

    with seq_server.seq_server(seq_server.hang) as server:
        shipping = ship(server.url)
        shipping.emit(1)
        server.wait_for(lambda: server.requests)
        with monkeypatch.context() as patch:
            patch.setattr(shipping.handler, "_flush", interrupt)
            shipping.handler.close()
        assert close_secs(shipping) < 0.5


def test_closing_twice_changes_nothing(ship: Callable[..., Shipping]) -> None:
    shipping = ship(f"http://127.0.0.1:{seq_server.free_port()}")
    shipping.emit(1)
    shipping.close()
    shipping.handler.close()
    shipping.handler.flush()
    assert len(shipping.told("dropped")) == 1


def test_a_fault_in_the_thread_is_told_and_shipping_goes_on(
    ship: Callable[..., Shipping], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with seq_server.seq_server() as server:
        shipping = ship(server.url)

        def fail(*arguments: object) -> None:
            raise ZeroDivisionError(KEY)

        with monkeypatch.context() as patch:
            patch.setattr(handler, "deliver", fail)
            shipping.emit(3)
            shipping.wait_until_told("failed")
        shipping.wait_until_told("recovered")
        shipping.close()
    assert numbers(server) == [0, 1, 2]
    assert shipping.told("failed")[0]["reason"] == "internal error: ZeroDivisionError"
    assert capfd.readouterr() == ("", "")


# --- The command line


def shipping_to(server: SeqServer | str, **more: str) -> dict[str, str]:
    url = server if isinstance(server, str) else server.url
    return {"GOFR_DIG_SEQ_URL": url, "GOFR_DIG_SEQ_API_KEY": KEY, **more}


def test_the_url_alone_switches_shipping_on(storage: Path) -> None:
    make_store(storage, 1)
    with seq_server.seq_server() as server:
        done = run_tool("list", "--storage-dir", storage, env={"GOFR_DIG_SEQ_URL": server.url})
    assert server.events == events(done.stderr)
    assert "x-seq-apikey" not in server.requests[0].headers


def test_what_standard_error_does_not_show_is_shipped_all_the_same(storage: Path) -> None:
    make_store(storage, 1)
    with seq_server.seq_server() as server:
        done = run_tool("list", "--storage-dir", storage, "--log-level", "CRITICAL", env=shipping_to(server))
    assert done.stderr == ""
    assert server.keys == [
        "storage_manager.command_start",
        "storage_manager.list.summary",
        "storage_manager.command_end",
    ]


def test_without_the_url_nothing_is_shipped_nor_imported(storage: Path) -> None:
    make_store(storage, 1)
    with seq_server.seq_server() as server:
        code = (
            "import sys; from storage_manager.cli import main; main(sys.argv[1:])\n"
            "print([name for name in sys.modules if name in ('urllib.request', 'storage_manager.seq.handler', 'ssl')])"
        )
        environment = stores.clean_environment({"GOFR_DIG_SEQ_API_KEY": KEY})
        command = [sys.executable, "-c", code, "list", "--storage-dir", str(storage)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert server.requests == []


def test_a_prune_ships_every_event_in_order_as_clef(storage: Path, tmp_path: Path) -> None:
    guids = make_store(storage, 3000, size=10)
    log = tmp_path / "log"
    with seq_server.seq_server() as server:
        done = run_tool(
            "prune-size", "--max-mb", "1000B", "--storage-dir", storage, "--log-level", "ERROR",
            env=shipping_to(server, GOFR_DIG_LOG_FILE=str(log)),
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert server.events == events(log.read_text())
    deleted = [item["guid"] for item in server.events if item["event"] == "storage_manager.prune.deleted"]
    assert deleted == guids[:2900]
    for item in server.events:
        assert {"@t", "@m", "@l", "event", "run_id"} <= set(item)
    assert {request.headers["x-seq-apikey"] for request in server.requests} == {KEY}


def test_the_archive_ships_as_well(storage: Path, tmp_path: Path) -> None:
    make_store(storage, 5, size=1000)
    archive = tmp_path / "storage_manager.pyz"
    build = [sys.executable, str(stores.ROOT / "build_zipapp.py"), "--output", str(archive)]
    subprocess.run(build, env=stores.clean_environment(), capture_output=True, check=True)
    with seq_server.seq_server() as server:
        done = subprocess.run(
            [sys.executable, archive, "prune-size", "--max-mb", "2000B", "--storage-dir", storage],
            env={**stores.clean_environment(shipping_to(server)), "PYTHONPATH": ""},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert server.events == events(done.stderr)
    assert server.keys.count("storage_manager.prune.deleted") == 3


def test_wrong_usage_is_shipped_too(storage: Path) -> None:
    with seq_server.seq_server() as server:
        done = run_tool("prune-size", "--frobnicate", env=shipping_to(server))
    assert done.returncode == 64
    assert server.keys == ["storage_manager.prune.validation_failed"]


def test_a_probe_ships_nothing(storage: Path) -> None:
    with seq_server.seq_server() as server:
        done = run_tool("health", "--storage-dir", storage, env=shipping_to(server))
    assert event(done.stderr, "storage_manager.health.unhealthy")
    assert server.requests == []


DOWN: dict[str, seq_server.Behaviour | None] = {
    "nobody": None,
    "silent": seq_server.hang,
    "by bytes": seq_server.drip(b"HTTP/1.1 201 Created\r\n"),
    "garbage": seq_server.say(b"\0" * 5000),
    "reset": seq_server.reset,
    "500": seq_server.always(500),
    "400": seq_server.always(400),
    "401": seq_server.always(401, {"Error": f"the key {KEY} is unknown"}),
}


@contextmanager
def down(behaviour: seq_server.Behaviour | None) -> Iterator[str]:
    """The URL, with a password in it, of a server in trouble."""
    if behaviour is None:
        yield f"http://me:{PASSWORD}@127.0.0.1:{seq_server.free_port()}"
        return
    with seq_server.seq_server(behaviour) as server:
        yield server.url.replace("//", f"//me:{PASSWORD}@")


@pytest.mark.parametrize("behaviour", DOWN.values(), ids=DOWN)
def test_whatever_the_server_does_a_prune_is_the_same_and_ends_in_time(
    storage: Path, tmp_path: Path, behaviour: seq_server.Behaviour | None
) -> None:
    guids = make_store(storage, 50, size=100)
    log = tmp_path / "log"
    # One of the two that are silent waits to the real end.
    constants = {"seq.handler.FLUSH_SECS": 0.5} if behaviour is DOWN["by bytes"] else {}
    with down(behaviour) as url:
        started = time.monotonic()
        done = stores.run_command(
            stores.hurried_command(constants, "prune-size", "--max-mb", "2000B", "--storage-dir", storage),
            env=shipping_to(url, GOFR_DIG_LOG_FILE=str(log)),
        )
        took_secs = time.monotonic() - started
    assert done.returncode == 0
    assert done.stdout == "deleted 30 sessions, 2.9 KB; 2.0 KB remain\n"
    assert stores.blobs(storage) == set(stores.read_entries(storage)) == set(guids[30:])
    assert took_secs < 5 + 3  # what it takes without a server, on a slow machine
    told = [item["event"] for item in events(done.stderr) if ".seq." in item["event"]]
    assert told[-1] == "storage_manager.seq.dropped"
    # A request that was on its way before the end may still be when the time is over.
    assert told.count("storage_manager.seq.failed") <= 1
    assert "storage_manager.seq.failed" in told or behaviour in (DOWN["silent"], DOWN["by bytes"])
    shown = done.stdout + done.stderr + log.read_text()
    for secret in (KEY, PASSWORD):
        assert secret not in shown


def start_loop(storage: Path, env: dict[str, str], **constants: float) -> subprocess.Popen[str]:
    hurry = {"GATHER_SECS": 0.02, **constants}
    return subprocess.Popen(
        stores.hurried_command({f"seq.handler.{name}": secs for name, secs in hurry.items()}, "run-loop"),
        env=stores.clean_environment({**env, "GOFR_DIG_STORAGE": str(storage)}),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_the_loop_ships_as_it_goes_and_shows_no_secret(storage: Path) -> None:
    make_store(storage, 3)
    with seq_server.seq_server() as server:
        loop = start_loop(storage, shipping_to(server.url.replace("//", f"//me:{PASSWORD}@")))
        try:
            server.wait_for(lambda: "housekeeper.sleep" in server.keys)
            line = Path(f"/proc/{loop.pid}/cmdline").read_text()
            loop.send_signal(signal.SIGUSR1)
            server.wait_for(lambda: server.keys.count("housekeeper.sleep") == 2)
        finally:
            loop.terminate()
            _, stderr = loop.communicate(timeout=seq_server.PATIENCE_SECS)
    assert loop.returncode == 0
    assert server.events == events(stderr)
    assert server.keys[-1] == "storage_manager.command_end"
    for secret in (KEY, PASSWORD):
        assert secret not in line + stderr


def test_a_server_that_hangs_does_not_hold_the_loop_up(storage: Path) -> None:
    make_store(storage, 3)
    with seq_server.seq_server(seq_server.hang) as server:
        loop = start_loop(storage, shipping_to(server), FLUSH_SECS=0.3, GRACE_SECS=0.2)
        assert loop.stderr is not None
        try:
            server.wait_for(lambda: server.requests)
            lines = []
            for _ in range(2):  # the cycle at the start, and one that is asked for meanwhile
                for line in loop.stderr:
                    lines.append(line)
                    if '"housekeeper.sleep"' in line:
                        break
                loop.send_signal(signal.SIGUSR1)
            started = time.monotonic()
        finally:
            loop.terminate()
            _, rest = loop.communicate(timeout=seq_server.PATIENCE_SECS)
    assert time.monotonic() - started < 2.5
    assert loop.returncode == 0
    assert event("".join(lines) + rest, "storage_manager.seq.dropped")["dropped_count"] > 10


def test_a_second_signal_ends_the_wait(storage: Path) -> None:
    make_store(storage, 3)
    with seq_server.seq_server(seq_server.hang) as server:
        loop = start_loop(storage, shipping_to(server))
        assert loop.stderr is not None
        try:
            server.wait_for(lambda: server.requests)
            loop.terminate()
            for line in loop.stderr:
                if '"storage_manager.command_end"' in line:
                    break
            started = time.monotonic()
        finally:
            loop.terminate()
            _, rest = loop.communicate(timeout=seq_server.PATIENCE_SECS)
        took_secs = time.monotonic() - started
    assert loop.returncode == 0
    assert took_secs < handler.LAST_TRY_SECS
    assert event(rest, "storage_manager.seq.dropped")["reason"] == "exit"


def test_a_signal_right_before_the_wait_prevents_it(ship: Callable[..., Shipping]) -> None:
    with seq_server.seq_server(seq_server.hang) as server:
        shipping = ship(server.url)
        shipping.emit(5)
        with pytest.raises(Interrupted):
            try:
                raise Interrupted(signal.SIGTERM)
            finally:
                took_secs = close_secs(shipping)
    assert took_secs < 0.5
    assert shipping.told("dropped")[0]["dropped_count"] == 5


def test_a_signal_while_it_waits_does_not_change_what_the_command_has_done(storage: Path) -> None:
    make_store(storage, 5, size=1000)
    with seq_server.seq_server(seq_server.hang) as server:
        prune = subprocess.Popen(
            stores.command("prune-size", "--max-mb", "2000B", "--storage-dir", storage),
            env=stores.clean_environment(shipping_to(server)), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        server.wait_for(lambda: server.requests)
        prune.send_signal(signal.SIGINT)
        stdout, stderr = prune.communicate(timeout=seq_server.PATIENCE_SECS)
    assert prune.returncode == 0
    assert stdout == "deleted 3 sessions, 2.9 KB; 2.0 KB remain\n"
    assert event(stderr, "storage_manager.command_end")["exit_code"] == 0
    assert "Traceback" not in stderr


def test_an_internal_error_shows_no_secret(storage: Path, tmp_path: Path) -> None:
    make_store(storage, 1)
    code = (
        "import sys\n"
        "from storage_manager import cli\n"
        "from storage_manager.commands import stats\n"
        "def run(args, context): raise RuntimeError(repr(context.settings) + repr(context))\n"
        "stats.run = run\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    with down(None) as url:
        done = subprocess.run(
            [sys.executable, "-c", code, "stats", "--storage-dir", str(storage)],
            env=stores.clean_environment(shipping_to(url)), capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" in event(done.stderr, "storage_manager.command_failed")["@x"]
    assert "127.0.0.1" in done.stderr
    for secret in (KEY, PASSWORD):
        assert secret not in done.stderr + done.stdout


def test_a_closed_standard_error_does_not_keep_events_from_seq(storage: Path) -> None:
    make_store(storage, 1)
    with seq_server.seq_server() as server:
        run_tool("list", "--storage-dir", storage, env=shipping_to(server), preexec_fn=lambda: os.close(2))
    assert server.keys[-1] == "storage_manager.command_end"


def test_the_figures_of_the_documents_are_those_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert (handler.GATHER_SECS, handler.REQUEST_SECS, handler.BACKOFF_SECS, handler.LONGEST_BACKOFF_SECS) == (
        2,
        10,
        5,
        60,
    )
    assert handler.EVENT_BYTES == 256 * 1024
    assert handler.CLOSE_SECS <= 4
    assert handler.LEVEL_SECS == 120
