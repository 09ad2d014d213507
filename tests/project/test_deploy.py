"""What docs/deploy says is what the tool understands, and is as confined as docs/deploy.md says.

The files are run for real by scripts/test_containers.sh.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import plain_yaml
import pytest
import stores

from storage_manager import __version__
from storage_manager.config import NAMES, PREFIX_VARIABLE, read_settings
from storage_manager.grammar import build_parser

DEPLOY = stores.ROOT / "docs" / "deploy"
UNITS = sorted(path for path in (DEPLOY / "systemd").iterdir() if path.suffix != ".env")
SERVICES = [unit for unit in UNITS if unit.suffix == ".service"]
ARCHIVE = "/opt/storage_manager/storage_manager.pyz"
START = ["python3", ARCHIVE]
HEALTH = [*START, "health"]
TEMPLATE = DEPLOY / "systemd" / "storage_manager@.service"
STORE_ENV = DEPLOY / "systemd" / "store.env"
RULES = {f"GOFR_DIG_{name}" for name in (
    "TARGET_STORAGE_MB", "MAX_AGE_DAYS", "MAX_SESSIONS", "MIN_AGE_MINS", "KEEP_LAST", "MAX_DELETE",
)}  # fmt: skip
ROOT_NEEDS = ["CHOWN", "DAC_OVERRIDE", "FOWNER"]

# Other names of the store, which compose.yml does not offer beside GOFR_DIG_STORAGE.
OTHER_NAMES = {"GOFR_DIG_STORAGE_DIR", "GOFR_DIG_DATA_DIR"}

# What `systemd-analyze security` says of the services today is 1.7; the scale ends at 10.
WORST_EXPOSURE = 2.0


def compose() -> dict[str, Any]:
    [document] = plain_yaml.read_documents((DEPLOY / "compose.yml").read_text())
    return document


def service() -> dict[str, Any]:
    return compose()["services"]["storage_manager"]


def stores_of_compose() -> dict[str, dict[str, Any]]:
    """The services of compose.stores.yml, with what they have of the template."""
    [document] = plain_yaml.read_documents((DEPLOY / "compose.stores.yml").read_text())
    return document["services"]


def kubernetes() -> list[tuple[str, dict[str, Any]]]:
    """(kind, pod) of both parts."""
    deployment, cron_job = plain_yaml.read_documents((DEPLOY / "kubernetes.yaml").read_text())
    return [
        (deployment["kind"], deployment["spec"]["template"]["spec"]),
        (cron_job["kind"], cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]),
    ]


def resources(kind: str) -> dict[str, Any]:
    for document in plain_yaml.read_documents((DEPLOY / "kubernetes.yaml").read_text()):
        if document["kind"] == kind:
            return document
    raise AssertionError(kind)


def dockerfile(instruction: str) -> list[str]:
    """What follows each of these instructions, with continued lines joined."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "")
    return re.findall(rf"^{instruction}\s+(.+)$", text, re.MULTILINE)


def unit_values(unit: Path, name: str, instance: str = "gofr-dig", mark: str = "") -> list[str]:
    """Its values, as systemd reads them; with `mark`, also those that are examples in a comment."""
    found = re.findall(rf"^(?:{mark})?{name}=(.*)$", unit.read_text(), re.MULTILINE)
    return [value.replace("%i", instance).replace("%%", "%") for value in found]


def settings_of(unit: Path, instance: str = "gofr-dig", mark: str = "") -> dict[str, str]:
    return dict(value.split("=", 1) for value in unit_values(unit, "Environment", instance, mark))


def exposed(text: str) -> str:
    """A value of compose.yml with nothing set in the environment: its default."""
    return re.sub(r"\$\{\w+:-(.*?)\}", r"\1", text)


def expect_command(arguments: list[str]) -> None:
    build_parser().parse_args(arguments)


@pytest.mark.parametrize("name", ["compose.yml", "compose.stores.yml", "kubernetes.yaml"])
def test_the_reader_of_these_tests_reads_as_a_real_one_does(name: str) -> None:
    program = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))"
    for python in ("/usr/bin/python3", "python3"):
        done = subprocess.run([python, "-c", program, str(DEPLOY / name)], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            assert plain_yaml.read_documents((DEPLOY / name).read_text()) == json.loads(done.stdout)
            return
    pytest.skip("no python3 here has PyYAML")


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\na: 2",
        "a:\n   b: 1",
        "a:\nb: 1",
        "a: {b: 1}",
        "a: b: c",
        "a: 'b'",
        "a: &x 1",
        "a: *x",
        "<<: *x",
        "a: &x\nb: 1",
    ],  # fmt: skip
)
def test_the_reader_of_these_tests_refuses_what_is_not_plain(text: str) -> None:
    with pytest.raises(ValueError):
        plain_yaml.read_documents(text)


