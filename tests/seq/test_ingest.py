"""One request: what each answer means, how long it may take, and that no secret gets out."""

from __future__ import annotations

import base64
import gc
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import seq_server
from seq_server import Reply, SeqServer

from storage_manager import __version__
from storage_manager.seq.delivery import Answer, Verdict
from storage_manager.seq.ingest import LONGEST_RETRY_AFTER_SECS, SHOWN_CHARACTERS, Ingest
from storage_manager.seq.server import Secret
from storage_manager.seq.server import SeqServer as Server

KEY = "the/secret key"
USER_INFO = "someone:pass word"
BODY = b'{"@t":"2026-01-01T00:00:00Z","@m":"x"}\n'

# Longer than any of these answers takes, shorter than a test may.
LONG_SECS = 20.0
SHORT_SECS = 0.5


def ingest(url: str, key: str | None = KEY, user_info: str | None = USER_INFO) -> Ingest:
    return Ingest(Server(url, None if user_info is None else Secret(user_info), None if key is None else Secret(key)))


def answer_to(behaviour: seq_server.Behaviour, secs: float = LONG_SECS) -> Answer:
    with seq_server.seq_server(behaviour) as server:
        return ingest(server.url).post(BODY, secs)


def test_a_request_is_what_seq_expects() -> None:
    with seq_server.seq_server() as server:
        answer = ingest(server.url).post(BODY, LONG_SECS)
    assert answer == Answer(Verdict.ACCEPTED, "", 201)
    [request] = server.requests
    assert (request.method, request.path, request.body) == ("POST", "/ingest/clef", BODY)
    assert request.headers["content-type"] == "application/vnd.serilog.clef"
    assert request.headers["x-seq-apikey"] == KEY
    assert request.headers["authorization"] == "Basic " + base64.b64encode(USER_INFO.encode()).decode()
    assert request.headers["host"] == f"127.0.0.1:{server.port}"
    assert request.headers["user-agent"] == f"storage_manager/{__version__}"


def test_without_key_and_user_no_header_says_so() -> None:
    with seq_server.seq_server() as server:
        ingest(server.url, None, None).post(BODY, LONG_SECS)
    assert not {"x-seq-apikey", "authorization"} & set(server.requests[0].headers)


def test_a_path_of_the_url_stays_in_front() -> None:
    with seq_server.seq_server(seq_server.always(201)) as server:
        ingest(server.url + "/logs").post(BODY, LONG_SECS)
    assert server.requests[0].path == "/logs/ingest/clef"


def test_a_proxy_of_the_environment_does_not_get_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with seq_server.seq_server() as proxy, seq_server.seq_server() as server:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert ingest(server.url).post(BODY, LONG_SECS).verdict is Verdict.ACCEPTED
    assert proxy.requests == []


def test_a_large_batch_arrives_whole() -> None:
    body = BODY * 50_000
    with seq_server.seq_server() as server:
        assert ingest(server.url).post(body, LONG_SECS).verdict is Verdict.ACCEPTED
    assert server.requests[0].body == body


# --- Answers


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (200, Verdict.ACCEPTED),
        (201, Verdict.ACCEPTED),
        (202, Verdict.ACCEPTED),
        (204, Verdict.ACCEPTED),
        (301, Verdict.MISDIRECTED),
        (304, Verdict.MISDIRECTED),
        (307, Verdict.MISDIRECTED),
        (400, Verdict.REFUSED),
        (401, Verdict.UNAUTHORISED),
        (403, Verdict.UNAUTHORISED),
        (404, Verdict.MISDIRECTED),
        (405, Verdict.MISDIRECTED),
        (408, Verdict.UNAVAILABLE),
        (413, Verdict.REFUSED),
        (418, Verdict.MISDIRECTED),
        (429, Verdict.UNAVAILABLE),
        (500, Verdict.UNAVAILABLE),
        (503, Verdict.UNAVAILABLE),
        (599, Verdict.UNAVAILABLE),
    ],
)
def test_a_status_has_its_meaning(status: int, verdict: Verdict) -> None:
    answer = answer_to(seq_server.always(status))
    assert (answer.verdict, answer.status) == (verdict, status)
    assert (str(status) in answer.reason) is (verdict is not Verdict.ACCEPTED)


