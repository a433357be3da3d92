"""The cluster files: Kubernetes' own schemas, and what they promise about a hospital's pod."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from client.handover import SOCKET_FILE
from common.settings import RELAY_FOLDER, HospitalSettings, ServerSettings

FOLDER = Path(__file__).parents[3] / "deploy" / "k8s"
KUBERNETES_VERSION = "1.31"


def _objects(folder: str) -> list[dict[str, Any]]:
    kustomization = yaml.safe_load((FOLDER / folder / "kustomization.yaml").read_text())
    found: list[dict[str, Any]] = []
    for file in kustomization["resources"]:
        found += list(yaml.safe_load_all((FOLDER / folder / file).read_text()))
    return found


def _pods() -> list[dict[str, Any]]:
    return [
        item["spec"]["template"]["spec"]
        for item in (*_objects("consortium"), *_objects("hospital"))
        if "template" in item["spec"]
    ]


def _hospital(kind: str) -> dict[str, Any]:
    return next(item for item in _objects("hospital") if item["kind"] == kind)


@pytest.mark.parametrize("folder", ["consortium", "hospital"])
def test_every_object_is_one_that_kubernetes_accepts(folder: str) -> None:
    for item in _objects(folder):
        kubernetes_validate.validate(item, KUBERNETES_VERSION, strict=True)


def test_a_misspelt_field_would_be_noticed() -> None:
    broken = _hospital("StatefulSet")
    broken["spec"]["replica"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES_VERSION, strict=True)


def test_a_hospital_is_one_pod_that_nobody_can_reach() -> None:
    assert {item["kind"] for item in _objects("hospital")} == {"StatefulSet", "NetworkPolicy"}
    assert _hospital("StatefulSet")["spec"]["replicas"] == 1
    policy = _hospital("NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"] == _hospital("StatefulSet")["spec"]["selector"]["matchLabels"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == []


def test_a_hospital_reaches_names_and_the_servers_two_ports() -> None:
    fleet = ServerSettings.model_fields["fleet_port"].default
    ports = {entry["port"] for rule in _hospital("NetworkPolicy")["spec"]["egress"] for entry in rule["ports"]}
    assert ports == {53, fleet, fleet + 1}


def test_no_container_may_gain_privileges_or_write_to_its_image() -> None:
    for pod in _pods():
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"]["drop"] == ["ALL"]
            assert "memory" in container["resources"]["limits"]


def test_only_a_hospitals_supervisor_starts_as_root_and_it_has_three_capabilities() -> None:
    roots = [pod for pod in _pods() if not pod["securityContext"].get("runAsNonRoot")]
    assert len(roots) == 1
    assert roots[0]["containers"][0]["securityContext"]["capabilities"]["add"] == ["SETUID", "SETGID", "KILL"]


def test_a_hospital_is_alive_while_its_agent_and_exporter_are() -> None:
    command = _hospital("StatefulSet")["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["exec"]["command"]
    exporter = HospitalSettings.model_fields["metrics_port"].default
    assert command[-2:] == [f"127.0.0.1:{exporter}", f"/state/{RELAY_FOLDER}/{SOCKET_FILE}"]


def _with_gpu() -> dict[str, Any]:
    """Return the pod's StatefulSet as ``kubectl kustomize`` merges the patch: by the container's name."""
    merged = _hospital("StatefulSet")
    (patch,) = yaml.safe_load_all((FOLDER / "hospital-gpu" / "gpu.yaml").read_text())
    assert (patch["kind"], patch["metadata"]["name"]) == (merged["kind"], merged["metadata"]["name"])
    (more,), (own,) = (item["spec"]["template"]["spec"]["containers"] for item in (patch, merged))
    assert set(more) == {"name", "env", "resources"}
    assert more["name"] == own["name"]
    own["env"] += more["env"]
    own["resources"]["limits"] |= more["resources"]["limits"]
    return merged


def test_the_pod_with_a_gpu_is_the_other_pod_with_one_gpu() -> None:
    kustomization = yaml.safe_load((FOLDER / "hospital-gpu" / "kustomization.yaml").read_text())
    assert kustomization["resources"] == ["../hospital"]
    assert kustomization["patches"] == [{"path": "gpu.yaml"}]
    merged = _with_gpu()
    kubernetes_validate.validate(merged, KUBERNETES_VERSION, strict=True)
    (container,) = merged["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert (
        container["securityContext"]
        == _hospital("StatefulSet")["spec"]["template"]["spec"]["containers"][0]["securityContext"]
    )


@pytest.mark.parametrize(
    ("base", "more"),
    [
        ("docker-compose.yml", "deploy/containers/gpu.yml"),
        ("deploy/hospital/docker-compose.yml", "deploy/hospital/gpu.yml"),
    ],
)
def test_the_container_with_a_gpu_changes_nothing_that_confines_it(base: str, more: str) -> None:
    root = FOLDER.parents[1]
    own = yaml.safe_load((root / base).read_text())["services"]["hospital"]
    ((name, gpu),) = yaml.safe_load((root / more).read_text())["services"].items()
    assert name == "hospital"
    assert set(gpu) == {"image", "build", "environment", "mem_limit", "deploy"}
    assert gpu["build"] == {"args": {"PYTORCH_INDEX": ""}}
    assert gpu["image"] == f"{own['image']}-cuda"
    assert gpu["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
