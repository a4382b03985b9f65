"""The Kubernetes manifests, as kustomize builds them: valid, whole for each queue, and locked."""

import json
import os
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from workers.broker import QUEUES
from workers.settings import DispatchConfig

KUBERNETES = Path(__file__).parents[1] / "docker" / "kubernetes"
KEDA = json.loads(Path(__file__).with_name("keda.schema.json").read_text())
VERSION = "1.33"  # the oldest that they are for; newer ones take the same fields

Manifest = dict[str, Any]


@lru_cache
def built(folder: Path) -> list[Manifest]:
    """What `kubectl apply -k` would send. Skips the test where there is no kubectl, and says so."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        reason = "NO KUBECTL: no manifest is checked"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    command = [kubectl, "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(params=["base", "services", "rabbitmq"])
def manifests(request: pytest.FixtureRequest, tmp_path: Path) -> list[Manifest]:
    folder = KUBERNETES / request.param
    if request.param == "rabbitmq":
        folder = tmp_path / "overlay"
        folder.mkdir()
        component, base = (
            os.path.relpath(KUBERNETES / name, folder) for name in ("rabbitmq", "base")
        )
        overlay = {"resources": [base], "components": [component]}
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    return built(folder)


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    """By name."""
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] == kind}


def pods(manifests: list[Manifest]) -> dict[str, Manifest]:
    """What pods of ours look like, by whose they are."""
    owners = of_kind(manifests, "Deployment") | of_kind(manifests, "StatefulSet")
    return {name: owner["spec"]["template"] for name, owner in owners.items()}


def test_every_object_passes_its_schema_strictly(manifests: list[Manifest]) -> None:
    for each in manifests:
        if each["apiVersion"].startswith("keda.sh/"):
            jsonschema.validate(each, KEDA)
        else:
            kubernetes_validate.validate(each, VERSION, strict=True)


def test_each_queue_has_a_deployment_that_is_scaled_by_its_length(
    manifests: list[Manifest],
) -> None:
    workers, scaled = pods(manifests), of_kind(manifests, "ScaledObject")
    assert set(scaled) == set(QUEUES)
    for queue in QUEUES:
        (container,) = workers[queue]["spec"]["containers"]
        assert f"--queues={queue}" in container["args"]
        spec = scaled[queue]["spec"]
        assert spec["scaleTargetRef"] == {"name": queue}
        (trigger,) = spec["triggers"]
        metadata = trigger["metadata"]
        assert metadata.get("listName", metadata.get("queueName")) == queue
        if "hostFromEnv" in metadata:  # which KEDA looks up in the container
            assert metadata["hostFromEnv"] in [each["name"] for each in container["env"]]
        asks_for_gpu = container["resources"]["limits"].get("nvidia.com/gpu", 0)
        assert (asks_for_gpu, spec["minReplicaCount"]) == ((0, 1) if queue == "prompt" else (1, 0))


def test_a_node_is_emptied_one_worker_a_queue_at_a_time(manifests: list[Manifest]) -> None:
    budgets, workers = of_kind(manifests, "PodDisruptionBudget"), pods(manifests)
    for queue in QUEUES:
        spec = budgets[queue]["spec"]
        assert spec["maxUnavailable"] == 1
        labels = spec["selector"]["matchLabels"]
        assert labels.items() <= workers[queue]["metadata"]["labels"].items()


def test_a_stop_waits_for_longer_than_a_batch(manifests: list[Manifest]) -> None:
    longest_batch_s = DispatchConfig().visibility_timeout_s / 3
    for queue in ("propose", "verify"):
        grace_s = pods(manifests)[queue]["spec"]["terminationGracePeriodSeconds"]
        assert grace_s > longest_batch_s


def test_every_pod_is_locked(manifests: list[Manifest]) -> None:
    for name, template in pods(manifests).items():
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["runAsUser"] > 0, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["enableServiceLinks"] is False, name
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"], name
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["limits"]["memory"], name
            assert container.get("livenessProbe"), name


def test_secrets_come_from_the_secret_alone(manifests: list[Manifest]) -> None:
    words = ("PASSWORD", "KEY", "TOKEN", "BROKER_URL", "REDIS_URL")
    for template in pods(manifests).values():
        for container in template["spec"]["containers"]:
            for variable in container.get("env", []):
                if any(word in variable["name"] for word in words):
                    assert variable["valueFrom"]["secretKeyRef"]["name"] == "ppv", variable
    assert not of_kind(manifests, "Secret")


def test_nobody_reaches_flower_or_a_worker(manifests: list[Manifest]) -> None:
    policies = of_kind(manifests, "NetworkPolicy")
    everyone = policies.pop("nobody-comes-in")["spec"]
    assert everyone == {"podSelector": {}, "policyTypes": ["Ingress"]}
    del policies["not-to-the-clouds-credentials"]  # of ways out
    for policy in policies.values():
        opened = policy["spec"]["podSelector"]["matchLabels"]
        name, part = opened["app.kubernetes.io/name"], "app.kubernetes.io/component"
        assert name in ("redis", "s3") or opened.get(part) == "metrics"


def test_no_pod_reaches_where_a_cloud_hands_out_credentials(manifests: list[Manifest]) -> None:
    out = of_kind(manifests, "NetworkPolicy")["not-to-the-clouds-credentials"]["spec"]
    assert (out["podSelector"], out["policyTypes"]) == ({}, ["Egress"])
    _, ipv4, ipv6 = out["egress"][0]["to"]
    assert "169.254.169.254/32" in ipv4["ipBlock"]["except"]
    assert "fd00:ec2::/64" in ipv6["ipBlock"]["except"]
