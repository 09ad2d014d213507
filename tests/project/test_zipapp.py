"""The archive: the same bytes from the same sources, and a plain word to a Python that is too old."""

from __future__ import annotations

import ast
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from stores import ROOT, blobs, clean_environment, event, events, make_store, read_entries, run_command, run_tool

from storage_manager import __version__

OLD = ("python2.7", "python3.6", "python3.7", "python3.8")
SUPPORTED = ("python3.9", "python3.10", "python3.11", "python3.12", "python3.13", "python3.14")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of what the archive is made from."""
    return copy_sources(tmp_path / "sources")


def copy_sources(target: Path) -> Path:
    target.mkdir(parents=True)
    shutil.copy(ROOT / "build_zipapp.py", target)
    shutil.copytree(ROOT / "storage_manager", target / "storage_manager", ignore=shutil.ignore_patterns("__pycache__"))
    return target


def build(sources: Path, *arguments: object, env: dict[str, str] | None = None, **options: object) -> Path:
    """Build and return the archive, which is the default one unless --output names another."""
    done = subprocess.run(
        [sys.executable, str(sources / "build_zipapp.py"), *map(str, arguments)],
        env=clean_environment(env),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, done.stderr
    assert __version__ in done.stdout
    if "--output" in arguments:
        return Path(str(options.get("cwd", ".")), str(arguments[arguments.index("--output") + 1]))
    return sources / "dist" / "storage_manager.pyz"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plain archive, without byte code."""
    return build(ROOT, "--output", tmp_path_factory.mktemp("plain") / "storage_manager.pyz")


@pytest.fixture(scope="module")
def precompiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "--precompile", "--output", tmp_path_factory.mktemp("precompiled") / "storage_manager.pyz")