def test_the_image_runs_the_archive_without_a_shell_and_as_nobody_special() -> None:
    assert [json.loads(text) for text in dockerfile("ENTRYPOINT")] == [START]
    [command] = dockerfile("CMD")
    expect_command(json.loads(command))
    assert dict(text.split("=") for text in dockerfile("ARG")) == {
        "BASE_IMAGE": "python:3.12-slim", "RUN_UID": "10001", "RUN_GID": "10001",
        "VERSION": __version__, "REVISION": "unknown", "SOURCE": "unknown",
    }  # fmt: skip
    assert dockerfile("USER") == ["${RUN_UID}:${RUN_GID}"]
    assert dockerfile("VOLUME") == []


def test_the_image_asks_for_its_health() -> None:
    [check] = dockerfile("HEALTHCHECK")
    command = json.loads(check.partition("CMD")[2])
    assert command == HEALTH
    expect_command(command[2:])


def test_the_image_copies_only_what_it_is_built_from() -> None:
    sources = [words.split()[:-1] for words in dockerfile("COPY") if not words.startswith("--from=build")]
    assert sources == [["build_zipapp.py"], ["storage_manager/"]]
    assert all((stores.ROOT / source).exists() for words in sources for source in words)


def test_compose_runs_commands_that_exist() -> None:
    expect_command(service()["command"])
    assert service()["healthcheck"]["test"] == ["CMD", *HEALTH]
    expect_command(HEALTH[2:])


def test_compose_offers_every_variable_with_the_default_of_the_code() -> None:
    asked: set[str] = set()

    class Environment(dict):
        def get(self, name: str, default: Any = None) -> Any:
            asked.add(name)
            return super().get(name, default)

    environment = Environment({name: exposed(value) for name, value in service()["environment"].items()})
    assert all(value.startswith(f"${{{name}:-") for name, value in service()["environment"].items())
    settings, fallbacks = read_settings(environment, None, None)
    default, _ = read_settings({"GOFR_DIG_STORAGE": "/data/storage"}, None, None)
    assert fallbacks == []
    assert settings == default._replace(environment="PROD", log_json=True, limit_source="set")
    assert {"GOFR_DIG_SEQ_URL", "GOFR_DIG_SEQ_API_KEY"} <= set(environment)
    own = {name for name in asked if name.startswith("GOFR_DIG_")}
    assert own - set(environment) <= OTHER_NAMES


def test_every_setting_of_compose_has_a_comment() -> None:
    lines = (DEPLOY / "compose.yml").read_text().splitlines()
    settings = [at for at, line in enumerate(lines) if re.match(r"      GOFR_DIG_\w+: ", line)]
    assert len(settings) == len(service()["environment"])
    bare = [lines[at] for at in settings if not lines[at - 1].strip().startswith("#")]
    assert bare == ['      GOFR_DIG_SEQ_API_KEY: "${GOFR_DIG_SEQ_API_KEY:-}"']  # told with the URL


def test_compose_confines_the_container() -> None:
    found = service()
    assert found["read_only"] is True and found["init"] is True
    assert found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert found["stop_grace_period"] == "30s"
    assert {"mem_limit", "cpus", "pids_limit", "restart"} <= set(found)
    assert found["logging"]["options"] == {"max-size": "10m", "max-file": "3"}
    assert any(mount.startswith("/tmp:") for mount in found["tmpfs"])
    assert compose()["volumes"]["data"]["external"] is True


def test_compose_for_several_stores_has_the_template_of_compose_for_one() -> None:
    own = {"user", "environment", "volumes"}
    one = {key: value for key, value in service().items() if key not in own}
    one.update({key: exposed(one[key]) for key in ("cpus", "mem_limit")})
    assert len(stores_of_compose()) >= 2
    for found in stores_of_compose().values():
        assert {key: value for key, value in found.items() if key not in own} == one
        assert own <= set(found)


