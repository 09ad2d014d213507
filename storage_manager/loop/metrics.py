"""What the loop counts and measures, in Prometheus' text format for node_exporter's textfile collector.

Pure: no files and no clock. Every series carries the store it is about, because the collector puts the files of several
loops together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple, Optional

from storage_manager import __version__
from storage_manager.base.errors import EXIT_LOCK_BUSY, EXIT_OK
from storage_manager.store.snapshot import ANOMALY_KINDS
from storage_manager.store.survey import Totals

PREFIX = "storage_manager_"
GAUGE = "gauge"
COUNTER = "counter"

# Some forty lines; the rest is room for long paths.
LARGEST_BYTES = 1024 * 1024


class Metric(NamedTuple):
    """One family of series."""

    name: str
    type: str
    help: str
    label: Optional[str] = None
    """The label besides `storage_dir`."""


METRICS = (
    Metric("build_info", GAUGE, "Always 1; the label has the version of the tool.", "version"),
    Metric("usage_bytes", GAUGE, "What the store held when the last cycle that could look at it had ended."),
    Metric("limit_bytes", GAUGE, "What the store may hold; absent while deletion is switched off."),
    Metric("sessions", GAUGE, "Healthy sessions in the store after that cycle."),
    Metric("anomalies", GAUGE, "What was found besides healthy sessions, by kind.", "kind"),
    Metric("anomaly_bytes", GAUGE, "What the anomalies of a kind hold.", "kind"),
    Metric("deferred_entries", GAUGE, "Entries without blobs that wait until the client leaves a moment for a commit."),
    Metric("misplaced", GAUGE, "1 when the directory was empty and had a store right below it: the wrong directory."),
    Metric("interval_seconds", GAUGE, "From the beginning of one cycle to the next."),
    Metric("last_run_timestamp_seconds", GAUGE, "When the last cycle ended."),
    Metric("last_success_timestamp_seconds", GAUGE, "When the last cycle with exit code 0 ended; 0 before it."),
    Metric("last_run_duration_seconds", GAUGE, "How long the last cycle took."),
    Metric("last_exit_code", GAUGE, "Of the last cycle: 0 done, 1 failed or limit not kept, 2 lock busy."),
    Metric("cycles_total", COUNTER, "Cycles that ended."),
    Metric("failed_cycles_total", COUNTER, "Cycles that ended with another exit code than 0."),
    Metric("lock_busy_total", COUNTER, "Cycles that found the lock held by another prune."),
    Metric("deleted_sessions_total", COUNTER, "Sessions deleted."),
    Metric("freed_bytes_total", COUNTER, "Bytes of the sessions deleted."),
    Metric("adopted_orphans_total", COUNTER, "Orphans given entries."),
    Metric("purged_orphans_total", COUNTER, "Orphans deleted."),
    Metric("purged_orphan_bytes_total", COUNTER, "Bytes of the orphans deleted."),
)

_BY_NAME = {metric.name: metric for metric in METRICS}
Values = dict[tuple[str, str], float]
"""(name without prefix, value of the metric's own label or "") -> value."""


class Metrics:
    """The values of one store's series. Counters only grow; what no cycle has measured yet is absent."""

    def __init__(self, storage_dir: str, values: Optional[Values] = None) -> None:
        self._storage_dir = storage_dir
        self._values: Values = {(metric.name, ""): 0.0 for metric in METRICS if metric.type == COUNTER}
        self._set("last_success_timestamp_seconds", 0)  # an alert on its age must fire, too, when there was none
        self._values.update(values or {})
        self._values[("build_info", __version__)] = 1

    def configure(self, limit_bytes: Optional[int], interval_secs: float) -> None:
        if limit_bytes is None:
            self._values.pop(("limit_bytes", ""), None)
        else:
            self._set("limit_bytes", limit_bytes)
        self._set("interval_seconds", interval_secs)

    def add_deleted(self, count: int, size_bytes: int) -> None:
        self._add("deleted_sessions_total", count)
        self._add("freed_bytes_total", size_bytes)

    def add_orphans(self, adopted_count: int, purged_count: int, purged_bytes: int) -> None:
        self._add("adopted_orphans_total", adopted_count)
        self._add("purged_orphans_total", purged_count)
        self._add("purged_orphan_bytes_total", purged_bytes)

    def sight(self, left: Totals, deferred_count: int = 0) -> None:
        """What a cycle left in the store."""
        self._set("usage_bytes", left.usage_bytes)
        self._set("sessions", left.session_count)
        self._set("deferred_entries", deferred_count)
        self._set("misplaced", bool(left.suggested_dirs))
        for kind in ANOMALY_KINDS:
            count, size_bytes = left.anomaly_totals.get(kind, (0, 0))
            self._values[("anomalies", kind)] = count
            self._values[("anomaly_bytes", kind)] = size_bytes

    def end_cycle(self, exit_code: int, ended_at_secs: float, duration_secs: float) -> None:
        """Count a cycle; `ended_at_secs` is Unix time."""
        self._add("cycles_total", 1)
        self._add("failed_cycles_total", int(exit_code != EXIT_OK))
        self._add("lock_busy_total", int(exit_code == EXIT_LOCK_BUSY))
        self._set("last_exit_code", exit_code)
        self._set("last_run_timestamp_seconds", round(ended_at_secs, 3))
        self._set("last_run_duration_seconds", round(duration_secs, 3))
        if exit_code == EXIT_OK:
            self._set("last_success_timestamp_seconds", round(ended_at_secs, 3))

    def _set(self, name: str, value: float) -> None:
        self._values[(name, "")] = value

    def _add(self, name: str, value: float) -> None:
        self._values[(name, "")] += value

    def render(self) -> bytes:
        """The whole file. Without time stamps: the collector refuses them."""
        return "".join(f"{line}\n" for line in self._lines()).encode("utf-8", "backslashreplace")

    def _lines(self) -> Iterator[str]:
        store = f'storage_dir="{_escaped(self._storage_dir)}"'
        for metric in METRICS:
            own = {label: value for (name, label), value in self._values.items() if name == metric.name}
            if not own:
                continue
            yield f"# HELP {PREFIX}{metric.name} {metric.help}"
            yield f"# TYPE {PREFIX}{metric.name} {metric.type}"
            for label, value in own.items():
                more = f',{metric.label}="{_escaped(label)}"' if metric.label else ""
                yield f"{PREFIX}{metric.name}{{{store}{more}}} {_number(value)}"


_LABEL = r'"((?:[^"\\]|\\.)*)"'
_SAMPLE = re.compile(rf"{PREFIX}([a-z_]+)\{{storage_dir={_LABEL}(?:,([a-z_]+)={_LABEL})?\}} (\S+)")


def earlier_values(data: bytes, storage_dir: str) -> Values:
    """What a file that `render()` wrote says of this store. Raises ValueError for any other file.

    Series that are not known are passed over, so that another version's file goes on being counted in.
    """
    values: Values = {}
    for line in data.decode("utf-8").split("\n"):  # splitlines() would cut inside a label
        if line.startswith("#") or not line:
            continue
        match = _SAMPLE.fullmatch(line)
        if match is None:
            raise ValueError("it holds something else than the loop's metrics")
        name, store, label_name, label, number = match.groups()
        metric = _BY_NAME.get(name)
        value = float(number)
        if not 0 <= value < 1e18:
            raise ValueError(f"it says that {PREFIX}{name} is {number}")
        if metric is None or metric.label != label_name or name == "build_info":
            continue
        if store == _escaped(storage_dir):
            values[(name, label or "")] = value
    return values


def other_store(data: bytes, storage_dir: str) -> Optional[str]:
    """The store that a file of metrics is about, where it is not this one. Raises ValueError."""
    found = _SAMPLE.search(data.decode("utf-8"))
    return None if found is None or found.group(2) == _escaped(storage_dir) else found.group(2)


def _escaped(text: str) -> str:
    shown = text.encode("utf-8", "backslashreplace").decode()  # a path need not be UTF-8, the format must be
    return shown.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