def run_archive(python: str, archive: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = clean_environment({"PYTHONPATH": ""})
    return subprocess.run(
        [python, str(archive), *map(str, arguments)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def found(name: str) -> str:
    """The full path of a Python that is on the PATH and runs; a skip with the reason otherwise."""
    path = shutil.which(name)
    if path is not None:
        # A version manager's stand-in is on the PATH even where what it stands for is not installed.
        done = subprocess.run(
            [path, "-c", "import sys"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        )
        if done.returncode == 0:
            return path
    pytest.skip(f"{name} is not on the PATH")


def rewritten(archive: Path, target: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """The archive with every entry passed through `change`."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


# The same bytes


@pytest.mark.parametrize("options", [[], ["--precompile"]], ids=["plain", "precompiled"])
def test_the_same_sources_give_the_same_bytes_whatever_else_differs(
    sources: Path, tmp_path: Path, options: list[str]
) -> None:
    first = build(sources, *options).read_bytes()
    for path in sources.rglob("*.py"):
        os.utime(path, (1_800_000_000, 1_800_000_000))
        path.chmod(0o600)
    (sources / "storage_manager" / "__pycache__").mkdir()
    (sources / "storage_manager" / "__pycache__" / "cli.cpython-39.pyc").write_bytes(b"stale")
    (sources / "storage_manager" / "notes.txt").write_text("no part of it")
    assert build(sources, *options).read_bytes() == first
    assert build(sources, *options, cwd="/").read_bytes() == first
    assert build(sources, *options, preexec_fn=lambda: os.umask(0o077)).read_bytes() == first
    assert build(sources, *options, env={"PYTHONHASHSEED": "4711", "TZ": "Asia/Tokyo"}).read_bytes() == first
    elsewhere = copy_sources(tmp_path / "quite" / "somewhere else")
    assert build(elsewhere, *options, "--output", tmp_path / "other.pyz").read_bytes() == first


def test_other_sources_give_other_bytes(sources: Path) -> None:
    first = build(sources).read_bytes()
    with open(sources / "storage_manager" / "text.py", "a") as source:
        source.write("# changed\n")
    assert build(sources).read_bytes() != first


def test_the_time_of_the_sources_can_be_given(sources: Path) -> None:
    with zipfile.ZipFile(build(sources, env={"SOURCE_DATE_EPOCH": "1767225600"})) as archive:
        assert {info.date_time for info in archive.infolist()} == {(2026, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize("epoch", ["0", "-5", ""])
def test_a_time_that_the_format_cannot_hold_is_the_earliest_one(sources: Path, epoch: str) -> None:
    with zipfile.ZipFile(build(sources, env={"SOURCE_DATE_EPOCH": epoch})) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize("epoch", ["never", "4354819200", "9" * 5000, "1e9"])
def test_an_absurd_time_is_an_error_in_one_sentence(sources: Path, epoch: str) -> None:
    done = subprocess.run(
        [sys.executable, str(sources / "build_zipapp.py")], env=clean_environment({"SOURCE_DATE_EPOCH": epoch}),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"build_zipapp: SOURCE_DATE_EPOCH is '{epoch[:40]}'") and done.stderr.count("\n") == 1
    assert not (sources / "dist").exists()


def test_entries_are_sorted_uncompressed_and_of_one_mode(precompiled: Path) -> None:
    with zipfile.ZipFile(precompiled) as archive:
        names = archive.namelist()
        assert names == sorted(names)
        assert len(set(names)) == len(names)
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {info.external_attr >> 16 for info in archive.infolist()} == {0o100644}
        assert archive.testzip() is None


def test_the_archive_holds_the_whole_package_and_nothing_else(archive: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "storage_manager").rglob("*.py")}
        assert set(opened.namelist()) == expected | {"__main__.py"}
        for name in expected:
            assert opened.read(name) == (ROOT / name).read_bytes()


# The file


def test_the_archive_can_be_executed(archive: Path) -> None:
    assert archive.read_bytes().startswith(b"#!/usr/bin/env python3\n")
    assert stat.S_IMODE(archive.stat().st_mode) == 0o755
    environment = clean_environment({"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"})
    done = subprocess.run([archive, "--version"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"storage_manager {__version__}\n")


def test_the_archive_can_be_executed_by_everybody_whatever_the_umask(sources: Path) -> None:
    built = build(sources, preexec_fn=lambda: os.umask(0o077))
    assert stat.S_IMODE(built.stat().st_mode) == 0o755


def test_output_names_the_file_and_makes_its_directory(sources: Path, tmp_path: Path) -> None:
    assert build(sources, "--output", tmp_path / "new" / "directory" / "tool.pyz").is_file()
    built = build(sources, "--output", "here.pyz", cwd=tmp_path)
    assert built == tmp_path / "here.pyz" and built.is_file()
    assert not (sources / "dist").exists()
    assert sorted(path.name for path in (tmp_path / "new" / "directory").iterdir()) == ["tool.pyz"]


def test_an_output_that_cannot_be_written_is_one_sentence_and_exit_code_1(sources: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "x.pyz", tmp_path):
        done = subprocess.run(
            [sys.executable, str(sources / "build_zipapp.py"), "--output", str(output)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert str(output) in done.stderr and len(done.stderr.splitlines()) == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_whoever_runs_the_archive_while_it_is_built_sees_a_whole_one(sources: Path) -> None:
    built = build(sources)
    with open(built, "rb") as old:
        before = old.read()
        with open(sources / "storage_manager" / "text.py", "a") as source:
            source.write("# changed\n")
        build(sources)
        old.seek(0)
        assert old.read() == before != built.read_bytes()


# Running it


def test_the_version_is_the_packages_version(archive: Path, precompiled: Path) -> None:
    for path in (archive, precompiled):
        done = run_archive(sys.executable, path, "--version")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"storage_manager {__version__}\n", "")


def test_the_archive_does_what_the_sources_do_and_hands_the_exit_code_on(
    archive: Path, storage: Path, tmp_path: Path
) -> None:
    guids = make_store(storage, 5, size=1000)
    listed = run_archive(sys.executable, archive, "list", "--storage-dir", storage)
    assert listed.stdout == run_tool("list", "--storage-dir", storage).stdout
    done = run_archive(sys.executable, archive, "prune-size", "--max-mb", "2000B", "--storage-dir", storage)
    assert done.returncode == 0
    assert event(done.stderr, "storage_manager.prune.summary")["deleted_count"] == 3
    assert blobs(storage) == set(read_entries(storage)) == set(guids[3:])
    assert run_archive(sys.executable, archive, "list", "--storage-dir", tmp_path / "absent").returncode == 1
    assert run_archive(sys.executable, archive, "frobnicate").returncode == 64


def test_byte_code_is_used_where_it_fits(precompiled: Path, tmp_path: Path) -> None:
    def spoil_sources(name: str, data: bytes) -> bytes:
        return b"this is not Python" if name.startswith("storage_manager/") and name.endswith(".py") else data

    spoilt = rewritten(precompiled, tmp_path / "spoilt.pyz", spoil_sources)
    done = run_archive(sys.executable, spoilt, "--version")
    assert (done.returncode, done.stdout) == (0, f"storage_manager {__version__}\n")


def test_byte_code_of_another_python_is_passed_over(precompiled: Path, tmp_path: Path) -> None:
    def age(name: str, data: bytes) -> bytes:
        return b"\x01\x02\r\n" + data[4:] if name.endswith(".pyc") else data

    aged = rewritten(precompiled, tmp_path / "aged.pyz", age)
    done = run_archive(sys.executable, aged, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"storage_manager {__version__}\n", "")


@pytest.mark.parametrize("name", SUPPORTED)
def test_the_precompiled_archive_works_on_any_supported_python(precompiled: Path, storage: Path, name: str) -> None:
    python = found(name)
    guids = make_store(storage, 5, size=1000)
    done = run_archive(python, precompiled, "prune-size", "--max-mb", "2000B", "--storage-dir", storage)
    assert done.returncode == 0, done.stderr
    assert event(done.stderr, "storage_manager.prune.summary")["deleted_count"] == 3
    assert set(read_entries(storage)) == set(guids[3:])


# Replaced while the loop runs

LOOP_THAT_LOSES_ITS_ARCHIVE = """
import os, signal, sys
archive, store, damage = sys.argv[1:]
sys.path.insert(0, archive)
from storage_manager import cli
from storage_manager.loop import housekeeper

late, steps = [], []
sys.addaudithook(lambda name, args: late.append(args[0]) if name == "import" and steps else None)

def lose_the_archive():
    if damage == "removed":
        os.unlink(archive)
    elif damage == "truncated":
        os.truncate(archive, 0)
    elif damage == "overwritten":
        size = os.path.getsize(archive)
        with open(archive, "wb") as file:
            file.write(bytes([255]) * size)
    elif damage == "updated":  # the same places, other contents
        with open(archive, "rb") as file:
            data = file.read()
        with open(archive + ".new", "wb") as file:
            file.write(data.replace(b"def ", bytes([255]) * 4))
        os.rename(archive + ".new", archive)

def metadata_is_gone():
    os.rename(store + "/metadata.json", store + "/elsewhere")

def store_is_missing():
    os.rename(store + "/elsewhere", store + "/metadata.json")
    os.rename(store, store + ".aside")

def a_fault_of_ours():
    os.rename(store + ".aside", store)
    housekeeper.run = None

def log_reopened():
    housekeeper.run = run
    os.kill(os.getpid(), signal.SIGHUP)

def stop():
    os.kill(os.getpid(), signal.SIGTERM)

left = [lose_the_archive, metadata_is_gone, store_is_missing, a_fault_of_ours, log_reopened, stop]
run, cycle = housekeeper.run, housekeeper._cycle

def stepped(*arguments):
    steps.append(left.pop(0))
    steps[-1]()
    if left:
        os.kill(os.getpid(), signal.SIGUSR1)
    return cycle(*arguments)

housekeeper._cycle = stepped
exit_code = cli.main(["run-loop", "--storage-dir", store])
print(late, [step.__name__ for step in left])
sys.exit(exit_code)
"""


@pytest.mark.parametrize("damage", ["untouched", "removed", "truncated", "overwritten", "updated"])
def test_a_loop_whose_archive_is_replaced_goes_on_and_imports_nothing_more(
    archive: Path, storage: Path, tmp_path: Path, damage: str
) -> None:
    make_store(storage, 5, size=1000)
    copy = shutil.copy(archive, tmp_path / "running.pyz")
    env = {
        "PYTHONPATH": "",
        "GOFR_DIG_LOG_FILE": str(tmp_path / "log"),
        "GOFR_DIG_MAX_STORAGE_MB": "2000B",
        "GOFR_DIG_METRICS_FILE": str(tmp_path / "loop.prom"),
        "GOFR_DIG_SEQ_URL": "http://localhost:9",
        "NOTIFY_SOCKET": str(tmp_path / "nobody"),
    }
    words = [sys.executable, "-c", LOOP_THAT_LOSES_ITS_ARCHIVE, str(copy), str(storage), damage]
    done = run_command(words, env, cwd=ROOT.anchor)
    assert (done.returncode, done.stdout) == (0, "[] []\n"), done.stderr
    assert "Traceback" not in "".join(line for line in done.stderr.splitlines() if not line.startswith("{"))
    for text in (done.stderr, (tmp_path / "log").read_text()):
        found = [item["event"] for item in events(text) if ".seq." not in item["event"]]
        assert found.count("storage_manager.prune.deleted") == 3
        assert found.count("housekeeper.cycle_nonzero") == 2
        failed = event(text, "housekeeper.cycle_failed")
        assert "TypeError" in failed["@x"] and "housekeeper.py" in failed["@x"]
        assert "housekeeper.log_reopened" in found and "storage_manager.log_dropped" not in found
        assert "internal error" not in text and found[-2:] == ["housekeeper.stopping", "storage_manager.command_end"]


# Pythons that are too old


@pytest.mark.parametrize("name", OLD)
def test_a_python_that_is_too_old_gets_one_sentence_and_exit_code_1(
    archive: Path, precompiled: Path, name: str
) -> None:
    python = found(name)
    for path in (archive, precompiled):
        done = run_archive(python, path, "list")
        assert (done.returncode, done.stdout) == (1, "")
        [line] = done.stderr.splitlines()
        assert "needs Python 3.9 or newer" in line and name[len("python") :] in line


@pytest.mark.parametrize("name", OLD)
def test_the_package_refuses_a_python_that_is_too_old_as_well(name: str) -> None:
    done = subprocess.run(
        [found(name), "-m", "storage_manager", "list"],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "needs Python 3.9 or newer" in done.stderr and "Traceback" not in done.stderr


# What the grammar's own check, which begins at Python 3.4 and knows no f-strings, lets through.
MODERN = (
    ast.JoinedStr,
    ast.AnnAssign,
    ast.NamedExpr,
    ast.AsyncFunctionDef,
    ast.Await,
    ast.Nonlocal,
    ast.Starred,
    ast.YieldFrom,
    ast.AsyncFor,
)


@pytest.mark.parametrize("name", ["__main__.py", "storage_manager/__init__.py", "storage_manager/__main__.py"])
def test_what_an_old_python_gets_to_see_parses_on_it(archive: Path, name: str) -> None:
    with zipfile.ZipFile(archive) as opened:
        source = opened.read(name).decode("ascii")
    tree = ast.parse(source, feature_version=(3, 4))
    for node in ast.walk(tree):
        assert not isinstance(node, MODERN), ast.dump(node)
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            arguments = node.args
            assert not (arguments.kwonlyargs or arguments.posonlyargs)
            assert not any(argument.annotation for argument in arguments.args)
        if isinstance(node, ast.FunctionDef):
            assert node.returns is None
        if isinstance(node, ast.ImportFrom):
            assert node.module != "__future__" and not node.level
        if isinstance(node, ast.Raise):
            assert node.cause is None
        if isinstance(node, ast.Constant):
            assert not isinstance(node.value, (bytes, complex)) and node.value is not ...


def test_an_old_python_is_refused_before_anything_newer_is_imported() -> None:
    [run] = [
        node
        for node in ast.parse((ROOT / "storage_manager" / "__main__.py").read_text()).body
        if isinstance(node, ast.FunctionDef)
    ]
    check, *rest = run.body
    assert isinstance(check, ast.If) and "version_info" in ast.dump(check.test)
    assert isinstance(check.body[-1], ast.Return)
    assert not [node for node in ast.walk(check) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert any(isinstance(node, ast.ImportFrom) for statement in rest for node in ast.walk(statement))