def test_each_store_of_compose_has_settings_of_its_own_that_are_understood() -> None:
    """Also with the metrics that are an example. The label that tells metrics apart is the directory."""
    text = (DEPLOY / "compose.stores.yml").read_text()
    [document] = plain_yaml.read_documents(re.sub(r"# (\w+_METRICS_FILE: |- /)", r"\1", text))
    seen = []
    for name, found in document["services"].items():
        environment = {key: str(value) for key, value in found["environment"].items()}
        settings, fallbacks = read_settings(environment, None, None)
        assert fallbacks == []
        own = {key for key in environment if key.startswith(f"{settings.prefix}_")}
        assert own | {PREFIX_VARIABLE} >= set(environment)
        assert {key[len(settings.prefix) + 1 :] for key in own} <= set(NAMES)
        assert settings.limit_source == "set" and settings.log_json is True and settings.environment == "PROD"
        source, _, directory = found["volumes"][0].partition(":")
        assert source == name and document["volumes"][name]["external"] is True
        assert settings.storage_dir.startswith(directory + "/")
        assert (settings.metrics_file or "").startswith("/metrics/") and found["volumes"][1].endswith(":/metrics")
        assert settings.heartbeat_file.startswith("/tmp/")  # the container's own
        seen.append((settings.prefix, settings.storage_dir, settings.metrics_file, settings.max_storage_bytes, source))
    assert all(len(set(values)) == len(seen) for values in zip(*seen))
    assert len({volume["name"] for volume in document["volumes"].values()}) == len(seen)


def test_the_previous_housekeeper_s_service_becomes_one_that_is_understood() -> None:
    text = (stores.ROOT / "docs" / "migration.md").read_text()
    [block] = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    [document] = plain_yaml.read_documents(textwrap.dedent(block))
    found = document["housekeeper"]
    assert found["command"][:2] == START
    expect_command(found["command"][2:])
    settings, fallbacks = read_settings(
        {key: exposed(str(text)) for key, text in found["environment"].items()}, None, None
    )
    assert fallbacks == []
    assert settings.storage_dir == "/home/gofr-dig/data/storage/sessions" and settings.log_json is True
    volumes = [volume.split(":")[1] for volume in found["volumes"]]
    for file in (settings.storage_dir, settings.log_file, settings.heartbeat_file, settings.history_file, ARCHIVE):
        assert any(str(file).startswith(f"{volume}/") for volume in volumes), file
    assert found["healthcheck"] == service()["healthcheck"]
    assert found["stop_grace_period"] == service()["stop_grace_period"]


def test_the_deployment_is_one_loop_at_a_time() -> None:
    spec = resources("Deployment")["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "Recreate"}
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]


