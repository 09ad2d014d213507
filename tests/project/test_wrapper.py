"""scripts/storage_manager.sh: the right paths of the right environment, and then out of the way."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from loops import Running
from stores import ROOT, clean_environment, event, events, make_store, run_tool

from storage_manager import __version__

TEST_PATHS = {
    "GOFR_DIG_ENV": "TEST",
    "GOFR_DIG_DATA_DIR": "/test/data",
    "GOFR_DIG_STORAGE": "/test/storage",
    "GOFR_DIG_STORAGE_DIR": "/test/storage",
}
"""What sourcing the environment file for TEST leaves in a shell."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source tree of our own, in a path that needs quoting, with its archive built."""
    tree = tmp_path_factory.mktemp("template") / "tree"
    tree.mkdir()
    for name in ("scripts", "storage_manager"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "build_zipapp.py", tree)
    build = [sys.executable, str(tree / "build_zipapp.py"), "--precompile"]
    subprocess.run(build, env=clean_environment(), stdout=subprocess.DEVNULL, check=True)
    return tree


@pytest.fixture
def tree(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "a $project; 'of mine'"))


def run(
    tree: Path, *arguments: object, env: dict[str, str] | None = None, script: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(script or tree / "scripts" / "storage_manager.sh"), *map(str, arguments)],
        env=clean_environment({"PYTHON": sys.executable, "PYTHONPATH": "", **(env or {})}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def started(done: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """(environment, storage directory) of the tool that was run."""
    start = event(done.stderr, "storage_manager.command_start")
    return start["environment"], start["storage_dir"]


def refused(done: subprocess.CompletedProcess[str], exit_code: int, *words: str) -> None:
    """The wrapper's own error: one line, with its name, that names the thing and the remedy."""
    assert done.returncode == exit_code
    assert done.stdout == ""
    assert not events(done.stderr), "the tool was run all the same"
    line = done.stderr.splitlines()[-1]
    assert line.startswith("storage_manager.sh: ")
    for word in words:
        assert word in line


def env_file(directory: Path, text: str) -> Path:
    path = directory / "my own.env"
    path.write_text(text)
    path.chmod(0o644)
    return path


# The environment


@pytest.mark.parametrize("options", [["--env", "PROD"], ["--env=PROD"]])
def test_prod_means_prods_paths_even_if_the_callers_environment_holds_those_of_test(
    tree: Path, options: list[str]
) -> None:
    done = run(tree, *options, "list", env=TEST_PATHS)
    assert done.returncode == 0
    assert started(done) == ("PROD", f"{tree}/data/storage")


def test_test_means_tests_paths_even_if_the_callers_environment_holds_those_of_prod(tree: Path) -> None:
    prod = {name: value.replace("test", "prod").replace("TEST", "PROD") for name, value in TEST_PATHS.items()}
    assert started(run(tree, "--env", "TEST", "list", env=prod)) == ("TEST", f"{tree}/data/test/storage")


def test_without_env_it_is_test(tree: Path) -> None:
    assert started(run(tree, "list")) == ("TEST", f"{tree}/data/test/storage")


def test_without_env_the_callers_environment_wins_over_the_file(tree: Path, storage: Path, tmp_path: Path) -> None:
    make_store(storage, 1)
    done = run(tree, "list", env={"GOFR_DIG_ENV": "PROD", "GOFR_DIG_DATA_DIR": str(tmp_path)})
    assert started(done) == ("PROD", str(storage))
    done = run(tree, "list", env={"GOFR_DIG_STORAGE": str(storage), "GOFR_DIG_DATA_DIR": "/nowhere"})
    assert started(done) == ("TEST", str(storage))
    assert started(run(tree, "list", env={"GOFR_DIG_STORAGE_DIR": str(storage)})) == ("TEST", str(storage))


@pytest.mark.parametrize(
    "options",
    [["--env"], ["--env", ""], ["--env="], ["--env", "STAGING"], ["--env", "prod"], ["--env=PROD "], ["--env-file"]],
    ids="".join,
)
def test_a_wrong_value_is_wrong_usage(tree: Path, options: list[str]) -> None:
    arguments = [*options, "list"] if len(options) > 1 or "=" in options[0] else options
    refused(run(tree, *arguments), 64, options[0].split("=")[0], "PROD", "TEST")


@pytest.mark.parametrize("options", [[], ["--env", "PROD"]])
def test_without_a_command_it_is_wrong_usage(tree: Path, options: list[str]) -> None:
    refused(run(tree, *options), 64, "command", "prune-size", "--help")


def test_env_after_the_command_does_not_quietly_mean_nothing(tree: Path) -> None:
    assert run(tree, "list", "--env", "PROD").returncode == 64


@pytest.mark.parametrize("form", ["--env-file {}", "--env-file={}"])
def test_the_loops_own_environment_file_stands_behind_the_command(tree: Path, tmp_path: Path, form: str) -> None:
    (tmp_path / "settings").mkdir()
    path = tmp_path / "settings" / "limits.env"
    path.write_text("GOFR_DIG_KEEP_LAST=7\nGOFR_DIG_MAX_STORAGE_MB=7G\n")
    done = run(tree, "--env", "PROD", "run-loop", "--once", *form.format(path).split())
    assert done.returncode == 0
    assert started(done) == ("PROD", f"{tree}/data/storage")
    assert event(done.stderr, "housekeeper.started")["keep_last"] == 7
    # project.env sets the limit.
    assert event(done.stderr, "housekeeper.setting_overruled")["variables"] == ["GOFR_DIG_MAX_STORAGE_MB"]


DERIVED = """
export GOFR_DIG_DATA=${GOFR_DIG_DATA:-%s/$GOFR_DIG_ENV}
GOFR_DIG_STORAGE=$GOFR_DIG_DATA/sessions
"""


@pytest.mark.parametrize("env", ["PROD", "TEST"])
def test_a_path_that_an_earlier_reading_left_does_not_lead_to_another_store(
    tree: Path, tmp_path: Path, env: str
) -> None:
    """The file derives its paths from a variable of its own, and the caller has sourced it for the other one."""
    path = env_file(tmp_path, DERIVED % tmp_path)
    other = {"PROD": "TEST", "TEST": "PROD"}[env]
    for name in (env, other):
        make_store(tmp_path / name / "sessions", 2)
    options = ("--env", env, "--env-file", path)
    assert started(run(tree, *options, "list")) == (env, f"{tmp_path}/{env}/sessions")
    done = run(tree, *options, "purge", "--age-days", "0", "--yes", env={"GOFR_DIG_DATA": str(tmp_path / other)})
    refused(done, 1, f"{tmp_path}/{env}/sessions", f"{tmp_path}/{other}/sessions", "--storage-dir")
    assert len(list((tmp_path / other / "sessions").iterdir())) == 3
    done = run(
        tree, *options, "list", "--storage-dir", tmp_path / other / "sessions", env={"GOFR_DIG_DATA": str(tmp_path)}
    )
    assert started(done) == (env, f"{tmp_path}/{other}/sessions")


@pytest.mark.parametrize("options", [["list", "--env", "PROD"], ["purge", "--yes", "--env=PROD"]])
def test_env_behind_the_command_is_explained(tree: Path, options: list[str]) -> None:
    refused(run(tree, *options), 64, "--env", "before the command")


# The environment file


def test_a_name_without_a_slash_is_the_file_here_and_not_one_of_the_path(
    tree: Path, storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mine.env").write_text("GOFR_DIG_STORAGE=/wrong\n")
    here = tmp_path / "here"
    here.mkdir()
    for name in ("mine.env", "-p"):
        (here / name).write_text(f"GOFR_DIG_STORAGE='{storage}'\n")
    make_store(storage, 1)
    monkeypatch.chdir(here)
    path = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    for options in (["--env-file", "mine.env"], ["--env-file=-p"], ["--env-file", "-p"]):
        assert started(run(tree, *options, "list", env=path)) == ("TEST", str(storage))


@pytest.mark.parametrize(
    "line", ["root=/wrong", "prefix=WRONG", "here=/wrong", "options=(x)", "found=()", "archive=/wrong", "named=yes"]
)
def test_the_file_cannot_change_what_the_wrapper_does(tree: Path, storage: Path, tmp_path: Path, line: str) -> None:
    make_store(storage, 1)
    path = env_file(tmp_path, f"{line}\nGOFR_DIG_STORAGE='{storage}'\n")
    assert started(run(tree, "--env-file", path, "list")) == ("TEST", str(storage))
    name, _, value = line.partition("=")
    assert started(run(tree, "--env-file", path, "list", env={name: value})) == ("TEST", str(storage))


@pytest.mark.parametrize(
    "line", ["false", "cd /nowhere/at/all", "exit 0", "source /nowhere/at/all", "((", "x=$(false)"]
)
def test_an_error_in_the_middle_of_the_file_ends_it(tree: Path, storage: Path, tmp_path: Path, line: str) -> None:
    make_store(storage, 1)
    path = env_file(tmp_path, f"GOFR_DIG_STORAGE=/wrong\n{line}\nGOFR_DIG_STORAGE='{storage}'\n")
    refused(run(tree, "--env-file", path, "list"), 1, str(path), "failed")


def test_a_hostile_environment_changes_nothing(tree: Path, storage: Path, tmp_path: Path) -> None:
    (tmp_path / "rc").write_text(f"echo rc >> '{tmp_path}/harm'; GOFR_DIG_STORAGE=/wrong\n")
    env = {
        "BASH_ENV": str(tmp_path / "rc"),
        "ENV": str(tmp_path / "rc"),
        "CDPATH": "/",
        "BASH_FUNC_dirname%%": "() { :; }",
    }
    done = run(tree, "--env", "PROD", "list", env={**env, "SHELLOPTS": "noglob", "settled": "x", "intended": "/wrong"})
    assert started(done) == ("PROD", f"{tree}/data/storage")
    # The first bash reads BASH_ENV before a line of the script; none of it reaches what the script does.
    assert (tmp_path / "harm").read_text() == "rc\n"


@pytest.mark.parametrize("shell", ["sh", "dash"])
def test_run_by_another_shell_it_goes_on_in_bash(tree: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run(
        [shell, str(tree / "scripts" / "storage_manager.sh"), "--version"],
        env=clean_environment({"PYTHON": sys.executable}), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"storage_manager {__version__}\n")


def test_without_bash_it_is_one_sentence(tree: Path, tmp_path: Path) -> None:
    shell = shutil.which("sh")
    assert shell is not None
    done = subprocess.run(
        [shell, str(tree / "scripts" / "storage_manager.sh"), "list"],
        env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("storage_manager.sh: bash is not installed") and done.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_file_that_others_own_or_may_replace_is_refused(tree: Path, storage: Path, tmp_path: Path, what: str) -> None:
    directory = tmp_path / "etc"
    directory.mkdir(mode=0o755)
    path = env_file(directory, f"touch '{tmp_path}/harm'; GOFR_DIG_STORAGE='{storage}'\n")
    os.chown(path if what == "file" else directory, 4321, 4321)
    refused(run(tree, "--env-file", path, "list"), 1, "4321", "chown")
    os.chown(path if what == "file" else directory, 0, 0)
    directory.chmod(0o777)
    refused(run(tree, "--env-file", path, "list"), 1, str(directory), "chmod o-w")
    assert not (tmp_path / "harm").exists()
    directory.chmod(0o1777)  # as /tmp: only owners replace what is in it
    make_store(storage, 1)
    assert started(run(tree, "--env-file", path, "list")) == ("TEST", str(storage))


def test_the_file_is_read_once_and_its_variables_reach_the_tool(tree: Path, storage: Path, tmp_path: Path) -> None:
    make_store(storage, 3, size=1000)
    path = env_file(
        tmp_path,
        f'echo read >> "{tmp_path}/readings"\nGOFR_DIG_STORAGE="{storage}"\nGOFR_DIG_MAX_STORAGE_MB=2000B\n',
    )
    done = run(tree, "--env-file", path, "run-loop", "--once")
    assert done.returncode == 0
    assert event(done.stderr, "storage_manager.prune.summary")["deleted_count"] == 1
    assert (tmp_path / "readings").read_text() == "read\n"


def test_env_is_known_while_the_file_is_read(tree: Path, tmp_path: Path) -> None:
    path = env_file(tmp_path, f'GOFR_DIG_DATA_DIR="{tmp_path}/$GOFR_DIG_ENV"\n')
    make_store(tmp_path / "PROD" / "storage", 1)
    done = run(tree, f"--env-file={path}", "--env", "PROD", "list")
    assert started(done) == ("PROD", f"{tmp_path}/PROD/storage")


def test_a_missing_file_is_refused(tree: Path, tmp_path: Path) -> None:
    refused(
        run(tree, "--env-file", tmp_path / "absent.env", "list"), 1, f"{tmp_path}/absent.env", "project.env.example"
    )
    (tree / "scripts" / "project.env").unlink()
    refused(run(tree, "list"), 1, f"{tree}/scripts/project.env", "project.env.example")


@pytest.mark.parametrize("mode", [0o646, 0o666, 0o777, 0o602])
def test_a_file_that_anybody_may_write_is_refused_and_not_run(tree: Path, tmp_path: Path, mode: int) -> None:
    path = env_file(tmp_path, f'touch "{tmp_path}/was run"\nGOFR_DIG_STORAGE=/x\n')
    path.chmod(mode)
    refused(run(tree, "--env-file", path, "list"), 1, str(path), "chmod o-w")
    link = tmp_path / "link.env"
    link.symlink_to(path)
    refused(run(tree, "--env-file", link, "list"), 1, str(link))
    assert not (tmp_path / "was run").exists()


def test_a_file_that_contradicts_env_is_refused(tree: Path, tmp_path: Path) -> None:
    path = env_file(tmp_path, "GOFR_DIG_ENV=TEST\nGOFR_DIG_STORAGE=/x\n")
    refused(run(tree, "--env", "PROD", "--env-file", path, "list"), 1, str(path), "GOFR_DIG_ENV=TEST", "--env PROD")
    assert run(tree, "--env", "TEST", "--env-file", path, "list").returncode == 1  # the tool: there is no /x


def test_a_file_that_names_no_known_environment_is_refused(tree: Path, tmp_path: Path) -> None:
    path = env_file(tmp_path, "GOFR_DIG_ENV=STAGING\nGOFR_DIG_STORAGE=/x\n")
    refused(run(tree, "--env-file", path, "list"), 1, "STAGING", "PROD", "TEST")


def test_a_file_that_cannot_be_run_is_refused(tree: Path, tmp_path: Path) -> None:
    refused(run(tree, "--env-file", env_file(tmp_path, "if then\n"), "list"), 1, "my own.env")


def test_a_file_that_names_no_path_is_refused(tree: Path, tmp_path: Path) -> None:
    path = env_file(tmp_path, "GOFR_DIG_MAX_STORAGE_MB=5\n")
    refused(run(tree, "--env-file", path, "list"), 1, "GOFR_DIG_STORAGE", "GOFR_DIG_DATA_DIR", str(path))


def test_the_prefix_can_be_changed(tree: Path, storage: Path, tmp_path: Path) -> None:
    make_store(storage, 1)
    env = {"STORAGE_MANAGER_ENV_PREFIX": "OTHER_SERVICE"}
    refused(run(tree, "list", env=env), 1, "OTHER_SERVICE_STORAGE", "OTHER_SERVICE_DATA_DIR")
    path = env_file(tmp_path, f'OTHER_SERVICE_STORAGE="{storage}"\n')
    done = run(tree, "--env", "PROD", "--env-file", path, "list", env={**env, "OTHER_SERVICE_STORAGE": "/caller"})
    assert started(done) == ("PROD", str(storage))


@pytest.mark.parametrize("prefix", ["GOFR DIG", "x; touch evil", "1ST", "a-b", "A[$(touch evil)]"])
def test_a_prefix_that_cannot_begin_a_name_is_refused(tree: Path, prefix: str) -> None:
    refused(run(tree, "list", env={"STORAGE_MANAGER_ENV_PREFIX": prefix}), 1, "STORAGE_MANAGER_ENV_PREFIX", prefix)
    assert not Path("evil").exists()


# Paths


def test_the_projects_own_store_is_created(tree: Path) -> None:
    assert not (tree / "data").exists()
    done = run(tree, "--env", "PROD", "stats")
    assert done.returncode == 0
    assert (tree / "data" / "storage").is_dir()
    assert not (tree / "data" / "test").exists()


def test_any_other_directory_is_not_created(tree: Path, tmp_path: Path) -> None:
    for env in ({"GOFR_DIG_DATA_DIR": f"{tmp_path}/absent"}, {"GOFR_DIG_STORAGE": f"{tmp_path}/absent/storage"}):
        done = run(tree, "list", env=env)
        assert done.returncode == 1
        assert started(done)[1] == f"{tmp_path}/absent/storage"
    assert not (tmp_path / "absent").exists()
    assert not (tree / "data").exists()


@pytest.mark.parametrize("form", ["--storage-dir X", "--storage-dir=X", "--data-root Y", "--data-root=Y"])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_directory_on_the_command_line_wins(
    tree: Path, storage: Path, tmp_path: Path, form: str, before: bool
) -> None:
    make_store(storage, 1)
    words = [word.replace("X", str(storage)).replace("Y", str(tmp_path)) for word in form.split()]
    done = run(tree, *words, "list") if before else run(tree, "list", *words)
    assert started(done) == ("TEST", str(storage))
    assert not (tree / "data").exists()
    # Nor may the environment's more specific variable win over it.
    done = run(tree, "list", *words, env={"GOFR_DIG_STORAGE": "/nowhere"})
    assert started(done) == ("TEST", str(storage))


def test_a_directory_on_the_command_line_needs_no_variable(tree: Path, storage: Path, tmp_path: Path) -> None:
    make_store(storage, 1)
    path = env_file(tmp_path, "GOFR_DIG_MAX_STORAGE_MB=5\n")
    assert run(tree, "--env-file", path, "list", "--storage-dir", storage).returncode == 0


def test_arguments_are_handed_on_as_they_are(tree: Path, storage: Path) -> None:
    guids = make_store(storage, 2, group="a  b *")
    done = run(tree, "list", "--storage-dir", storage, "--group", "a  b *")
    assert done.stdout.split() == guids


# Python and the archive


def test_a_missing_python_is_refused(tree: Path) -> None:
    refused(run(tree, "list", env={"PYTHON": "/nowhere/python3"}), 1, "/nowhere/python3", "PYTHON", "3.9")


def test_a_python_that_is_too_old_is_refused(tree: Path, tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    refused(run(tree, "list", env={"PYTHON": str(old)}), 1, str(old), "3.9", "PYTHON")


def test_without_python_it_is_the_python3_of_the_path(tree: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = run(tree, "--version", env={"PYTHON": "", "PATH": path})
    assert (done.returncode, done.stdout) == (0, f"storage_manager {__version__}\n")


def test_a_missing_archive_is_refused(tree: Path, tmp_path: Path) -> None:
    env = {"STORAGE_MANAGER_PYZ": str(tmp_path / "absent.pyz")}
    refused(run(tree, "list", env=env), 1, f"{tmp_path}/absent.pyz", "STORAGE_MANAGER_PYZ")


def test_the_archive_that_is_named_is_run_and_not_built(tree: Path, tmp_path: Path) -> None:
    shutil.move(str(tree / "dist" / "storage_manager.pyz"), tmp_path / "mine.pyz")
    done = run(tree, "--version", env={"STORAGE_MANAGER_PYZ": str(tmp_path / "mine.pyz")})
    assert (done.returncode, done.stdout) == (0, f"storage_manager {__version__}\n")
    assert not (tree / "dist" / "storage_manager.pyz").exists()


def test_a_missing_archive_is_built_in_a_source_tree(tree: Path) -> None:
    shutil.rmtree(tree / "dist")
    done = run(tree, "--version")
    assert (done.returncode, done.stdout) == (0, f"storage_manager {__version__}\n")
    assert (tree / "dist" / "storage_manager.pyz").is_file()


def test_an_archive_older_than_the_sources_is_built_anew(tree: Path) -> None:
    source = tree / "storage_manager" / "__init__.py"
    source.write_text(source.read_text().replace(__version__, "98.76.54"))
    assert run(tree, "--version").stdout == "storage_manager 98.76.54\n"


def test_a_deployment_that_keeps_old_times_is_built_anew(tree: Path) -> None:
    source = tree / "storage_manager" / "__init__.py"
    source.write_text(source.read_text().replace(__version__, "98.76.54"))
    os.utime(source, (1, 1))
    os.utime(tree / "storage_manager", (1, 1))
    assert run(tree, "--version").stdout == "storage_manager 98.76.54\n"


def test_an_archive_newer_than_the_sources_is_left_alone(tree: Path) -> None:
    archive = tree / "dist" / "storage_manager.pyz"
    before = archive.stat()
    cache = tree / "storage_manager" / "__pycache__"
    cache.mkdir()
    os.utime(tree / "storage_manager", (1, 1))
    (cache / "newer.pyc").write_bytes(b"")
    assert run(tree, "--version").returncode == 0
    assert (archive.stat().st_ino, archive.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_source_that_was_deleted_counts_as_a_change(tree: Path) -> None:
    (tree / "storage_manager" / "extra.py").write_text("")
    assert run(tree, "--version").returncode == 0
    before = (tree / "dist" / "storage_manager.pyz").stat().st_ino
    (tree / "storage_manager" / "extra.py").unlink()
    assert run(tree, "--version").returncode == 0
    assert (tree / "dist" / "storage_manager.pyz").stat().st_ino != before


def test_building_leaves_standard_output_to_the_results(tree: Path, storage: Path) -> None:
    guids = make_store(storage, 2)
    shutil.rmtree(tree / "dist")
    assert run(tree, "list", "--storage-dir", storage).stdout.split() == guids


def test_an_archive_that_cannot_be_built_is_refused(tree: Path) -> None:
    shutil.rmtree(tree / "dist")
    (tree / "dist").write_text("a file where the directory should be")
    refused(run(tree, "list"), 1, f"{tree}/dist/storage_manager.pyz")


def test_without_a_source_tree_the_archive_beside_the_wrapper_is_run(tree: Path, tmp_path: Path) -> None:
    host = tmp_path / "opt"
    host.mkdir()
    for path in (tree / "scripts" / "storage_manager.sh", tree / "dist" / "storage_manager.pyz"):
        shutil.copy2(path, host)
    (host / "project.env").write_text("GOFR_DIG_STORAGE=/nowhere/at/all\n")
    done = run(tree, "list", script=host / "storage_manager.sh")
    assert done.returncode == 1
    assert started(done) == ("TEST", "/nowhere/at/all")


def test_a_link_to_the_wrapper_finds_its_tree(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "keep-house").symlink_to(tree / "scripts" / "storage_manager.sh")
    done = run(tree, "--env", "PROD", "list", script=tmp_path / "bin" / "keep-house")
    assert started(done) == ("PROD", f"{tree}/data/storage")


# Out of the way


def test_the_tools_exit_code_is_passed_on(tree: Path, storage: Path) -> None:
    make_store(storage, 3, size=1000)
    assert run(tree, "frobnicate").returncode == 64
    assert run(tree, "prune-size", "--max-mb", "0", "--storage-dir", storage).returncode == 64
    assert run(tree, "prune-size", "--max-mb", "1B", "--keep-last", "1", "--storage-dir", storage).returncode == 1
    with open(storage / ".prune_size.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(tree, "prune-size", "--max-mb", "1B", "--storage-dir", storage).returncode == 2


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_wrapper_becomes_the_tool_so_that_signals_reach_it(tree: Path, signum: signal.Signals) -> None:
    arguments = [str(tree / "scripts" / "storage_manager.sh"), "run-loop"]
    with Running(arguments, env={"PYTHON": sys.executable, "PYTHONPATH": ""}) as tool:
        assert tool.wait_for("housekeeper.sleep")["pid"] == tool.process.pid
        tool.send(signum)
        assert tool.end() == 0


def test_a_wake_up_while_the_wrapper_starts_the_loop_does_not_end_it(tree: Path, tmp_path: Path) -> None:
    ready, go_on = tmp_path / "ready", tmp_path / "go on"
    for fifo in (ready, go_on):
        os.mkfifo(fifo)
    text = f"echo >'{ready}'; read -r _ <'{go_on}'\n" + (tree / "scripts" / "project.env").read_text()
    (tree / "scripts" / "project.env").write_text(text)
    arguments = [str(tree / "scripts" / "storage_manager.sh"), "run-loop"]
    with Running(arguments, env={"PYTHON": sys.executable, "PYTHONPATH": ""}) as tool:
        ready.read_text()  # the environment file is being run
        tool.send(signal.SIGUSR1)
        go_on.write_text("\n")
        tool.wait_for("housekeeper.sleep")
        tool.send(signal.SIGTERM)
        assert tool.end() == 0


def test_the_wrapper_does_what_the_tool_does(tree: Path, storage: Path) -> None:
    make_store(storage, 3)
    assert (
        run(tree, "list", "--json", "--storage-dir", storage).stdout
        == run_tool("list", "--json", "--storage-dir", storage).stdout
    )


def test_help_and_version_are_the_tools(tree: Path) -> None:
    assert run(tree, "--version").stdout == f"storage_manager {__version__}\n"
    shown, plain = (" ".join(help.stdout.split()) for help in (run(tree, "--help"), run_tool("--help")))
    assert f"[GOFR_DIG_DATA_DIR={tree}/" in shown
    assert re.sub(r"(GOFR_DIG_(?:STORAGE|DATA_DIR|ENV))=[^]]*", r"\1", shown) == plain


# The scripts themselves


SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.sh"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_short_strict_and_executable(name: str) -> None:
    path = ROOT / "scripts" / name
    lines = path.read_text().splitlines()
    assert len(lines) < 100
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines
    assert os.access(path, os.X_OK)


def test_the_wrapper_ends_in_exec() -> None:
    assert (ROOT / "scripts" / "storage_manager.sh").read_text().splitlines()[-1].startswith("exec ")


def test_the_wrapper_waits_for_no_other_child_and_passes_open_files_on(tree: Path, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.write_text('import os\nprint(*sorted(map(int, os.listdir("/proc/self/fd"))))\n')
    script = 'trap "" CHLD; sleep 60 & exec 3</dev/null; exec "$0" list --storage-dir /'
    with subprocess.Popen(
        ["bash", "-c", script, tree / "scripts" / "storage_manager.sh"],
        env=clean_environment({"STORAGE_MANAGER_PYZ": str(archive), "PYTHON": sys.executable}),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            assert process.wait(30) == 0
            assert process.stdout.readline() == "0 1 2 3 4\n"  # 3 is the caller's, 4 what lists them
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_no_setting_is_an_argument_that_everybody_may_read(tree: Path, tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    file, calls = tmp_path / "project.env", tmp_path / "calls"
    file.write_text("GOFR_DIG_SEQ_API_KEY=S3cret\n")
    words = [
        strace,
        "-f",
        "-s",
        "1000",
        "-e",
        "trace=execve",
        "-o",
        calls,
        tree / "scripts" / "storage_manager.sh",
        "--env-file",
        file,
        "config",
    ]
    done = subprocess.run(
        [*words, "--storage-dir", tmp_path], env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert "GOFR_DIG_SEQ_API_KEY" in done.stdout and "S3cret" not in done.stdout + calls.read_text()
    assert "storage_manager.pyz" in calls.read_text()


def test_the_scripts_are_clean() -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    files = [*(f"scripts/{name}" for name in SCRIPTS), "scripts/project.env", "scripts/project.env.example"]
    done = subprocess.run([shellcheck, "-x", *files], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
