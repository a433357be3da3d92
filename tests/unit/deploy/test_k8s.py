"""The cluster files: Kubernetes' own schemas, and what they promise about a hospital's pod."""

import re
import shutil
import subprocess
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from client.handover import SOCKET_FILE
from common.config import load_config
from common.settings import RELAY_FOLDER, HospitalSettings, ServerSettings

FOLDER = Path(__file__).parents[3] / "deploy" / "k8s"
VERSIONS = ("1.31", "1.32", "1.33", "1.34")
OVERLAYS = ("consortium", "consortium-offline-authority", "hospital", "hospital-gpu", "hospital-one-user")
KUBECTL = shutil.which("kubectl")

needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")


def _objects(folder: str) -> list[dict[str, Any]]:
    kustomization = yaml.safe_load((FOLDER / folder / "kustomization.yaml").read_text())
    found: list[dict[str, Any]] = []
    for file in kustomization["resources"]:
        if not file.endswith(".yaml"):  # a folder of ConfigMaps
            continue
        found += list(yaml.safe_load_all((FOLDER / folder / file).read_text()))
    return found


def _pods() -> list[dict[str, Any]]:
    return [
        item["spec"]["template"]["spec"]
        for item in (*_objects("consortium"), *_objects("hospital"))
        if "template" in item["spec"]
    ]


