"""The deployment of docs/deploy in real containers, beside a client that saves at full speed.

Run by scripts/test_containers.sh, which provides the engine and an image with Python:

    python3 containers.py BASE_IMAGE

Ends with 1 at the first check that fails, and says which. Standard library only: no virtual environment is needed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PROJECT = f"storage-manager-test-{os.getpid()}"
IMAGE = f"{PROJECT}:image"
LIMIT_BYTES = 1_500_000
TARGET_BYTES = 900_000
SAVE_BYTES = 10_000
SAVES = 2000

# Some seconds are usual. An engine that starts for the first time on a slow disk takes far longer.
PATIENCE_SECS = 120.0
LONGEST_STOP_SECS = 2.0

# A look at the store from a container of its own: the engine may be on another machine.
LOOK = """
import json, os
names = os.listdir("/data/storage")
blobs = {n.split(".")[0]: os.stat("/data/storage/" + n).st_size for n in names if n.count("-") == 4}
info = os.stat("/data/storage/metadata.json")
entries = json.load(open("/data/storage/metadata.json"))
print(json.dumps({"blobs": blobs, "entries": list(entries), "owner": [info.st_uid, info.st_gid],
                  "left": [n for n in names if n.startswith(".") and not n.startswith(".metadata.json.prev")]}))
"""
ABOUT_ITSELF = """
import json, os
def refused():
    try:
        open("/opt/storage_manager/probe", "w")
    except OSError as error:
        return error.strerror
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({"uid": os.getuid(), "capabilities": int(status["CapEff"], 16),
                  "no_new_privileges": status["NoNewPrivs"].strip(), "refused": refused()}))
"""
KILL_ALL = "import os; os.kill(-1, 9)"  # as the loop's user: all but the container's process 1, which then ends


class User(NamedTuple):
    """Who runs what."""

    title: str
    loop: str
    client: str
    capabilities: list[str]
    target_bytes: int = LIMIT_BYTES


USERS = [
    User("as the owner of the store", "12345:23456", "12345:23456", []),
    User("as root, beside a client that is not", "0:0", "12345:23456", ["CHOWN", "DAC_OVERRIDE", "FOWNER"]),
    User("with a target below the limit", "12345:23456", "12345:23456", [], TARGET_BYTES),
]
CAPABILITY_BITS = {"CHOWN": 1 << 0, "DAC_OVERRIDE": 1 << 1, "FOWNER": 1 << 3}


class Failed(Exception):
    """A check that failed."""


def expect(true: object, what: str, *seen: object) -> None:
    if not true:
        raise Failed(": ".join([what, *(str(item)[:2000] for item in seen)]))


def say(text: str) -> None:
    print(f"containers: {text}", flush=True)


class Output(NamedTuple):
    """What a command that succeeded has written."""

    stdout: str
    stderr: str


def run(*command: str, settings: dict[str, str] | None = None, data: bytes | None = None) -> Output:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("GOFR_DIG", "COMPOSE"))}
    environment = {**inherited, **(settings or {})}
    done = subprocess.run(command, input=data, capture_output=True, timeout=600, env=environment, check=False)
    output = Output(done.stdout.decode(), done.stderr.decode())
    expect(done.returncode == 0, f"{' '.join(command)[:200]} ended with {done.returncode}", *reversed(output))
    return output


def docker(*arguments: str, data: bytes | None = None) -> str:
    return run("docker", *arguments, data=data).stdout


def compose_command() -> list[str]:
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    return ["docker", "compose"] if plugin.returncode == 0 else ["docker-compose"]


def wait_for(what: str, happened: Callable[[], Any]) -> Any:
    """What `happened` returns once it is true."""
    end = time.monotonic() + PATIENCE_SECS
    while time.monotonic() < end:
        result = happened()
        if result:
            return result
        time.sleep(0.2)
    raise Failed(f"{what}: not in {PATIENCE_SECS:.0f} seconds")


class Deployment:
    """compose.yml as it is, with a client beside it."""

    def __init__(self, tree: Path, base: str, user: User) -> None:
        self.user = user
        self.base = base
        self.volume = f"{PROJECT}-data"
        self.settings = {
            "STORAGE_MANAGER_IMAGE": IMAGE,
            "STORAGE_MANAGER_BASE_IMAGE": base,
            "STORAGE_MANAGER_USER": user.loop,
            "STORAGE_MANAGER_VOLUME": self.volume,
            "GOFR_DIG_MAX_STORAGE_MB": f"{LIMIT_BYTES}B",
            "GOFR_DIG_HOUSEKEEPING_INTERVAL_MINS": "0.005",
            "GOFR_DIG_ENV": "TEST",
        }
        if user.target_bytes != LIMIT_BYTES:
            self.settings["GOFR_DIG_TARGET_STORAGE_MB"] = f"{user.target_bytes}B"
        override = tree / "override.yml"  # JSON is YAML
        override.write_text(json.dumps(self._override()))
        compose = tree / "docs" / "deploy" / "compose.yml"
        self.compose = [*compose_command(), "-p", PROJECT, "-f", str(compose), "-f", str(override)]

    def _override(self) -> dict[str, Any]:
        client = {
            "image": self.base,
            "user": self.user.client,
            "network_mode": "none",
            "volumes": ["data:/data"],
            "command": ["python3", "/data/client.py", "/data/storage", str(SAVES), "--size", str(SAVE_BYTES)],
        }
        loop = {"healthcheck": {"interval": "1s"}}  # instead of a minute
        if self.user.capabilities:
            loop["cap_add"] = self.user.capabilities  # type: ignore[assignment]
        return {"services": {"storage_manager": loop, "client": client}}

    def prepare(self) -> None:
        """A volume that belongs to the client, and the client's program in it."""
        docker("volume", "create", self.volume)
        self._in_volume("import os, sys; open('/data/client.py', 'wb').write(sys.stdin.buffer.read())",
                        (ROOT / "tests" / "support" / "client.py").read_bytes())  # fmt: skip
        uid, gid = self.user.client.split(":")
        self._in_volume(f"import os; os.mkdir('/data/storage', 0o700); os.chown('/data/storage', {uid}, {gid})")

    def _in_volume(self, program: str, data: bytes | None = None) -> str:
        options = ["--rm", "-i", "--network", "none", "-v", f"{self.volume}:/data"]
        return docker("run", *options, self.base, "python3", "-c", program, data=data)

    def control(self, *arguments: str) -> None:
        run(*self.compose, *arguments, settings=self.settings)

    def container(self, service: str) -> str:
        labels = (f"com.docker.compose.project={PROJECT}", f"com.docker.compose.service={service}")
        return docker("ps", "-a", "-q", *(f"--filter=label={label}" for label in labels)).strip()

    def store(self) -> Any:
        return json.loads(self._in_volume(LOOK))


