"""The files under deploy/, the Dockerfile and the compose file fit the code that they start."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
MANIFESTS = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
YAML_FILES = [COMPOSE, *sorted((ROOT / "deploy").rglob("*.yml")), *MANIFESTS]
UNITS = sorted((ROOT / "deploy").rglob("*.service"))
STARTING_FILES = [COMPOSE, DOCKERFILE, ROOT / ".env.example", *MANIFESTS, *UNITS]
# What Prometheus adds to a metric's name: one series of a histogram, or a counter's total.
SERIES_SUFFIX = re.compile(r"_(bucket|sum|count|total)$")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def _without_comments(path: Path) -> str:
    return "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))


@pytest.mark.parametrize("path", YAML_FILES, ids=_name)
def test_yaml_parses(path: Path) -> None:
    assert all(isinstance(document, dict) for document in _documents(path))


@pytest.mark.parametrize("path", STARTING_FILES, ids=_name)
def test_every_variable_is_a_setting(path: Path) -> None:
    used = set(re.findall(r"\bBITMILL_[A-Z_]+", _without_comments(path)))
    assert used <= {f"BITMILL_{name.upper()}" for name in Settings.model_fields}


@pytest.mark.parametrize("path", STARTING_FILES, ids=_name)
def test_every_command_exists_with_its_options(path: Path) -> None:
    from app.cli.main import cli

    for command, *options in _commands(path):
        assert command in cli.commands, f"there is no `bitmill {command}`"
        known = {flag for parameter in cli.commands[command].params for flag in parameter.opts}
        assert {option for option in options if option.startswith("--")} <= known


def _commands(path: Path) -> Iterator[list[str]]:
    """What follows `bitmill` in commands, written as lists or (in systemd's units) as lines."""
    text = _without_comments(path)
    for listed in re.findall(r"\[\"?bitmill\"?, ([^\]]*)\]", text):
        yield [word.strip(" \"'") for word in listed.split(",")]
    for line in re.findall(r"^ExecStart=\S*/bitmill (.*)$", text, re.MULTILINE):
        yield line.split()


def test_every_role_is_started_somewhere() -> None:
    started = {command[0] for path in STARTING_FILES for command in _commands(path)}
    assert started == {"api", "worker", "serving", "migrate", "up"}


def test_the_image_installs_extras_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    used = re.findall(r"\"\.\[([^\]]+)\]\"", DOCKERFILE.read_text())
    assert len(used) == 3
    assert {extra for group in used for extra in group.split(",")} <= extras.keys()


def test_the_images_are_those_that_are_asked_for() -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE.read_text(), re.MULTILINE))
    compose = yaml.safe_load(COMPOSE.read_text())["services"].values()
    asked = {service["build"]["target"] for service in compose if "build" in service}
    asked |= {image.split(":")[0].removeprefix("bitmill-") for image in _images()}
    assert asked == {"api", "worker", "serving"}
    assert asked <= targets


def _images() -> Iterator[str]:
    for document in (document for path in MANIFESTS for document in _documents(path)):
        for container in _containers(document):
            yield container["image"]


def _containers(document: dict[str, Any]) -> list[dict[str, Any]]:
    if document["kind"] not in ("Deployment", "Job"):
        return []
    containers: list[dict[str, Any]] = document["spec"]["template"]["spec"]["containers"]
    return containers


def test_the_api_image_has_no_ml_extra() -> None:
    stage = DOCKERFILE.read_text().split("AS api-build")[1].split("\nFROM ")[0]
    assert re.findall(r"\"\.\[([^\]]+)\]\"", stage) == ["postgresql,redis"]


def test_hadolint_has_nothing_to_say() -> None:
    # pip puts it beside the interpreter, which need not be on the path.
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    assert hadolint, "hadolint is missing: pip install -e '.[dev]'"
    done = subprocess.run([hadolint, DOCKERFILE.name], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", MANIFESTS, ids=_name)
def test_manifests_are_valid(path: Path) -> None:
    for document in _documents(path):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=_name)
def test_containers_run_without_privileges(path: Path) -> None:
    for document in _documents(path):
        for container in _containers(document):
            assert document["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"] is True
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert "limits" in container["resources"]


def test_compose_publishes_to_this_machine_only() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_compose_waits_for_services_that_it_has() -> None:
    compose = yaml.safe_load(COMPOSE.read_text())
    for service in compose["services"].values():
        assert set(service.get("depends_on", ())) <= compose["services"].keys()
        named = [volume.split(":")[0] for volume in service.get("volumes", ())]
        assert {name for name in named if re.fullmatch(r"\w+", name)} <= compose["volumes"].keys()


def test_compose_asks_only_for_variables_that_the_example_lists() -> None:
    asked = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", COMPOSE.read_text()))
    assert asked == set(re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))


def test_compose_agrees_with_docker() -> None:
    command = _docker_compose()
    if command is None:
        pytest.skip("no docker compose on this machine")
    filled = re.sub(r"=$", "=x", (ROOT / ".env.example").read_text(), flags=re.MULTILINE)
    values = dict(line.split("=", 1) for line in filled.splitlines() if re.match(r"[A-Z_]+=", line))
    done = subprocess.run(
        [*command, "--file", str(COMPOSE), "config", "--quiet"], env=values, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def _docker_compose() -> list[str] | None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode != 0:
        return None
    return [docker, "compose"]


def test_dashboards_and_alerts_ask_for_metrics_that_are_exported() -> None:
    files = ("app/api/metrics.py", "workers/serving/metrics.py", "workers/serving/scrape.py")
    source = "".join((ROOT / name).read_text() for name in files)
    exported = set(re.findall(r"\"((?:bitmill_|vllm:)\w+)\"", source))
    asked = [name for query in _queries() for name in re.findall(r"(?:\bbitmill_|\bvllm:)\w+", query)]
    queried = {SERIES_SUFFIX.sub("", name) for name in asked}
    assert queried
    assert queried <= {SERIES_SUFFIX.sub("", name) for name in exported}


def test_dashboards_read_from_the_provisioned_source() -> None:
    sources = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    known = {source["uid"] for source in sources}
    for path in DASHBOARDS:
        panels = json.loads(path.read_text())["panels"]
        assert {panel["datasource"]["uid"] for panel in panels} <= known
        assert len({panel["id"] for panel in panels}) == len(panels)


def _queries() -> Iterator[str]:
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            yield from (target["expr"] for target in panel["targets"])
    for group in yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def test_nginx_streams() -> None:
    text = (ROOT / "deploy" / "nginx" / "bitmill.conf").read_text()
    for line in ("proxy_buffering off;", "proxy_http_version 1.1;", "proxy_read_timeout 1h;"):
        assert line in text
    assert text.count("{") == text.count("}")


def test_libraries_keep_their_caches_where_containers_can_write() -> None:
    """The user has no home, and the root file system may be read-only."""
    folders = dict(re.findall(r"(\w*HOME|\w+_DIR)=(/\S+)", DOCKERFILE.read_text()))
    assert {"HOME", "HF_HOME", "TORCH_HOME", "TRITON_CACHE_DIR"} <= set(folders)
    assert all(folder.startswith("/var/lib/bitmill") for folder in folders.values())
