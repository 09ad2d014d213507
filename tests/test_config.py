"""The environment as settings: what each variable does, and what an unusable value falls back to."""

from __future__ import annotations

import logging
import os
import random
import re
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import pytest

from storage_manager.config import (
    DEFAULT_INTERVAL_MINS,
    DEFAULT_LOCK_STALE_SECS,
    DEFAULT_MAX_STORAGE_MB,
    DEFAULT_PREFIX,
    DEFAULT_STORAGE_DIR,
    NAMES,
    PREFIX_VARIABLE,
    Fallback,
    Settings,
    read_settings,
)

MB = 1024 * 1024

INTERVAL = "GOFR_DIG_HOUSEKEEPING_INTERVAL_MINS"
MAX_STORAGE = "GOFR_DIG_MAX_STORAGE_MB"
LOCK_STALE = "GOFR_DIG_HOUSEKEEPER_LOCK_STALE_SECONDS"

NO_NUMBERS = [
    "nan",
    "NaN",
    "inf",
    "-inf",
    "Infinity",
    "-5",
    "abc",
    "5_000",
    "1,5",
    "٥",
    "１２",
    "0x10",
    "1e999",
    "9" * 5000,
]


def settings(storage_dir: Optional[str] = None, data_root: Optional[str] = None, **environ: str) -> Settings:
    """Settings from an environment in which everything is usable."""
    found, fallbacks = read_settings(environ, storage_dir, data_root)
    assert fallbacks == []
    return found


def fallback(**environ: str) -> tuple[Settings, Fallback]:
    """Settings from an environment in which exactly one thing is not usable."""
    found, fallbacks = read_settings(environ, None, None)
    assert len(fallbacks) == 1, fallbacks
    return found, fallbacks[0]


def short(value: object) -> str:
    """A test's name for a value of any length."""
    return ascii(value)[:30]


# --- Defaults


def test_an_empty_environment_gives_the_documented_defaults() -> None:
    found = settings()
    assert found.storage_dir == DEFAULT_STORAGE_DIR == os.path.join(".", "data", "storage")
    assert found.interval_secs == 3600
    assert found.max_storage_bytes == 1024 * MB
    assert found.lock_stale_secs == 3600
    assert found.log_level == logging.INFO
    assert (found.log_json, found.log_file, found.environment) == (None, None, None)
    assert (DEFAULT_INTERVAL_MINS, DEFAULT_MAX_STORAGE_MB, DEFAULT_LOCK_STALE_SECS) == (60, 1024, 3600)
    assert (PREFIX_VARIABLE, DEFAULT_PREFIX) == ("STORAGE_MANAGER_ENV_PREFIX", "GOFR_DIG")


@pytest.mark.parametrize("blank", ["", " ", "\t\n"])
def test_a_blank_variable_is_an_unset_one(blank: str) -> None:
    names = ["HOUSEKEEPING_INTERVAL_MINS", "MAX_STORAGE_MB", "HOUSEKEEPER_LOCK_STALE_SECONDS", "LOG_LEVEL", "LOG_JSON"]
    environ = {f"GOFR_DIG_{name}": blank for name in [*names, "LOG_FILE", "ENV"]}
    assert settings(**environ, **{PREFIX_VARIABLE: blank}) == settings()


@pytest.mark.parametrize("name", ["STORAGE", "STORAGE_DIR", "DATA_DIR"])
def test_an_empty_directory_variable_names_no_directory(name: str) -> None:
    assert settings(**{f"GOFR_DIG_{name}": ""}).storage_dir == DEFAULT_STORAGE_DIR


def test_variables_of_others_are_not_looked_at() -> None:
    assert settings(PATH="/bin", MAX_STORAGE_MB="nan", OTHER_MAX_STORAGE_MB="nan", gofr_dig_log_level="x") == settings()


def test_settings_come_from_the_mapping_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOFR_DIG_STORAGE", "/elsewhere")
    monkeypatch.setenv(MAX_STORAGE, "7")
    assert settings() == read_settings({}, None, None)[0]
    assert settings().storage_dir == DEFAULT_STORAGE_DIR


# --- Numbers


@pytest.mark.parametrize(
    ("text", "secs"),
    [("60", 3600), ("0.5", 30), (" 5 ", 300), ("1e1", 600), ("0.001", 0.06), ("+5", 300), ("527040", 527040 * 60)],
)
def test_the_interval_is_in_minutes(text: str, secs: float) -> None:
    assert settings(**{INTERVAL: text}).interval_secs == pytest.approx(secs)