def state(container: str) -> Any:
    return json.loads(docker("inspect", container))[0]


def saved_by(container: str) -> list[str]:
    return docker("logs", container).split()


def wait_until_saved(container: str) -> list[str]:
    """Every guid that the client has printed, oldest first, once it has ended."""
    ended = wait_for("the client ends", lambda: (now := state(container)["State"])["Status"] == "exited" and now)
    expect(ended["ExitCode"] == 0, "the client failed", docker("logs", container))
    return saved_by(container)


def events(container: str) -> list[dict[str, Any]]:
    """What the container has written: CLEF on standard error, a line each, and nothing on standard output."""
    logs = run("docker", "logs", container)
    expect(logs.stdout == "", "the loop wrote to standard output", logs.stdout)
    found = []
    for line in logs.stderr.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            raise Failed(f"a line of the log is not JSON: {line[:500]}") from None
        expect(isinstance(event, dict) and {"@t", "@m", "@l", "event"} <= set(event), "a line is not CLEF", line)
        expect("@x" not in event, "an exception", line)
        found.append(event)
    return found


def count(container: str, key: str) -> int:
    return sum(event["event"] == key for event in events(container))


def wait_for_cycles(container: str) -> None:
    """Until a cycle is over that began after the call."""
    before = count(container, "housekeeper.sleep")
    wait_for("two more cycles", lambda: count(container, "housekeeper.sleep") >= before + 2)


def wait_until_healthy(container: str) -> None:
    wait_for("healthy", lambda: state(container)["State"]["Health"]["Status"] == "healthy")


def check_confinement(container: str, user: User) -> None:
    host = state(container)["HostConfig"]
    expect(host["ReadonlyRootfs"] and host["Init"], "read_only and init", host)
    expect(host["Memory"] > 0 and host["PidsLimit"] > 0 and host["NanoCpus"] > 0, "limits", host)
    expect(host["LogConfig"]["Config"].get("max-size"), "log rotation", host["LogConfig"])
    seen = json.loads(docker("exec", container, "python3", "-c", ABOUT_ITSELF))
    expect(seen["refused"] == "Read-only file system", "the root can be written", seen)
    expect(seen["uid"] == int(user.loop.split(":")[0]), "the user", seen)
    expect(seen["no_new_privileges"] == "1", "no-new-privileges", seen)
    expect(seen["capabilities"] == sum(CAPABILITY_BITS[name] for name in user.capabilities), "capabilities", seen)