def test_the_error_that_seq_names_is_passed_on() -> None:
    assert answer_to(seq_server.always(400, {"Error": "line 3 is bad"})).reason == "HTTP 400: line 3 is bad"


def test_what_is_passed_on_is_short_and_plain() -> None:
    reason = answer_to(seq_server.always(500, {"Error": "\x1b[31m\n" + "x" * 5000})).reason
    assert reason.startswith("HTTP 500: \\x1b[31m\\x0ax")
    assert len(reason) == SHOWN_CHARACTERS


@pytest.mark.parametrize(
    ("said", "level"),
    [({"MinimumLevelAccepted": "Warning"}, "Warning"), ({"MinimumLevelAccepted": None}, None), ({}, None), (None, None),
     ({"MinimumLevelAccepted": 7}, None), ({"MinimumLevelAccepted": {}}, None)],
)  # fmt: skip
def test_the_least_level_is_passed_on(said: dict[str, Any] | None, level: str | None) -> None:
    answer = answer_to(seq_server.always(201, said))
    assert (answer.verdict, answer.minimum_level) == (Verdict.ACCEPTED, level)


@pytest.mark.parametrize(
    ("text", "secs"),
    [("7", 7.0), (" 0 ", 0.0), ("3600", LONGEST_RETRY_AFTER_SECS), ("9" * 4000, LONGEST_RETRY_AFTER_SECS), ("", None),
     ("-1", None), ("1.5", None), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("soon", None)],
)  # fmt: skip
def test_the_time_to_stay_away_is_passed_on_within_bounds(text: str, secs: float | None) -> None:
    assert answer_to(seq_server.always(429, None, Retry_After=text)).retry_after_secs == secs


def http(body: bytes, status: str = "201 Created") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


DEEP = b"[" * 60_000
CHUNKED = b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b"\xff\xfe", b"7", b"{", DEEP], ids=lambda body: repr(body[:6]))
def test_a_201_counts_whatever_its_body(body: bytes) -> None:
    assert answer_to(seq_server.say(http(body))).verdict is Verdict.ACCEPTED


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b"\xff\xfe", b"7", b"{", DEEP], ids=lambda body: repr(body[:6]))
def test_a_200_with_another_body_than_seqs_does_not_count(body: bytes) -> None:
    assert answer_to(seq_server.say(http(body, "200 OK"))).verdict is Verdict.MISDIRECTED


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b"{", DEEP, b'{"Error": 7}', b'{"Error": {}}'])
def test_an_error_with_an_odd_body_is_that_error(body: bytes) -> None:
    assert answer_to(seq_server.say(http(body, "503 x"))) == Answer(Verdict.UNAVAILABLE, "HTTP 503", 503)


# --- No answer, or nonsense

NONSENSE = {
    "not HTTP": b"220 mail.example.org ESMTP\r\n",
    "nothing": b"",
    "zeros": b"\0" * 1000,
    "half a status line": b"HTTP/1.1 20",
    "a status that is no number": b"HTTP/1.1 abc OK\r\n\r\n",
    "a status out of range": b"HTTP/1.1 99999 OK\r\n\r\n",
    "a giant header": b"HTTP/1.1 201 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    "thousands of headers": b"HTTP/1.1 201 OK\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
    "a TLS alert": b"\x15\x03\x01\x00\x02\x02\x46",
}