@pytest.mark.parametrize("text", [*NO_NUMBERS, "0", "0.0", "1e-400", "527041", "1e9", "1e308"], ids=short)
def test_an_unusable_interval_falls_back_to_an_hour(text: str) -> None:
    found, told = fallback(**{INTERVAL: text})
    assert found.interval_secs == 3600
    assert (told.variable, told.default) == (INTERVAL, "60")
    assert told.reason


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", MB),
        ("0.5", MB // 2),
        ("512M", 512 * MB),
        ("10GB", 10 * 1024**3),
        ("1.5 GiB", 3 * 512 * MB),
        ("1e3", 1000 * MB),
    ],
)
def test_the_storage_limit_is_in_megabytes_or_has_a_unit(text: str, size: int) -> None:
    assert settings(**{MAX_STORAGE: text}).max_storage_bytes == size


@pytest.mark.parametrize(
    "text",
    [
        *NO_NUMBERS,
        "0",
        "0M",
        "51,200",
        "50 %",
        "9OO",
        "none",
        '"512',
        "512'",
        "# 512",
        "50 G B",
        "1e-9",
        "9e12",
        "1e300",
        "99E",
        "5X",
        "M",
        "1024 MB MB",
    ],
    ids=short,
)
def test_an_unusable_storage_limit_falls_back_to_a_gigabyte(text: str) -> None:
    found, told = fallback(**{MAX_STORAGE: text})
    assert found.max_storage_bytes == 1024 * MB
    assert (told.variable, told.default) == (MAX_STORAGE, "1024")
    assert told.reason


@pytest.mark.parametrize(("text", "secs"), [("30", 30), ("30.5", 30.5), ("86400", 86400), ("31622400", 31622400)])
def test_the_stale_time_is_in_seconds(text: str, secs: float) -> None:
    assert settings(**{LOCK_STALE: text}).lock_stale_secs == secs


@pytest.mark.parametrize("text", [*NO_NUMBERS, "0", "1", "29.999", "31622401", "1e300"], ids=short)
def test_an_unusable_stale_time_falls_back_to_an_hour(text: str) -> None:
    found, told = fallback(**{LOCK_STALE: text})
    assert found.lock_stale_secs == 3600
    assert (told.variable, told.default) == (LOCK_STALE, "3600")
    assert told.reason


def test_every_unusable_variable_is_reported_and_the_usable_ones_count() -> None:
    found, fallbacks = read_settings(
        {INTERVAL: "nan", MAX_STORAGE: "-1", LOCK_STALE: "60", "GOFR_DIG_LOG_LEVEL": "loud"}, None, None
    )
    assert [told.variable for told in fallbacks] == [MAX_STORAGE, INTERVAL, "GOFR_DIG_LOG_LEVEL"]
    assert [told.value for told in fallbacks] == ["-1", "nan", "loud"]
    assert found.lock_stale_secs == 60


def test_a_reported_value_is_short_and_printable() -> None:
    for value in ("x" * 100_000, "\x1b[2J\x00\n" * 1000, "\udcff" * 1000, "\u202e" * 1000):
        _, told = fallback(**{INTERVAL: "5" + value})
        assert told.value.isprintable()
        assert told.value.startswith("5")
        assert len(told.value) <= 80


CLEAR = {
    "50Gi": 50 << 30, "512Mi": 512 << 20, "10GB": 10 << 30, "3 ki": 3072, "1.5gib": 3 << 29, "7 B": 7,
    "1e3": 1000 << 20, "+2TB": 2 << 40, ".5 Pi": 1 << 49,
}  # fmt: skip


@pytest.mark.parametrize("wrapped", ["{}", '"{}"', "'{}'", "' {} '", "{} # why", '"{}"  # why', "{}\t#", "  {}\r\n"])
@pytest.mark.parametrize("text", CLEAR)
def test_a_clear_size_is_understood_however_it_is_wrapped(text: str, wrapped: str) -> None:
    found = settings(**{MAX_STORAGE: wrapped.format(text)})
    assert (found.max_storage_bytes, found.limit_source) == (CLEAR[text], "set")