def check_store(deployment: Deployment, saved: list[str], deleted: set[str], every_deletion_is_logged: bool) -> None:
    """Pruned, the oldest first, and nobody else's session gone."""
    store = deployment.store()
    blobs, entries = store["blobs"], set(store["entries"])
    usage = sum(blobs.values())
    expect(deployment.user.target_bytes - 2 * SAVE_BYTES < usage <= LIMIT_BYTES, "usage", usage)
    expect(set(blobs) <= entries, "blobs without an entry", set(blobs) - entries)
    gone = [guid for guid in saved if guid not in blobs]
    expect(gone == saved[: len(gone)], "a younger session went before an older one", gone)
    expect(deleted <= set(gone), "deleted, and there again", deleted - set(gone))
    if every_deletion_is_logged:
        expect(set(gone) == deleted, "gone, and nobody chose it", set(gone) - deleted)
    expect(store["owner"] == [int(part) for part in deployment.user.client.split(":")], "metadata.json's owner", store)
    expect(store["left"] == [], "left behind", store["left"])


def check_margin(container: str, user: User) -> None:
    """Nothing goes within the limit. Beyond it, just enough goes to reach the target."""
    summaries = [event for event in events(container) if event["event"] == "storage_manager.prune.summary"]
    deleting = [event for event in summaries if event["deleted_count"]]
    expect(deleting, "no cycle has deleted anything")
    for event in deleting:
        expect(event["current_bytes"] > LIMIT_BYTES, "deleted within the limit", event)
        expect(user.target_bytes - SAVE_BYTES < event["final_bytes"] <= user.target_bytes, "the target", event)
    say(f"{len(deleting)} of {len(summaries)} cycles deleted, each down to {user.target_bytes:,} bytes")


def check_stop(deployment: Deployment, container: str) -> None:
    """Compose's own start counts as well, and a busy machine can make that slow: one of three has to be in time."""
    for _ in range(3):
        took_secs = stop(deployment, container)
        say(f"stopped with exit code 0 in {took_secs:.2f} seconds")
        if took_secs < LONGEST_STOP_SECS:
            return
        deployment.control("start", "storage_manager")
        wait_for_cycles(container)
    raise Failed("every stop took too long")


def stop(deployment: Deployment, container: str) -> float:
    """How many seconds an orderly stop took."""
    began = time.monotonic()
    deployment.control("stop", "storage_manager")
    took_secs = time.monotonic() - began
    ended = state(container)["State"]
    expect(ended["ExitCode"] == 0 and not ended["OOMKilled"], "the exit code after a stop", ended)
    last = events(container)[-1]
    expect(last["event"] == "storage_manager.command_end", "the last event after a stop", last)
    return took_secs


