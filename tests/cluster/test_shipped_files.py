"""The files for what runs elsewhere, as far as linters and schemas can tell."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from engine import ROOT, compose
from ruamel.yaml import YAML

pytestmark = pytest.mark.cluster
DOCKER = ROOT / "docker"
SECRETS = dict.fromkeys(("RAY_AUTH_TOKEN", "MLFLOW_PASSWORD", "POSTGRES_PASSWORD", "MLFLOW_SESSION_KEY"), "x")
COMPOSE = [str(DOCKER / "compose.yaml"), str(DOCKER / "compose.gpu.yaml")]


def tool(name: str) -> str:
    """One that comes with the development packages, or was installed by hand."""
    found = (
        compose()
        if name == "docker-compose"
        else shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    )
    if found is None:
        pytest.skip(f"there is no {name}")
    return found


def passes(*command: str, **environment: str) -> str:
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("files", [COMPOSE[:1], COMPOSE])
def test_compose_reads_its_files(files: list[str]) -> None:
    shown = passes(tool("docker-compose"), *(word for file in files for word in ("--file", file)), "config", **SECRETS)
    services = YAML(typ="safe").load(shown)["services"]
    assert set(services) == {"ray-head", "ray-worker", "mlflow", "postgres"}
    published = {(port["host_ip"], port["target"]) for one in services.values() for port in one.get("ports", [])}
    assert published == {("127.0.0.1", 8265), ("127.0.0.1", 5000)}
    for name, service in services.items():
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"], name
        assert int(service["mem_limit"]) > 0, name
        assert service["cap_drop"] == ["ALL"], name


def test_compose_names_the_secret_that_is_missing(tmp_path: Path) -> None:
    empty = tmp_path / ".env"
    empty.touch()
    without = {name: value for name, value in os.environ.items() if name not in SECRETS}
    command = [tool("docker-compose"), "--env-file", str(empty), "--file", COMPOSE[0], "config"]
    refused = subprocess.run(command, env=without, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode != 0
    assert "make cluster-up writes it to docker/.env" in refused.stderr


def test_compose_files_follow_the_compose_specification() -> None:
    passes(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", *COMPOSE)


@pytest.mark.parametrize("dockerfile", ["docker/Dockerfile", "tests/cluster/postgres/Dockerfile"])
def test_dockerfiles_follow_hadolints_rules(dockerfile: str) -> None:
    passes(tool("hadolint"), str(ROOT / dockerfile))


def test_scripts_are_read_by_their_shells() -> None:
    for script in sorted(DOCKER.glob("*.sh")):
        shell = "bash" if "bash" in script.read_text().splitlines()[0] else "sh"
        passes(shell, "-n", str(script))
        assert os.access(script, os.X_OK), script


# The fields of ray.io/v1 that the manifest uses, from the operator's API reference; everything else is refused.
RAY_CLUSTER: dict[str, Any] = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayCluster"},
        "spec": {
            "type": "object",
            "required": ["headGroupSpec"],
            "additionalProperties": False,
            "properties": {
                "rayVersion": {"type": "string"},
                "headGroupSpec": {"$ref": "#/$defs/group"},
                "workerGroupSpecs": {
                    "type": "array",
                    "items": {"$ref": "#/$defs/group", "required": ["groupName", "minReplicas", "maxReplicas"]},
                },
            },
        },
    },
    "$defs": {
        "group": {
            "type": "object",
            "required": ["template", "rayStartParams"],
            "additionalProperties": False,
            "properties": {
                "groupName": {"type": "string", "maxLength": 63},
                "replicas": {"type": "integer", "minimum": 0},
                "minReplicas": {"type": "integer", "minimum": 0},
                "maxReplicas": {"type": "integer", "minimum": 0},
                "rayStartParams": {"type": "object", "additionalProperties": {"type": "string"}},
                "template": {"type": "object", "required": ["spec"]},
            },
        }
    },
}


def test_kuberay_manifest_has_the_fields_of_its_schema() -> None:
    """And its pods and its volume claim those of Kubernetes."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="there is no kubernetes-validate")
    claim, cluster = YAML(typ="safe").load_all((DOCKER / "kuberay.yaml").read_text())
    jsonschema.validate(cluster, RAY_CLUSTER)
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    pods = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **group["template"]} for group in groups]
    for thing in (claim, *pods):
        kubernetes_validate.validate(thing, kubernetes_validate.latest_version(), strict=True)
    (pinned,) = (line for line in (ROOT / "requirements.lock").read_text().splitlines() if line.startswith("ray=="))
    assert cluster["spec"]["rayVersion"] == pinned.removeprefix("ray==")