@pytest.mark.parametrize("wrapped", ["{}", '"{}"', "'{}'", "{} # why", "' {} '\t# why"])
def test_quotes_and_comments_are_none_of_a_numbers_or_a_choices_value(wrapped: str) -> None:
    found = settings(**{
        INTERVAL: wrapped.format("5"), LOCK_STALE: wrapped.format("45"), "GOFR_DIG_LOG_LEVEL": wrapped.format("error"),
        "GOFR_DIG_LOG_JSON": wrapped.format("no"),
    })  # fmt: skip
    assert (found.interval_secs, found.lock_stale_secs) == (300, 45)
    assert (found.log_level, found.log_json) == (logging.ERROR, False)


@pytest.mark.parametrize("text", ["off", "Off", '"off"', "off # for now"])
def test_off_is_no_limit(text: str) -> None:
    found = settings(**{MAX_STORAGE: text})
    assert (found.max_storage_bytes, found.limit_source, found.held_by) == (None, "off", None)


@pytest.mark.parametrize("blank", ["", " ", '""', "' '"])
def test_a_limit_that_is_not_set_is_said_to_be_the_default(blank: str) -> None:
    found = settings(**{MAX_STORAGE: blank})
    assert (found.max_storage_bytes, found.limit_source, found.held_by) == (1024 * MB, "default", None)


def test_of_random_text_a_limit_is_what_it_says_or_a_problem(seeds: Callable[[int], range]) -> None:
    """What is taken for a size has one number, and at most one unit and what wraps it; all else is a problem."""
    plain = re.compile(r"""\s*(["']?)\s*\+?([\d.]+(?:[eE][+-]?\d+)?)\s*([kmgtpe]?i?b?)\s*\1(\s+#.*)?\s*""", re.I | re.S)
    taken = 0
    for seed in seeds(4000):
        rng = random.Random(seed)
        text = "".join(rng.choice("0159.,eE+-kKMGTiBb \t\"'#%_xO\u0663") for _ in range(rng.randrange(1, 9)))
        found, problems = read_settings({MAX_STORAGE: text}, None, None)
        if found.limit_source == "set":
            taken += 1
            match = plain.fullmatch(text)
            assert match is not None and match.group(2).isascii(), repr(text)
            power = " kmgtpe".index((match.group(3).lower().rstrip("b").rstrip("i") or " ")[0])
            unit = 1 if match.group(3).lower() == "b" else 1024**power if power else MB
            assert found.max_storage_bytes == int(float(match.group(2)) * unit), repr(text)
        elif found.limit_source == "default":
            assert text.strip(" \t\"'") == "", repr(text)
        else:
            assert (found.limit_source, found.max_storage_bytes) == ("invalid", 1024 * MB), repr(text)
            assert found.held_by is problems[0] and problems[0].is_error
    assert taken > 10


# --- Names that are nearly ours

SLIPS = {
    "MAX_STORAGE_GB": "MAX_STORAGE_MB", "STORAGE_LIMIT_MB": "MAX_STORAGE_MB", "STORAGE_LIMIT": "MAX_STORAGE_MB",
    "MAX_STORAGE": "MAX_STORAGE_MB", "STORAGE_MAX_SIZE_BYTES": "MAX_STORAGE_MB", "MAX_STORAGE_MB_": "MAX_STORAGE_MB",
    "_MAX_STORAGE_MB": "MAX_STORAGE_MB", "MAX_STORGE_MB": "MAX_STORAGE_MB", "STORAGE_QUOTA": "MAX_STORAGE_MB",
    "HOUSEKEEPING_INTERVAL_MINUTES": "HOUSEKEEPING_INTERVAL_MINS", "HEARTBEAT_FILE": "HOUSEKEEPER_HEARTBEAT_FILE",
    "INTERVAL_MINS": "HOUSEKEEPING_INTERVAL_MINS", "LOCK_STALE_SECONDS": "HOUSEKEEPER_LOCK_STALE_SECONDS",
    "LOGLEVEL": "LOG_LEVEL", "LOG_FILES": "LOG_FILE", "SEQ_APIKEY": "SEQ_API_KEY",
}  # fmt: skip
OTHERS = [
    "PORT", "HOST", "API_KEY", "JWT_SECRET", "DATA", "ROOT", "LOGS", "LOG_DIR", "MAX_TOKENS", "STORAGE_TYPE",
    "MCP_PORT", "STORAGE_URL", "MAX_SIZE", "MAX_STORAGE_FILES", "METRICS_PORT", "ENVIRONMENT", "STORE", "SIZE_MB",
]  # fmt: skip