@pytest.mark.parametrize("data", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_a_failure_in_words(data: bytes) -> None:
    answer = answer_to(seq_server.say(data))
    assert answer.verdict is Verdict.UNAVAILABLE
    assert answer.reason


def test_a_server_that_hangs_up_is_told_as_such() -> None:
    assert answer_to(seq_server.reset).reason in (
        "Connection reset by peer (ECONNRESET)",
        "it closed the connection without an answer",
    )


def test_a_port_that_nobody_listens_on_is_told_as_such() -> None:
    answer = ingest(f"http://127.0.0.1:{seq_server.free_port()}").post(BODY, LONG_SECS)
    assert answer == Answer(Verdict.UNAVAILABLE, "Connection refused (ECONNREFUSED)")


def test_a_name_that_does_not_exist_is_told_as_such() -> None:
    answer = ingest("http://seq.invalid").post(BODY, LONG_SECS)
    assert answer.verdict is Verdict.UNAVAILABLE
    assert answer.reason.startswith("its name cannot be looked up")


@pytest.mark.parametrize(
    "behaviour",
    [
        seq_server.hang,
        seq_server.hang_after(b"HTTP/1.1 20"),
        seq_server.hang_after(b"HTTP/1.1 201 Created\r\nContent-Type: a"),
        seq_server.drip(b"HTTP/1.1 201 "),
        seq_server.drip(b"HTTP/1.1 201 Created\r\nX: "),
    ],
    ids=["silent", "in the status", "in a header", "status by bytes", "header by bytes"],
)
def test_an_answer_that_does_not_end_is_given_up_in_time(behaviour: seq_server.Behaviour) -> None:
    started = time.monotonic()
    answer = answer_to(behaviour, SHORT_SECS)
    assert answer == Answer(Verdict.UNAVAILABLE, "no answer in time")
    assert time.monotonic() - started < SHORT_SECS + 3


@pytest.mark.parametrize(
    "behaviour",
    [
        seq_server.hang_after(b"HTTP/1.1 201 Created\r\nContent-Length: 10\r\n\r\n"),
        seq_server.drip(b"HTTP/1.1 201 Created\r\n\r\n"),
        seq_server.flood(b"HTTP/1.1 201 Created\r\n\r\n", b"x" * 1000),
        seq_server.flood(CHUNKED, b"3e8\r\n" + b"x" * 1000 + b"\r\n"),
        seq_server.say(CHUNKED + b"zzz\r\n"),
        seq_server.say(b"HTTP/1.1 201 Created\r\nContent-Length: 99999999999999999999\r\n\r\n{}"),
        seq_server.say(b"HTTP/1.1 201 Created\r\nContent-Length: -5\r\n\r\n{}"),
    ],
    ids=["silent", "by bytes", "endless", "endless chunks", "odd chunks", "too short", "negative"],
)  # fmt: skip
def test_once_it_has_said_201_the_rest_may_be_missing(behaviour: seq_server.Behaviour) -> None:
    started = time.monotonic()
    assert answer_to(behaviour, SHORT_SECS).verdict is Verdict.ACCEPTED
    assert time.monotonic() - started < SHORT_SECS + 3


@pytest.mark.parametrize("more", [b"HTTP/1.1 100 Continue\r\n\r\n", b"X: y\r\n", b"x" * 100], ids=lambda more: more[:4])
def test_an_answer_without_end_is_not_listened_to(more: bytes) -> None:
    answer = answer_to(seq_server.flood(b"HTTP/1.1 201 Created\r\n" if more[:1] == b"X" else b"", more))
    assert answer.verdict is Verdict.UNAVAILABLE
    assert answer.reason.startswith("its answer is not HTTP")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_does_not_read_is_given_up_in_time(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        started = time.monotonic()
        answer = ingest(f"{scheme}://127.0.0.1:{deaf.getsockname()[1]}").post(b"x" * 50_000_000, SHORT_SECS)
    assert answer == Answer(Verdict.UNAVAILABLE, "no answer in time")
    assert time.monotonic() - started < SHORT_SECS + 3


def test_a_server_that_reads_by_drops_is_given_up_in_time() -> None:
    enough = threading.Event()

    def read() -> None:
        connection, _ = slow.accept()
        with connection:
            while not enough.wait(0.02) and connection.recv(8192):
                pass

    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)  # before listen(), so that connections have it
        slow.bind(("127.0.0.1", 0))
        slow.listen()
        reader = threading.Thread(target=read)
        reader.start()
        started = time.monotonic()
        answer = ingest(f"http://127.0.0.1:{slow.getsockname()[1]}").post(b"x" * 20_000_000, SHORT_SECS)
        took_secs = time.monotonic() - started
        enough.set()
        reader.join()
    assert answer == Answer(Verdict.UNAVAILABLE, "no answer in time")
    assert took_secs < SHORT_SECS + 3


# --- Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_no_other_host_sees_the_key(status: int) -> None:
    with seq_server.seq_server() as other:
        answer = answer_to(seq_server.always(status, None, Location=f"{other.url}/ingest/clef?apiKey={KEY}"))
    assert other.requests == []
    assert answer.verdict is Verdict.MISDIRECTED
    assert answer.reason == f"HTTP {status}, a redirect to {other.url}"


@pytest.mark.parametrize("target", ["", "/elsewhere", "http://[::1", "http://x:99999999/", "?" * 9000])
def test_a_redirect_to_nowhere_is_a_failure_in_words(target: str) -> None:
    answer = answer_to(seq_server.always(302, None, Location=target))
    assert answer.verdict is Verdict.MISDIRECTED
    assert answer.reason.startswith("HTTP 302, a redirect")


# --- Secrets


def test_a_server_that_repeats_the_secrets_does_not_get_them_into_the_log() -> None:
    def tell(server: SeqServer, exchange: seq_server.Exchange, request: seq_server.Request) -> Reply:
        heard = [request.headers["x-seq-apikey"], request.headers["authorization"], USER_INFO, "pass word", KEY.upper()]
        return Reply(401, {"Error": " ".join([*heard, "the%2Fsecret%20key"])})

    reason = answer_to(tell).reason
    for secret in (KEY, KEY.upper(), "pass word", base64.b64encode(USER_INFO.encode()).decode(), "secret"):
        assert secret not in reason
    assert reason.count("(not shown)") >= 4


def test_an_exception_that_holds_a_header_is_not_told() -> None:
    # Nothing that config.py lets through: http.client names the whole value in its ValueError.
    answer = ingest("http://127.0.0.1:9", key="secret\nkey").post(BODY, LONG_SECS)
    assert answer == Answer(Verdict.UNAVAILABLE, "ValueError")


# --- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Key and self-made certificate for 127.0.0.1 in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    directory = tmp_path_factory.mktemp("certificate")
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", directory / "key", "-out", directory / "certificate"],
        capture_output=True,
        check=False,
    )  # fmt: skip
    if made.returncode != 0:
        pytest.skip("this openssl cannot make such a certificate")
    both = directory / "both"
    both.write_bytes((directory / "key").read_bytes() + (directory / "certificate").read_bytes())
    return str(both)


