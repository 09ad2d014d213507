"""The metrics file: its format, and counters that survive."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import stores
from prometheus import Family, families

from storage_manager import __version__
from storage_manager.loop.metrics import METRICS, PREFIX, Metrics, earlier_values
from storage_manager.store.snapshot import ANOMALY_KINDS
from storage_manager.store.survey import Totals

STORE = "/srv/store"
ALERTS = stores.ROOT / "docs" / "deploy" / "alerts.yml"
MONITORING = stores.ROOT / "docs" / "monitoring.md"


def full(storage_dir: str = STORE) -> Metrics:
    metrics = Metrics(storage_dir)
    metrics.configure(1 << 30, 450.5)
    metrics.add_deleted(3, 3000)
    metrics.sight(Totals(12, 12345, {"orphan": (2, 99)}, ()))
    metrics.end_cycle(0, 1795490450.074, 0.25)
    return metrics


def value(found: dict[str, Family], name: str, **labels: str) -> float:
    return found[PREFIX + name].samples[frozenset({"storage_dir": STORE, **labels}.items())]


def test_a_cycle_as_prometheus_reads_it() -> None:
    found = families(full().render())
    assert set(found) == {PREFIX + metric.name for metric in METRICS}
    expected = {
        "usage_bytes": 12345, "limit_bytes": 1 << 30, "sessions": 12, "interval_seconds": 450.5, "misplaced": 0,
        "deleted_sessions_total": 3, "freed_bytes_total": 3000, "cycles_total": 1, "failed_cycles_total": 0,
        "lock_busy_total": 0, "last_exit_code": 0, "last_run_duration_seconds": 0.25,
        "last_run_timestamp_seconds": 1795490450.074, "last_success_timestamp_seconds": 1795490450.074,
    }  # fmt: skip
    assert {name: value(found, name) for name in expected} == expected
    assert value(found, "build_info", version=__version__) == 1
    counts = {kind: value(found, "anomalies", kind=kind) for kind in ANOMALY_KINDS}
    assert counts == {**dict.fromkeys(ANOMALY_KINDS, 0), "orphan": 2}
    assert value(found, "anomaly_bytes", kind="orphan") == 99
    for metric in METRICS:
        assert found[PREFIX + metric.name][:2] == (metric.type, metric.help)


def test_a_cycle_that_could_not_look_leaves_what_was_seen_before() -> None:
    metrics = full()
    metrics.end_cycle(2, 1795490500.0, 0.0)
    found = families(metrics.render())
    assert value(found, "usage_bytes") == 12345
    assert value(found, "last_success_timestamp_seconds") == 1795490450.074
    assert value(found, "last_run_timestamp_seconds") == 1795490500
    assert value(found, "last_exit_code") == 2
    counters = ("cycles_total", "failed_cycles_total", "lock_busy_total")
    assert [value(found, name) for name in counters] == [2, 1, 1]


def test_before_anything_was_seen_there_are_counters_and_no_gauges_that_would_lie() -> None:
    found = families(Metrics(STORE).render())
    assert PREFIX + "usage_bytes" not in found and PREFIX + "last_exit_code" not in found
    assert value(found, "cycles_total") == 0
    assert value(found, "last_success_timestamp_seconds") == 0


@pytest.mark.parametrize(
    "storage_dir",
    [
        STORE,
        '/a "quoted" \\ one\nwith lines',
        "/\\n/\\",
        "/c\r\x85\u2028x",
        "/é/\U0001f5c4",
        os.fsdecode(b"/not\xffutf"),
        '/a",kind="b"} 7 #',
    ],
    ids=ascii,
)
def test_any_directory_makes_a_file_in_order_that_is_read_back(storage_dir: str) -> None:
    data = full(storage_dir).render()
    shown = storage_dir.encode("utf-8", "backslashreplace").decode()
    assert all(dict(labels)["storage_dir"] == shown for family in families(data).values() for labels in family.samples)
    assert Metrics(storage_dir, earlier_values(data, storage_dir)).render() == data


def test_counters_go_on_where_the_file_leaves_them() -> None:
    metrics = Metrics(STORE, earlier_values(full().render(), STORE))
    metrics.add_deleted(2, 500)
    metrics.end_cycle(1, 1795490500.0, 0.0)
    found = families(metrics.render())
    assert value(found, "deleted_sessions_total") == 5
    assert value(found, "freed_bytes_total") == 3500
    assert value(found, "cycles_total") == 2
    assert value(found, "usage_bytes") == 12345


def test_large_counters_stay_whole_numbers() -> None:
    metrics = Metrics(STORE)
    metrics.add_deleted(1, 1 << 52)
    metrics.add_deleted(1, 1)
    again = Metrics(STORE, earlier_values(metrics.render(), STORE))
    assert b"4503599627370497\n" in again.render()


def test_a_file_about_another_store_tells_nothing_of_this_one() -> None:
    assert earlier_values(full().render(), "/srv/other") == {}


def test_series_that_another_version_knows_are_passed_over() -> None:
    data = full().render() + b'storage_manager_mood{storage_dir="/srv/store"} 1\n'
    assert earlier_values(data, STORE) == earlier_values(full().render(), STORE)


@pytest.mark.parametrize(
    "data",
    [
        b"hello\n",
        b"\xff\n",
        b"storage_manager_cycles_total 1\n",
        b'storage_manager_cycles_total{storage_dir="/srv/store"} NaN\n',
        b'storage_manager_cycles_total{storage_dir="/srv/store"} -1\n',
        b'storage_manager_cycles_total{storage_dir="/srv/store"} +Inf\n',
        b'storage_manager_cycles_total{storage_dir="/srv/store"} one\n',
        b'storage_manager_cycles_total{storage_dir="/srv/store"} 1 1795490450\n',
        b'storage_manager_cycles_total{storage_dir="/srv/store"} 7',
    ],
)
def test_anything_else_is_no_file_of_ours(data: bytes) -> None:
    if data.endswith(b"7"):  # cut off, but still whole
        assert earlier_values(data, STORE) == {("cycles_total", ""): 7}
        return
    with pytest.raises(ValueError):
        earlier_values(data, STORE)


@pytest.mark.parametrize(
    "text",
    [
        "x 1",
        "# TYPE x gauge\nx 1\n",
        "# HELP x h\n# TYPE x gauge\nx 1 17\n",
        "# HELP x h\n# TYPE x gauge\nx 1\nx 1\n",
        '# HELP x h\n# TYPE x gauge\nx{a="\\q"} 1\n',
        '# HELP x h\n# TYPE x gauge\nx{a="1",a="2"} 1\n',
        "# HELP x h\n# TYPE x counter\nx 1\n",
        "# HELP x h\n# TYPE x gauge\n# HELP y h\n# TYPE y gauge\ny 1\nx 1\n",
    ],
)
def test_the_reader_of_these_tests_is_strict(text: str) -> None:
    with pytest.raises(AssertionError):
        families(text.encode())


# What is written about them


def names_in(text: str) -> set[str]:
    return set(re.findall(rf"\b{PREFIX}[a-z_]+\b", text))


def test_the_documents_have_every_metric_with_its_type_and_no_other() -> None:
    rows = re.findall(rf"^\| `({PREFIX}[a-z_]+)` \| (\w+) \|", MONITORING.read_text(), re.MULTILINE)
    assert rows == [(PREFIX + metric.name, metric.type) for metric in METRICS]


def test_the_alerts_use_metrics_and_labels_that_are_there() -> None:
    expressions = re.findall(r"^ +expr: (?:>-\n +)?(.+)$", ALERTS.read_text(), re.MULTILINE)
    assert len(expressions) == ALERTS.read_text().count("- alert: ") > 5
    labels = {metric.name: metric.label for metric in METRICS}
    for expression in expressions:
        assert names_in(expression) <= {PREFIX + metric.name for metric in METRICS}, expression
        assert names_in(expression), expression
        for name, label, chosen in re.findall(rf'{PREFIX}([a-z_]+){{(\w+)="(\w+)"}}', expression):
            assert labels[name] == label == "kind" and chosen in ANOMALY_KINDS, expression
        for name in re.findall(rf"(?:increase|rate)\({PREFIX}([a-z_]+)", expression):
            assert name.endswith("_total"), "only a counter has an increase"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_the_metrics_of_one_of_several_stores_that_disappear_are_missed(tmp_path: Path) -> None:
    def gone(at: str, *summaries: str) -> dict[str, object]:
        return {
            "eval_time": at,
            "alertname": "StorageManagerMetricsGone",
            "exp_alerts": [
                {"exp_labels": {"severity": "warning", **labels}, "exp_annotations": {**told, "summary": summary}}
                for summary, labels in (
                    (f"The loop on {store or 'any store'} is not seen", {"storage_dir": store} if store else {})
                    for store in summaries
                )
            ],
        }

    description = re.search(r'description: "(It never ended a cycle.*)"', ALERTS.read_text())
    assert description is not None
    told = {"description": description[1]}
    name = f"{PREFIX}cycles_total"
    one, other = (f'{name}{{storage_dir="/{store}"}}' for store in "ab")
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": one, "values": "1+0x240"}, {"series": other, "values": "1+0x60 stale"}],
            "alert_rule_test": [gone("50m"), gone("3h", "/b")],
        },
        {
            "interval": "1m",
            "input_series": [{"series": "up", "values": "1+0x60"}],
            "alert_rule_test": [gone("50m", "")],
        },
    ]
    rules = tmp_path / "tests.json"  # JSON is YAML
    rules.write_text(json.dumps({"rule_files": [str(ALERTS)], "tests": tests}))
    done = subprocess.run(["promtool", "test", "rules", rules], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