def try_it(deployment: Deployment) -> None:
    deployment.prepare()
    deployment.control("up", "-d", "--no-build")
    loop, client = deployment.container("storage_manager"), deployment.container("client")

    saved = wait_until_saved(client)
    expect(len(saved) == SAVES, "sessions saved", len(saved))
    wait_until_healthy(loop)
    check_confinement(loop, deployment.user)
    wait_for_cycles(loop)
    deleted = {event["guid"] for event in events(loop) if event["event"] == "storage_manager.prune.deleted"}
    check_store(deployment, saved, deleted, every_deletion_is_logged=True)
    say(f"saved {len(saved)}, pruned {len(deleted)}, lost none; healthy")
    check_margin(loop, deployment.user)

    # Killed while the client saves: what it was doing may be missing in the log, but not in the store.
    docker("start", client)
    wait_for("saves of the second client", lambda: len(saved_by(client)) > SAVES + SAVES // 4)
    run_before = state(loop)["RestartCount"]
    subprocess.run(["docker", "exec", loop, "python3", "-c", KILL_ALL], capture_output=True, check=False)
    wait_for("a restart", lambda: state(loop)["RestartCount"] > run_before and state(loop)["State"]["Running"])
    saved = wait_until_saved(client)
    wait_until_healthy(loop)
    wait_for_cycles(loop)
    deleted = {event["guid"] for event in events(loop) if event["event"] == "storage_manager.prune.deleted"}
    check_store(deployment, saved, deleted, every_deletion_is_logged=False)
    say(f"killed, restarted, healthy again; saved {len(saved)}, lost none")
    check_stop(deployment, loop)


class Store(NamedTuple):
    """One of compose.stores.yml."""

    prefix: str
    user: str
    directory: str
    limit_bytes: int
    target_bytes: int

    @property
    def settings(self) -> dict[str, str]:
        found = {"MAX_STORAGE_MB": self.limit_bytes, "TARGET_STORAGE_MB": self.target_bytes}
        sizes = {f"{self.prefix}_{name}": f"{value}B" for name, value in found.items()}
        return {**sizes, f"{self.prefix}_MAX_DELETE": "off"}


SEVERAL = {
    "gofr-dig": Store("GOFR_DIG", "1000:1000", "storage/sessions", 300_000, 200_000),
    "reports": Store("REPORTS", "1001:1001", "storage", 1_500_000, 1_200_000),
}
SAVES_OF_SEVERAL = 160


def try_several(tree: Path, base: str) -> None:
    """compose.stores.yml: each store is kept within its own limit by its own loop."""
    settings = {"STORAGE_MANAGER_IMAGE": IMAGE, "STORAGE_MANAGER_BASE_IMAGE": base}
    override = tree / "override.yml"
    override.write_text(json.dumps({
        "services": {name: {"environment": store.settings, "healthcheck": {"interval": "1s"}}
                     for name, store in SEVERAL.items()},
        "volumes": {name: {"name": f"{PROJECT}-{name}"} for name in SEVERAL},
    }))  # fmt: skip
    file = tree / "docs" / "deploy" / "compose.stores.yml"
    compose = [*compose_command(), "-p", PROJECT, "-f", str(file), "-f", str(override)]
    try:
        for name, store in SEVERAL.items():
            fill(f"{PROJECT}-{name}", base, store)
        run(*compose, "up", "-d", "--no-build", settings=settings)
        containers = {name: run(*compose, "ps", "-q", name, settings=settings).stdout.strip() for name in SEVERAL}
        for name, store in SEVERAL.items():
            wait_until_healthy(containers[name])
            [summary] = [event for event in events(containers[name]) if event["event"].endswith("prune.summary")]
            expect(summary["storage_dir"] == f"/stores/{name}/{store.directory}", "the store", summary)
            expect(
                store.target_bytes - SAVE_BYTES < summary["final_bytes"] <= store.target_bytes, "the target", summary
            )
        run(*compose, "stop", settings=settings)
        for container in containers.values():
            expect(state(container)["State"]["ExitCode"] == 0, "the exit code after a stop", state(container)["State"])
        say(f"{len(SEVERAL)} stores, each with its own loop, limit and prefix; healthy")
    finally:
        run(*compose, "down", "--timeout", "1", settings=settings)
        for name in SEVERAL:
            docker("volume", "rm", "-f", f"{PROJECT}-{name}")


def fill(volume: str, base: str, store: Store) -> None:
    """A volume with sessions in it, saved as the store's owner."""
    docker("volume", "create", volume)
    mount = ["--rm", "-i", "--network", "none", "-v", f"{volume}:/data"]
    uid, gid = store.user.split(":")
    own = f"import os; os.makedirs('/data/{store.directory}'); os.chown('/data/{store.directory}', {uid}, {gid})"
    docker("run", *mount, base, "python3", "-c", own)
    saving = ["python3", "-", f"/data/{store.directory}", str(SAVES_OF_SEVERAL), "--size", str(SAVE_BYTES)]
    docker(
        "run", *mount, "--user", store.user, base, *saving, data=(ROOT / "tests" / "support" / "client.py").read_bytes()
    )


@contextmanager
def source_tree() -> Iterator[Path]:
    """What the image is built from, and nothing else."""
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        for directory in ("storage_manager", "docs/deploy"):
            shutil.copytree(ROOT / directory, tree / directory, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy2(ROOT / "build_zipapp.py", tree)
        yield tree


def build(deployment: Deployment) -> None:
    deployment.control("build", "storage_manager")
    config = state(IMAGE)["Config"]
    expect(config["User"] == "10001:10001", "the image's user", config)
    expect(config["Healthcheck"]["Test"][0] == "CMD" and "health" in config["Healthcheck"]["Test"], "health", config)
    version = docker("run", "--rm", "--network", "none", "--read-only", "--cap-drop", "ALL", IMAGE, "--version")
    program = "import zipfile; print(*zipfile.ZipFile('/opt/storage_manager/storage_manager.pyz').namelist())"
    names = docker("run", "--rm", "--network", "none", "--entrypoint", "python3", IMAGE, "-c", program).split()
    expect("storage_manager/cli.pyc" in names, "the archive is not precompiled", names)
    say(f"built {version.strip()}")


def main() -> int:
    base = sys.argv[1]
    status = 0
    with source_tree() as tree:
        try:
            build(Deployment(tree, base, USERS[0]))
            for user in USERS:
                say(user.title)
                deployment = Deployment(tree, base, user)
                try:
                    try_it(deployment)
                except Failed:
                    last = run("docker", "logs", "--tail", "15", deployment.container("storage_manager"))
                    say(f"the loop's last words:\n{last.stdout}{last.stderr}")
                    raise
                finally:
                    deployment.control("down", "--timeout", "1")
                    docker("volume", "rm", "-f", deployment.volume)
            say("several stores")
            try_several(tree, base)
        except Failed as failure:
            say(f"FAILED: {failure}")
            status = 1
        finally:
            subprocess.run(["docker", "image", "rm", "-f", IMAGE], capture_output=True, check=False)
    say("passed" if not status else "failed")
    return status


if __name__ == "__main__":
    sys.exit(main())
