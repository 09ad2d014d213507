"""The rules of the house: which module may know which, and what only some of them may do."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

import storage_manager
from storage_manager.base import errors
from storage_manager.grammar import build_parser

PACKAGE = Path(storage_manager.__file__).resolve().parent
NAME = PACKAGE.name

# The rooms of the house, from the door to the cellar. A room imports from the rooms below it, and from none beside it
# but as said in NEIGHBOURS. A new room needs a place here, and one in the picture of CONTRIBUTING.md.
FLOORS = (
    ("__main__",),
    ("cli",),
    ("commands", "grammar"),
    ("loop",),
    ("jobs", "config"),
    ("store", "seq", "usage"),
    ("base",),
    ("storage_manager",),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# What only some may know: shipping is the business of the command line alone, which has config name the server.
MAY_KNOW_SEQ = ("cli", "config", "seq")

# They decide, and touch nothing: no files, no clock, no log.
PURE = (
    "base.colour", "base.errors", "base.quantity", "base.text", "base.times", "commands.tables", "jobs.evidence",
    "jobs.forecast", "jobs.history", "jobs.memory", "jobs.plan", "jobs.policy", "loop.heartbeat", "loop.metrics",
    "seq.backlog", "seq.delivery", "store.entry", "store.names", "store.snapshot",
)  # fmt: skip
PURE_LIBRARY = {
    "__future__", "bisect", "collections", "collections.abc", "contextlib", "datetime", "difflib", "enum", "errno",
    "functools", "json", "math", "re", "signal", "typing", "unicodedata",
}  # fmt: skip
# What they may take from others: values and constants.
PURE_VALUES = {
    f"{NAME}.__version__", f"{NAME}.base.process.GONE", f"{NAME}.base.process.STOPPED", f"{NAME}.base.process.Process",
    f"{NAME}.jobs.journal.ADOPTED", f"{NAME}.jobs.journal.DELETED", f"{NAME}.jobs.journal.REPAIRED",
    f"{NAME}.store.survey.Totals",
}  # fmt: skip


def room_of(module: str) -> str:
    return module.partition(".")[0]


def sources() -> dict[str, Path]:
    """Every module of the package by its name inside it; the package itself by its own."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found[".".join(parts) or NAME] = path
    return found


SOURCES = sources()
TREES = {module: ast.parse(path.read_text(encoding="utf-8"), str(path)) for module, path in SOURCES.items()}

each_module = pytest.mark.parametrize("module", sorted(TREES))


def imported(module: str) -> Iterator[str]:
    """Full names of the modules that a module imports, wherever in it the import stands."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full.removeprefix(f"{NAME}.") in TREES and full != NAME else str(node.module)


def inward(module: str) -> Iterator[str]:
    """Names inside the package of the modules that a module imports."""
    for name in imported(module):
        if name == NAME:
            yield NAME
        elif name.startswith(f"{NAME}."):
            yield name[len(NAME) + 1 :]


def calls(module: str) -> Iterator[tuple[str, ast.Call]]:
    """(`name` or `object.name`, the call) of every call in a module."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def uses(module: str, dotted: str) -> bool:
    """Whether a module mentions `object.attribute`."""
    return any(isinstance(node, ast.Attribute) and ast.unparse(node) == dotted for node in ast.walk(TREES[module]))


# --- Imports


def test_the_package_was_found_whole() -> None:
    assert {"jobs.policy", "commands", "commands.list", "cli", "__main__", NAME} <= set(TREES)
    assert {"jobs.plan", "store.snapshot"} <= set(inward("jobs.policy"))
    assert {"jobs.policy", "commands.outcome"} <= set(inward("commands.prune_size"))


def test_every_room_has_its_floor() -> None:
    rooms = {room_of(module) for module in TREES}
    assert rooms - set(FLOOR_OF) == set(), "say in FLOORS where the new room belongs"
    assert set(FLOOR_OF) - rooms == set(), "FLOORS speaks of rooms that are gone"


@each_module
def test_imports_go_down(module: str) -> None:
    room = room_of(module)
    for other in map(room_of, inward(module)):
        assert other == room or FLOOR_OF[other] > FLOOR_OF[room], f"{module} imports {other}"


@pytest.mark.parametrize("module", sorted(module for module in TREES if module.startswith("jobs.")))
def test_jobs_leave_the_text_and_its_commits_to_the_locked_store(module: str) -> None:
    assert not {"store.commit", "store.document", "store.edit"} & set(inward(module))


def test_imports_within_a_room_go_in_no_circle() -> None:
    known = {module: set(inward(module)) for module in TREES}
    while known:
        free = [module for module, others in known.items() if not others & (set(known) - {module})]
        assert free, f"in a circle, or upon one: {sorted(known)}"
        for module in free:
            del known[module]


@each_module
def test_shipping_is_known_to_few(module: str) -> None:
    if room_of(module) not in MAY_KNOW_SEQ:
        assert not [other for other in inward(module) if room_of(other) == "seq"]


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_know_no_system_clock_or_log(module: str) -> None:
    pure = {f"{NAME}.{other}" for other in PURE}
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            assert {alias.name for alias in node.names} <= PURE_LIBRARY
        elif isinstance(node, ast.ImportFrom) and node.module not in PURE_LIBRARY | pure:
            assert {f"{node.module}.{alias.name}" for alias in node.names} <= PURE_VALUES | pure


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_are_told_the_time(module: str) -> None:
    asked = {name.rpartition(".")[2] for name, _ in calls(module)}
    assert not asked & {"now", "utcnow", "today", "time", "monotonic", "open", "print", "__import__", "import_module"}