def test_a_certificate_that_nobody_vouches_for_is_refused(certificate: str) -> None:
    with seq_server.seq_server(certificate=certificate) as server:
        answer = ingest(server.url).post(BODY, LONG_SECS)
    assert server.requests == []
    assert answer.verdict is Verdict.UNAVAILABLE
    assert answer.reason.startswith("its certificate is not trusted: self")


def test_a_certificate_that_the_system_trusts_is_taken(certificate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    with seq_server.seq_server(certificate=certificate) as server:
        assert ingest(server.url).post(BODY * 10_000, LONG_SECS).verdict is Verdict.ACCEPTED
    assert server.requests[0].headers["x-seq-apikey"] == KEY


def test_a_certificate_for_another_name_is_refused(certificate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    with seq_server.seq_server(certificate=certificate) as server:
        answer = ingest(server.url.replace("127.0.0.1", "localhost")).post(BODY, LONG_SECS)
    assert server.requests == []
    assert "certificate" in answer.reason


def test_certificates_that_are_mended_are_seen_at_the_next_attempt(
    certificate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with seq_server.seq_server(certificate=certificate) as server:
        endpoint = ingest(server.url)
        assert endpoint.post(BODY, LONG_SECS).verdict is Verdict.UNAVAILABLE
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        assert endpoint.post(BODY, LONG_SECS).verdict is Verdict.ACCEPTED


def test_a_server_that_speaks_no_tls_is_told_as_such() -> None:
    with seq_server.seq_server() as server:
        answer = ingest(server.url.replace("http:", "https:")).post(BODY, LONG_SECS)
    assert answer.verdict is Verdict.UNAVAILABLE
    assert answer.reason


# --- Memory


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_two_thousand_failures_leave_nothing_behind() -> None:
    endpoint = ingest(f"http://127.0.0.1:{seq_server.free_port()}")
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # as the command line has it
    try:
        for _ in range(100):
            endpoint.post(BODY, LONG_SECS)
        before = resident_bytes()
        for _ in range(2000):
            endpoint.post(BODY, LONG_SECS)
        assert resident_bytes() - before < 4_000_000
    finally:
        if collecting:
            gc.enable()