@pytest.mark.parametrize("name", SLIPS)
def test_a_name_that_nearly_is_one_of_ours_is_told_with_the_right_one(name: str) -> None:
    found, told = fallback(**{f"GOFR_DIG_{name}": "SECRET"})
    assert (told.variable, told.default, told.is_unknown) == (f"GOFR_DIG_{name}", f"GOFR_DIG_{SLIPS[name]}", True)
    assert "SECRET" not in repr(told)
    assert found == settings()


@pytest.mark.parametrize("name", OTHERS)
def test_a_name_of_the_services_own_is_not_taken_for_a_slip(name: str) -> None:
    assert settings(**{f"GOFR_DIG_{name}": "x"}) == settings()


def test_the_names_of_ours_are_those_that_are_asked_for() -> None:
    asked = set()

    class Environment(dict):  # type: ignore[type-arg]
        def get(self, name: str, default: Any = None) -> Any:
            asked.add(name)
            return "http://seq" if name == "GOFR_DIG_SEQ_URL" else default

    read_settings(Environment(), None, None)
    assert {name for name in asked if name.startswith("GOFR_DIG_")} == {f"GOFR_DIG_{name}" for name in NAMES}


def test_a_prefix_with_the_underscore_behind_it_is_told_and_used_without() -> None:
    found, told = fallback(**{PREFIX_VARIABLE: "MY_SERVICE_", "MY_SERVICE_MAX_STORAGE_MB": "5"})
    assert (told.variable, told.default, found.prefix) == (PREFIX_VARIABLE, "MY_SERVICE", "MY_SERVICE")
    assert found.max_storage_bytes == 5 * MB


def test_a_prefix_that_really_ends_so_is_taken_as_it_is() -> None:
    assert settings(**{PREFIX_VARIABLE: "MY_", "MY__MAX_STORAGE_MB": "5"}).max_storage_bytes == 5 * MB


# --- The log


@pytest.mark.parametrize(
    ("text", "level"),
    [("DEBUG", logging.DEBUG), ("info", logging.INFO), ("Warning", logging.WARNING), ("ERROR", logging.ERROR)],
)
def test_the_log_level_is_a_name_in_any_case(text: str, level: int) -> None:
    assert settings(GOFR_DIG_LOG_LEVEL=text).log_level == level


@pytest.mark.parametrize("text", ["loud", "10", "INFO,DEBUG", "ＩＮＦＯ", "NOTSET\x00", "-1"])
def test_an_unknown_log_level_falls_back_to_info_and_says_what_there_is(text: str) -> None:
    found, told = fallback(GOFR_DIG_LOG_LEVEL=text)
    assert found.log_level == logging.INFO
    assert told.default == "INFO"
    assert "WARNING" in told.reason


@pytest.mark.parametrize("text", ["1", "true", "True", "YES", "on", "json"])
def test_log_json_can_be_switched_on(text: str) -> None:
    assert settings(GOFR_DIG_LOG_JSON=text).log_json is True


@pytest.mark.parametrize("text", ["0", "false", "False", "NO", "off", "text"])
def test_log_json_can_be_switched_off(text: str) -> None:
    assert settings(GOFR_DIG_LOG_JSON=text).log_json is False


@pytest.mark.parametrize("text", ["maybe", "2", "-1", "ja", "١"])
def test_an_unusable_log_json_leaves_it_to_the_terminal(text: str) -> None:
    found, told = fallback(GOFR_DIG_LOG_JSON=text)
    assert found.log_json is None
    assert told.variable == "GOFR_DIG_LOG_JSON"


def test_the_log_file_and_the_environments_name_are_taken_as_they_are() -> None:
    found = settings(GOFR_DIG_LOG_FILE="/var/log/house keeper.log", GOFR_DIG_ENV="PROD")
    assert (found.log_file, found.environment) == ("/var/log/house keeper.log", "PROD")


# --- The storage directory

EVERYWHERE = {"GOFR_DIG_STORAGE": "/storage", "GOFR_DIG_STORAGE_DIR": "/storage-dir", "GOFR_DIG_DATA_DIR": "/data-dir"}