@each_module
def test_only_the_standard_library_is_imported(module: str) -> None:
    homes = {Path(sysconfig.get_path(which)).resolve() for which in ("stdlib", "platstdlib")}
    for name in {name.partition(".")[0] for name in imported(module)} - {NAME}:
        if name in sys.builtin_module_names:
            continue
        spec = importlib.util.find_spec(name)
        assert spec is not None, f"{module} imports {name}, which is not there"
        if spec.origin in ("built-in", "frozen"):
            continue
        assert spec.origin is not None, f"{module} imports {name}, which is no module of Python's own"
        origin = Path(spec.origin).resolve()
        assert any(home in origin.parents for home in homes), f"{module} imports {name} from {origin}"
        assert "site-packages" not in origin.parts, f"{module} imports {name} from {origin}"


# --- What only some may do


@each_module
def test_only_the_door_talks_to_people_directly(module: str) -> None:
    """Results go through Output and messages through the log; the rest is usage errors and the one question."""
    printed = [call for name, call in calls(module) if name == "print"]
    assert not printed or module in ("base.output", "cli", "commands.outcome")
    for call in printed:
        assert "file" in {keyword.arg for keyword in call.keywords}, f"{module} prints to standard output"


@each_module
def test_only_the_command_line_reads_the_environment_and_hands_out_standard_output(module: str) -> None:
    if module != "cli":
        assert not uses(module, "os.environ")
        assert "os.getenv" not in {name for name, _ in calls(module)}
        assert not uses(module, "sys.argv")
        assert module == "grammar" or not uses(module, "sys.stdout")  # it prints help and version


@each_module
def test_only_the_clock_asks_what_time_it_is_and_waits(module: str) -> None:
    if module not in ("base.clock", "base.clef"):  # an event is dated as logging dates its records
        asked = {name for name, _ in calls(module)}
        assert not asked & {"datetime.now", "datetime.utcnow", "datetime.today", "time.time", "time.sleep"}


@each_module
def test_nobody_starts_programs_or_evaluates_text(module: str) -> None:
    assert not set(imported(module)) & {"subprocess", "pickle", "shelve"}
    assert "ctypes" not in imported(module) or module in ("loop.heap", "base.room")
    asked = {name for name, _ in calls(module)}
    assert not asked & {"eval", "exec", "os.system", "os.popen", "os.fork"}


@each_module
def test_no_handler_takes_every_exception_without_a_name(module: str) -> None:
    assert not any(isinstance(node, ast.ExceptHandler) and node.type is None for node in ast.walk(TREES[module]))


@each_module
def test_no_set_of_constants_is_written_out(module: str) -> None:
    """Before Python 3.11 its byte code depends on the hash seed: the archive would not be the same twice."""
    written = [node for node in ast.walk(TREES[module]) if isinstance(node, ast.Set)]
    assert not [node.lineno for node in written if all(isinstance(item, ast.Constant) for item in node.elts)]


# --- What every module has


@each_module
def test_every_module_says_what_it_is_for(module: str) -> None:
    text = ast.get_docstring(TREES[module]) or ""
    assert len(text.splitlines()[:1] and text.splitlines()[0]) >= 20, f"{module} has no docstring to speak of"


@each_module
def test_every_function_says_what_it_takes_and_gives(module: str) -> None:
    if module == "__main__":  # has to parse on every Python there is
        return
    for node in ast.walk(TREES[module]):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [item.arg for item in arguments if item.annotation is None and item.arg not in ("self", "cls")]
            assert bare == [], f"{module}.{node.name}"
            assert node.returns is not None, f"{module}.{node.name}"


# --- Exit codes


def error_classes() -> list[type[errors.StorageManagerError]]:
    found, todo = [], [errors.StorageManagerError]
    while todo:
        one = todo.pop()
        found.append(one)
        todo.extend(one.__subclasses__())
    return found


def test_the_exit_codes_are_the_contract() -> None:
    assert sorted(errors.EXIT_CODES) == [0, 1, 2, 64, 129, 130, 143]
    named = (errors.EXIT_OK, errors.EXIT_FAILED, errors.EXIT_LOCK_BUSY, errors.EXIT_USAGE)
    assert named == (0, 1, 2, 64)


def test_every_exit_code_of_the_table_is_in_the_help_text() -> None:
    help_text = build_parser().format_help()
    for code, meaning in errors.EXIT_CODES.items():
        assert re.search(rf"^\s*{code}\s+{re.escape(meaning)}$", help_text, re.MULTILINE), code


def test_every_error_has_an_exit_code_of_the_table_and_an_event() -> None:
    assert len(error_classes()) > 5
    for error in error_classes():
        assert error.exit_code in errors.EXIT_CODES, error
        assert error.exit_code != errors.EXIT_OK, error
        assert error.event.startswith(f"{NAME}."), error
        assert error.__doc__, error
    assert errors.LockBusy.exit_code == 2
    assert errors.UsageError.exit_code == 64


@pytest.mark.parametrize(("signum", "exit_code"), [(1, 129), (2, 130), (15, 143)])
def test_an_interrupted_run_ends_as_a_shell_would_say(signum: int, exit_code: int) -> None:
    assert errors.Interrupted(signum).exit_code == exit_code
    assert exit_code in errors.EXIT_CODES
    assert not isinstance(errors.Interrupted(signum), Exception)