@cache
def _rendered(overlay: str) -> str:
    """Return what ``kubectl apply -k`` sends, with generated ConfigMaps and patches."""
    done = subprocess.run(
        (str(KUBECTL), "kustomize", str(FOLDER / overlay)), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _sent(overlay: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(_rendered(overlay)))


def _templates(items: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Return every pod's template, with the name of what makes it; a job's too."""
    found = []
    for item in items:
        spec = item.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            found.append((item["metadata"]["name"], spec["template"]))
    return found


def validate(item: dict[str, Any], version: str) -> None:
    """Check an object against the schemas of a version of Kubernetes, which allow no field that they do not name."""
    import kubernetes_validate  # It compiles a grammar of addresses for more than a second.

    kubernetes_validate.validate(item, version, strict=True)


def _hospital(kind: str) -> dict[str, Any]:
    return next(item for item in _objects("hospital") if item["kind"] == kind)


@pytest.mark.parametrize("folder", ["consortium", "hospital"])
def test_every_object_is_one_that_kubernetes_accepts(folder: str) -> None:
    for item in _objects(folder):
        validate(item, VERSIONS[0])


@needs_kubectl
@pytest.mark.parametrize(
    "version", [VERSIONS[0], *(pytest.param(version, marks=pytest.mark.slow) for version in VERSIONS[1:])]
)
def test_every_overlay_is_one_that_each_version_of_kubernetes_accepts(version: str) -> None:
    distinct = {repr(item): item for overlay in OVERLAYS for item in _sent(overlay)}
    for item in distinct.values():
        validate(item, version)


@needs_kubectl
@pytest.mark.parametrize("overlay", ["consortium", "consortium-offline-authority", "hospital-one-user"])
def test_no_pod_breaks_restricted_pod_security(overlay: str) -> None:
    """The profile's rules, https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted."""
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    templates = _templates(_sent(overlay))
    assert templates
    for _, template in templates:
        pod = template["spec"]
        assert not any(pod.get(shared) for shared in ("hostNetwork", "hostPID", "hostIPC"))
        assert all(set(volume) - {"name"} <= allowed for volume in pod.get("volumes", ()))
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            context = {**pod.get("securityContext", {}), **container["securityContext"]}
            assert context["runAsNonRoot"] is True
            assert context["runAsUser"] > 0
            assert context["allowPrivilegeEscalation"] is False
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert not context.get("privileged")
            assert not any("hostPort" in port for port in container.get("ports", ()))


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_has_limits_probes_and_a_network_policy_of_its_own(overlay: str) -> None:
    items = _sent(overlay)
    policies = [item["spec"] for item in items if item["kind"] == "NetworkPolicy"]
    for name, template in _templates(items):
        (container,) = template["spec"]["containers"]
        assert {"requests", "limits"} <= container["resources"].keys()
        covering = [
            policy for policy in policies
            if (policy["podSelector"].get("matchLabels") or {}).items() <= template["metadata"]["labels"].items()
        ]  # fmt: skip
        assert {kind for policy in covering for kind in policy["policyTypes"]} == {"Ingress", "Egress"}
        if name != "backup":
            probes = {"startupProbe", "readinessProbe", "livenessProbe"} - (
                {"startupProbe"} if name == "alertmanager" else set()
            )
            assert probes <= container.keys()


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_changed_file_makes_another_config_map_that_pods_name(overlay: str) -> None:
    items = _sent(overlay)
    made = {item["metadata"]["name"] for item in items if item["kind"] == "ConfigMap"}
    named = {
        volume["configMap"]["name"]
        for _, template in _templates(items)
        for volume in template["spec"].get("volumes", ())
        if "configMap" in volume
    }
    assert named == made
    assert all(re.search(r"-[a-z0-9]{10}$", name) for name in made)


@needs_kubectl
def test_the_server_of_the_offline_authority_holds_no_key_and_takes_the_certificate_from_a_secret() -> None:
    (server,) = (
        item
        for item in _sent("consortium-offline-authority")
        if item["kind"] == "StatefulSet" and item["metadata"]["name"] == "server"
    )
    (container,) = server["spec"]["template"]["spec"]["containers"]
    assert "--authority=/authority/ca.pem" in container["args"]
    assert "--hold-authority-key" not in container["args"]
    secrets = [
        volume["secret"]["secretName"] for volume in server["spec"]["template"]["spec"]["volumes"] if "secret" in volume
    ]
    assert secrets == ["authority"]


@needs_kubectl
@pytest.mark.parametrize(("overlay", "names"), [("consortium", {"server"}), ("hospital", {"hospital"})])
def test_what_holds_a_run_or_a_ledger_is_not_evicted_without_a_person(overlay: str, names: set[str]) -> None:
    budgets = [item for item in _sent(overlay) if item["kind"] == "PodDisruptionBudget"]
    assert {item["metadata"]["name"] for item in budgets} == names
    assert all(item["spec"]["maxUnavailable"] == 0 for item in budgets)


def test_configurations_of_the_cluster_are_read_by_this_version() -> None:
    for overlay in ("consortium", "hospital"):
        load_config(FOLDER / overlay / "config.yaml")


@pytest.mark.parametrize("changes", [0, 16])
def test_the_backup_makes_a_whole_archive_and_keeps_the_newest_fourteen(changes: int, tmp_path: Path) -> None:
    (job,) = (
        item
        for item in yaml.safe_load_all((FOLDER / "consortium" / "backup.yaml").read_text())
        if item["kind"] == "CronJob"
    )
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    state, backup = tmp_path / "state", tmp_path / "backup"
    (state / "runs").mkdir(parents=True)
    (state / "runs" / "run.json").write_text("{}")
    backup.mkdir()
    for day in range(changes):
        (backup / f"state-202601{day + 1:02}T031700Z.tar").write_text("")
    script = (
        container["args"][0]
        .replace("/backup", str(backup))
        .replace("/state", str(state))
        .replace(str(backup) + str(state), str(backup))
    )
    done = subprocess.run(("sh", "-euc", script), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kept = sorted(path.name for path in backup.iterdir())
    assert len(kept) == min(14, changes + 1)
    with tarfile.open(backup / kept[-1]) as archive:
        assert "./runs/run.json" in archive.getnames()


def test_a_misspelt_field_would_be_noticed() -> None:
    broken = _hospital("StatefulSet")
    broken["spec"]["replica"] = 1
    from kubernetes_validate import ValidationError

    with pytest.raises(ValidationError):
        validate(broken, VERSIONS[0])


def test_a_hospital_is_one_pod_that_nobody_can_reach() -> None:
    assert {item["kind"] for item in _objects("hospital")} == {"StatefulSet", "NetworkPolicy", "PodDisruptionBudget"}
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
    assert command[-1].endswith(f" 127.0.0.1:{exporter} /state/{RELAY_FOLDER}/{SOCKET_FILE}")
    assert command[-1].startswith("test ! -e /state/identity.pem || ")  # Who waits for an invitation is alive as well.


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
    validate(merged, VERSIONS[0])
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