@pytest.mark.parametrize(
    ("storage_dir", "data_root", "environ", "expected", "source"),
    [
        ("/option", "/rooted", EVERYWHERE, "/option", "--storage-dir"),
        (None, "/rooted", EVERYWHERE, "/rooted/storage", "--data-root"),
        (None, None, EVERYWHERE, "/storage", "GOFR_DIG_STORAGE"),
        (None, None, {**EVERYWHERE, "GOFR_DIG_STORAGE": ""}, "/storage-dir", "GOFR_DIG_STORAGE_DIR"),
        (None, None, {"GOFR_DIG_DATA_DIR": "/data-dir"}, "/data-dir/storage", "GOFR_DIG_DATA_DIR"),
        (None, None, {}, "./data/storage", "the default"),
        ("relative", None, {}, "relative", "--storage-dir"),
        (None, "/rooted/", {}, "/rooted/storage", "--data-root"),
    ],
)
def test_the_storage_directory_is_named_by_the_first_of(
    storage_dir: Optional[str], data_root: Optional[str], environ: dict[str, str], expected: str, source: str
) -> None:
    found = settings(storage_dir, data_root, **environ)
    assert (found.storage_dir, found.storage_source) == (expected, source)


def test_a_directorys_name_is_taken_as_it_is() -> None:
    for name in ("/a b ", "/\u00e9", "/\udcff", "~/store", "$HOME/store", "/a/../b"):
        assert settings(GOFR_DIG_STORAGE=name).storage_dir == name


# --- The prefix


def test_another_prefix_names_other_variables() -> None:
    environ = {
        PREFIX_VARIABLE: "MY_SERVICE", "MY_SERVICE_STORAGE": "/mine", "MY_SERVICE_MAX_STORAGE_MB": "5",
        "MY_SERVICE_LOG_LEVEL": "ERROR", "GOFR_DIG_STORAGE": "/theirs", "GOFR_DIG_MAX_STORAGE_MB": "nan",
    }  # fmt: skip
    found = settings(**environ)
    assert (found.storage_dir, found.storage_source) == ("/mine", "MY_SERVICE_STORAGE")
    assert (found.max_storage_bytes, found.log_level) == (5 * MB, logging.ERROR)


def test_fallbacks_name_the_variable_with_its_prefix() -> None:
    _, told = fallback(**{PREFIX_VARIABLE: " OTHER ", "OTHER_MAX_STORAGE_MB": "zero"})
    assert told.variable == "OTHER_MAX_STORAGE_MB"


@pytest.mark.parametrize("prefix", ["1ST", "MY-SERVICE", "A B", "É", "A=B", "$X", "A\x00", "..", "٣"])
def test_a_prefix_that_cannot_begin_a_name_falls_back_to_the_usual_one(prefix: str) -> None:
    found, told = fallback(**{PREFIX_VARIABLE: prefix, "GOFR_DIG_STORAGE": "/usual", f"{prefix}_STORAGE": "/odd"})
    assert found.storage_dir == "/usual"
    assert (told.variable, told.default) == (PREFIX_VARIABLE, "GOFR_DIG")


def test_no_value_whatever_of_any_variable_is_an_error() -> None:
    odd: list[Any] = [
        "",
        " ",
        "\x00",
        "\udcff",
        "nan",
        "-1",
        "1e999",
        "٣",
        "x" * 10_000,
        "\n",
        "0",
        "{}",
        "9" * 400 + "E",
    ]
    for value in odd:
        for name in Settings._fields:
            read_settings({f"GOFR_DIG_{name.upper()}": value}, None, None)
        names = ("HOUSEKEEPING_INTERVAL_MINS", "MAX_STORAGE_MB", "HOUSEKEEPER_LOCK_STALE_SECONDS", "LOG_JSON", "ENV")
        found, _ = read_settings({f"GOFR_DIG_{name}": value for name in names} | {PREFIX_VARIABLE: value}, None, None)
        assert found.interval_secs > 0
        assert found.max_storage_bytes is not None and found.max_storage_bytes > 0
        assert found.lock_stale_secs >= 30


# --- Seq


def seq(url: str, **environ: str) -> Any:
    return settings(GOFR_DIG_SEQ_URL=url, **environ).seq


