"""Profiles: each holds to the schema of who reads it, names what exists, and is closed to others."""

# ruff: noqa: E402 (where Ray is not installed the file is skipped before it imports what needs Ray)

import json
import shlex
from pathlib import Path

import jsonschema
import pytest
import yaml

ray = pytest.importorskip("ray", reason="Ray is not installed", exc_type=ImportError)

from ray.autoscaler._private.util import prepare_config, validate_config

from clusters.submission import STOP_SECONDS
from engine.commands.submitting import command
from engine.config import load

PROFILES = Path(__file__).resolve().parents[2] / "clusters" / "profiles"


def read(name):
    return yaml.safe_load((PROFILES / f"{name}.yaml").read_text())


def test_there_are_these_four_and_each_begins_with_how_to_use_it():
    assert {path.stem for path in PROFILES.iterdir()} == {"laptop", "one-gpu", "several-nodes", "kuberay"}
    for path in PROFILES.iterdir():
        lines = path.read_text().splitlines()
        assert lines[0].startswith("# ")
        assert any(line.startswith(("#   tessera ", "#   kubectl ")) for line in lines[:12]), path.name


@pytest.mark.parametrize("name", ["laptop", "one-gpu"])
def test_profiles_of_one_machine_are_configurations_that_start_ray_here(name):
    runner = load(str(PROFILES / f"{name}.yaml")).runner
    assert (runner.kind, runner.address) == ("ray", None)


def test_the_shares_of_the_one_gpu_add_up_to_it():
    runner = load(str(PROFILES / "one-gpu.yaml")).runner
    parts = runner.distillation.samplers + runner.distillation.teachers + runner.distillation.trainers
    assert runner.hosts * runner.gpus + parts * runner.distillation.gpus == pytest.approx(1.0)


def test_the_file_for_ray_up_holds_to_rays_own_schema_as_ray_prepares_it():
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    prepared = prepare_config(read("several-nodes"))
    jsonschema.validate(prepared, schema)
    validate_config(prepared)
    assert prepared["max_workers"] == len(read("several-nodes")["provider"]["worker_ips"])


def test_ray_up_gives_every_machine_the_token_and_keeps_the_dashboard_on_loopback():
    profile = read("several-nodes")
    assert profile["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    head, worker = (profile[f"{who}_start_ray_commands"][-1] for who in ("head", "worker"))
    assert "--dashboard-host=127.0.0.1" in head
    assert all("RAY_AUTH_MODE=token" in start for start in (head, worker))


def mapping(required=(), closed=True, **properties):
    """A schema of a mapping."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": not closed,
    }


def listed(items, least=0):
    return {"type": "array", "items": items, "minItems": least}


TEXT, WHOLE, FLAG = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
AMOUNTS = {"type": "object", "additionalProperties": {"type": ["string", "integer"]}}
PORT = mapping(["containerPort"], name=TEXT, containerPort=WHOLE)
MOUNT = mapping(["name", "mountPath"], name=TEXT, mountPath=TEXT)
CONTAINER = mapping(
    ["name", "image"],
    name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
    image=TEXT,
    ports=listed(PORT),
    resources=mapping(limits=AMOUNTS, requests=AMOUNTS),
    volumeMounts=listed(MOUNT),
)
VOLUME = mapping(["name"], name=TEXT, persistentVolumeClaim=mapping(["claimName"], claimName=TEXT))
POD = mapping(["spec"], spec=mapping(["containers"], containers=listed(CONTAINER, 1), volumes=listed(VOLUME)))
HEAD = mapping(["rayStartParams", "template"], rayStartParams=TEXTS, template=POD)
WORKERS = mapping(
    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    groupName=TEXT,
    replicas=WHOLE,
    minReplicas=WHOLE,
    maxReplicas=WHOLE,
    rayStartParams=TEXTS,
    template=POD,
)
RAY_CLUSTER = mapping(
    ["headGroupSpec"],
    rayVersion=TEXT,
    authOptions=mapping(mode={"enum": ["disabled", "token"]}),
    headGroupSpec=HEAD,
    workerGroupSpecs=listed(WORKERS),
)
RAY_JOB = mapping(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=mapping(["name"], name={"type": "string", "maxLength": 47}),
    spec=mapping(
        entrypoint=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        backoffLimit={"type": "integer", "minimum": 0},
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=WHOLE,
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        runtimeEnvYAML=TEXT,
        rayClusterSpec=RAY_CLUSTER,
    ),
)
"""Of KubeRay's RayJob v1 the fields that the profile has, with their types, and those that must be there."""


def test_the_ray_job_holds_to_kuberays_schema():
    jsonschema.validate(read("kuberay"), RAY_JOB)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("spec", "entrypoint"), ["python"]),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens"),
        (("spec", "shutdownAfterJobFinished"), True),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers"), []),
    ],
)
def test_the_schema_refuses_what_kubernetes_would(place, value):
    profile = read("kuberay")
    *path, last = place
    inner = profile
    for key in path:
        inner = inner[key]
    inner[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(profile, RAY_JOB)


def test_the_ray_job_performs_the_command_that_submit_sends_on_a_cluster_with_a_token():
    spec = read("kuberay")["spec"]
    words = command("mosaic-digits", ["mlflow.enabled=false"], "/results/mosaic-digits")
    assert shlex.split(spec["entrypoint"]) == words
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    stopped = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert stopped == {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
    pods = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    for pod in pods:
        (container,) = pod["template"]["spec"]["containers"]
        assert container["resources"]["limits"] == container["resources"]["requests"]