def test_the_cron_job_runs_one_cycle_and_does_not_pile_up() -> None:
    spec = resources("CronJob")["spec"]
    assert spec["suspend"] is True  # the Deployment or the CronJob
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["startingDeadlineSeconds"] > 0
    assert spec["jobTemplate"]["spec"]["backoffLimit"] == 0
    assert spec["jobTemplate"]["spec"]["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize(("kind", "pod"), kubernetes(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_pod_is_confined_and_runs_commands_that_exist(kind: str, pod: dict[str, Any]) -> None:
    [container] = pod["containers"]
    expect_command(container["args"])
    assert container["args"] == (["run-loop"] if kind == "Deployment" else ["run-loop", "--once"])
    for probe in ("startupProbe", "livenessProbe"):
        assert (probe in container) == (kind == "Deployment")
        if probe in container:
            assert container[probe]["exec"]["command"] == HEALTH
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["terminationGracePeriodSeconds"] == 30
    assert set(container["resources"]) == {"requests", "limits"}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize(("kind", "pod"), kubernetes(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_pod_s_settings_are_understood(kind: str, pod: dict[str, Any]) -> None:
    environment = {item["name"]: item.get("value", "") for item in pod["containers"][0]["env"]}
    settings, fallbacks = read_settings(environment, None, None)
    assert fallbacks == []
    assert settings.storage_dir == "/data/storage" and settings.log_json is True
    assert set(environment) >= RULES
    [key] = [item for item in pod["containers"][0]["env"] if item["name"] == "GOFR_DIG_SEQ_API_KEY"]
    assert key["valueFrom"]["secretKeyRef"]["optional"] is True


@pytest.mark.parametrize(
    "name", ["compose.yml", "compose.stores.yml", "kubernetes.yaml", *(f"systemd/{unit.name}" for unit in SERVICES)]
)
def test_what_root_needs_is_said_where_capabilities_are_dropped(name: str) -> None:
    text = (DEPLOY / name).read_text()
    assert ", ".join(ROOT_NEEDS) in text or " ".join(f"CAP_{capability}" for capability in ROOT_NEEDS) in text


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.name)
def test_a_service_runs_a_command_that_exists_with_settings_that_are_understood(unit: Path) -> None:
    [start] = unit_values(unit, "ExecStart")
    words = shlex.split(start)
    assert words[:2] == ["/usr/bin/python3", ARCHIVE]
    expect_command(words[2:])
    settings, fallbacks = read_settings(settings_of(unit), None, None)
    assert fallbacks == []
    assert unit_values(unit, "ReadWritePaths") == [settings.storage_dir]
    assert unit_values(unit, "RequiresMountsFor") == [settings.storage_dir]


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.name)
def test_the_rules_of_a_service_are_understood_where_they_are_wanted(unit: Path) -> None:
    environment = {**settings_of(unit, mark="# "), **(environment_file() if unit == TEMPLATE else {})}
    _, fallbacks = read_settings(environment, None, None)
    assert fallbacks == []
    assert set(environment) >= RULES


@pytest.mark.parametrize(
    ("name", "setting", "directory"),
    [
        ("storage_manager", "RuntimeDirectory", "/run/storage_manager"),
        ("storage_manager-once", "StateDirectory", "/var/lib/storage_manager"),
        ("storage_manager@", "RuntimeDirectory", "/run/storage_manager-gofr-dig"),
    ],
)
def test_the_heartbeat_is_where_others_can_see_it(name: str, setting: str, directory: str) -> None:
    unit = DEPLOY / "systemd" / f"{name}.service"
    assert unit_values(unit, setting) == [directory.rpartition("/")[2]]
    assert settings_of(unit)["GOFR_DIG_HOUSEKEEPER_HEARTBEAT_FILE"] == f"{directory}/heartbeat"


def environment_file() -> dict[str, str]:
    """store.env with everything that is an example in it."""
    lines = re.findall(r"^#?(\w+)=(.*)$", STORE_ENV.read_text(), re.MULTILINE)
    assert len(dict(lines)) == len(lines)
    return dict(lines)


def test_an_instance_shares_nothing_with_another_one() -> None:
    assert unit_values(TEMPLATE, "EnvironmentFile", "reports") == ["/etc/storage_manager/reports.env"]
    one, other = ({**settings_of(TEMPLATE, name, "# "), **environment_file()} for name in ("gofr-dig", "reports"))
    same = {name for name in one if one[name] == other[name]}
    assert same == set(environment_file())
    assert set(one) - same == {
        "GOFR_DIG_STORAGE", "GOFR_DIG_HOUSEKEEPER_HEARTBEAT_FILE", "GOFR_DIG_HISTORY_FILE", "GOFR_DIG_METRICS_FILE",
    }  # fmt: skip
    for setting in ("User", "Group", "RuntimeDirectory", "StateDirectory", "ReadWritePaths", "RequiresMountsFor"):
        assert unit_values(TEMPLATE, setting, "gofr-dig") != unit_values(TEMPLATE, setting, "reports")


def test_an_instance_can_have_every_setting() -> None:
    found = {**settings_of(TEMPLATE, mark="# "), **environment_file()}
    assert {f"GOFR_DIG_{name}" for name in NAMES} - set(found) == OTHER_NAMES


def test_the_loop_tells_systemd_about_itself() -> None:
    unit = DEPLOY / "systemd" / "storage_manager.service"
    assert unit_values(unit, "Type") == ["notify"] and unit_values(unit, "NotifyAccess") == ["main"]
    assert int(unit_values(unit, "WatchdogSec")[0]) >= 60


def test_the_services_are_confined_alike() -> None:
    texts = {unit.name: unit.read_text().replace("%i", "gofr-dig") for unit in SERVICES}
    loop = texts["storage_manager.service"]
    confinement = loop[loop.index("# A store of 100,000 sessions") : loop.index("\n[Install]")].strip()
    assert all(confinement in text for text in texts.values())
    assert loop[loop.index("# (*) Where the archive is.") :] in texts[TEMPLATE.name]


@pytest.fixture
def copies(tmp_path: Path) -> list[str]:
    """The units with a Python of this machine: systemd-analyze looks whether it is there."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace("/usr/bin/python3", sys.executable))
    return [str(tmp_path / unit.name) for unit in UNITS]


def test_systemd_has_nothing_to_say_about_the_units(copies: list[str]) -> None:
    done = subprocess.run(["systemd-analyze", "verify", *copies], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_systemd_rates_the_services_as_well_confined(copies: list[str]) -> None:
    services = [copy for copy in copies if copy.endswith(".service")]
    command = ["systemd-analyze", "security", "--no-pager", "--offline=true", *services]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze rates no files")
    levels = [float(level) for level in re.findall(r"exposure level for \S+: ([\d.]+)", done.stdout)]
    assert len(levels) == len(services), done.stdout + done.stderr
    assert max(levels) <= WORST_EXPOSURE