def test_without_a_url_nothing_is_shipped() -> None:
    assert settings(GOFR_DIG_SEQ_API_KEY="key").seq is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://seq:5341", "http://seq:5341"),
        ("https://seq.example.org/", "https://seq.example.org"),
        ("HTTPS://Seq.Example.org/logs/", "https://seq.example.org/logs"),
        ("http://[::1]:5341/", "http://[::1]:5341"),
        ("http://seq/ingest/clef", "http://seq"),
        ("http://seq/logs/api/events/raw", "http://seq/logs"),
        ("http://name:word@seq:80", "http://seq:80"),
        ("http://na%40me:wo@rd@seq", "http://seq"),
    ],
)
def test_a_server_is_shown_without_user_and_password(url: str, shown: str) -> None:
    assert seq(url).url == shown


def test_user_and_password_are_kept_but_not_shown() -> None:
    server = seq("http://na%40me:w%3Ard@seq", GOFR_DIG_SEQ_API_KEY="the-key")
    assert server.user_info.reveal() == "na@me:w:rd"
    assert server.api_key.reveal() == "the-key"
    for text in (repr(server), str(server), f"{server}"):
        assert "w:rd" not in text and "the-key" not in text


@pytest.mark.parametrize(
    "url",
    [
        "seq:5341", "ftp://seq", "http://", "http://:80", "http://seq:99999", "http://seq:http", "http://[::1", "//seq",
        "http://se q", "http://s\neq", "http://s\u00e9q", "http://seq?apiKey=SECRET", "http://seq/#SECRET", "SECRET",
        "http://user:SECRET@seq:x",
    ],
)  # fmt: skip
def test_a_url_that_cannot_be_used_is_told_without_showing_it(url: str) -> None:
    found, problem = fallback(GOFR_DIG_SEQ_URL=url)
    assert found.seq is None
    assert problem.variable == "GOFR_DIG_SEQ_URL"
    assert "SECRET" not in repr(problem)


@pytest.mark.parametrize("key", ["SECRET\nX-Other: 1", "SECR\u00c9T", "SECRET\x00"])
def test_a_key_that_no_header_can_carry_is_left_out_and_not_shown(key: str) -> None:
    found, problem = fallback(GOFR_DIG_SEQ_URL="http://seq", GOFR_DIG_SEQ_API_KEY=key)
    assert found.seq is not None and found.seq.api_key is None
    assert problem.variable == "GOFR_DIG_SEQ_API_KEY"
    assert "SECR" not in repr(problem)


# --- What the loop tells of itself


def test_every_version_finds_the_same_heartbeat_file_with_zlib_and_without() -> None:
    name = f"/tmp/storage_manager-{os.geteuid()}-CRC.heartbeat"
    assert settings("/srv/one").heartbeat_file == name.replace("CRC", f"{zlib.crc32(b'/srv/one'):08x}")
    without = "import sys; sys.modules['zlib'] = None; import storage_manager.config"
    subprocess.run([sys.executable, "-c", without], check=True, cwd=Path(__file__).parent.parent)


def test_each_store_has_a_heartbeat_file_of_its_own_in_the_temporary_directory() -> None:
    one, other = settings("/srv/one"), settings("/srv/other")
    assert one.heartbeat_file == settings("/srv/../srv/one").heartbeat_file != other.heartbeat_file
    assert os.path.dirname(one.heartbeat_file) == "/tmp"
    assert f"-{os.geteuid()}-" in one.heartbeat_file
    assert os.path.dirname(settings(TMPDIR="/var/tmp").heartbeat_file) == "/var/tmp"
    assert os.path.dirname(settings(TMPDIR="relative").heartbeat_file) == "/tmp"


def test_files_can_be_named() -> None:
    found = settings(GOFR_DIG_HOUSEKEEPER_HEARTBEAT_FILE="/run/beat", GOFR_DIG_METRICS_FILE="/run/x.prom")
    assert (found.heartbeat_file, found.metrics_file) == ("/run/beat", "/run/x.prom")
    assert settings().metrics_file is None


@pytest.mark.parametrize(
    ("environ", "secs"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_a_watchdog_counts_when_it_is_about_this_process(environ: dict[str, str], secs: Optional[float]) -> None:
    assert settings(**environ).watchdog_secs == secs


def test_a_service_manager_may_want_to_be_told() -> None:
    assert settings(NOTIFY_SOCKET="@/run/notify").notify_socket == "@/run/notify"
    assert settings(NOTIFY_SOCKET="").notify_socket is None
