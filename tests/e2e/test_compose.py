"""``docker compose up --scale hospital=N`` for real: who has what, who may do what, and what survives.

The tests of this file share one consortium and go on from each other, in the order they are written.
"""

import csv
import io
import json
import re
import subprocess
import urllib.parse
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from docker.errors import NotFound
from docker.models.containers import Container

from common.identity.certificates import common_name, read_certificate
from common.telemetry.events import COMPLETED, RoundDone, RunFinished, RunStarted
from tests.support.compose import Consortium, engine_answers, hashes, is_denied, processes, shell

HOSPITALS = 3
SEATS = 4
RECORDS = 1200
ROUNDS = 20
"""A run can be stopped on its way: on an idle machine a round takes less than the time between two looks."""
CONFIG = {
    "experiment": {"rounds": ROUNDS},
    "data": {"source": "phantom", "phantom_records": RECORDS},
    "training": {"batch_size": 32},
    "hospital": {"epsilon_budget": 100.0},
    "transport": {"exchange_deadline_seconds": 180.0, "start_deadline_seconds": 600.0},
}
HOSPITAL_USER, RELAY_USER = "10001", "10002"
OF_THE_MOMENT = ("confide_disk_free_ratio", "confide_certificate_left_ratio")
"""Metrics of what goes on between two looks."""


pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(not engine_answers(), reason="no Docker engine answers"),
]


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    config = tmp_path_factory.mktemp("compose") / "config.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    config.chmod(0o644)  # whatever the umask: the containers' users read it
    settings = {
        "CONFIDE_CONFIG": str(config), "CONFIDE_SEATS": str(SEATS), "CONFIDE_RUNS": str(config.parent / "runs")
    }  # fmt: skip
    made = Consortium(f"confide-test-{uuid.uuid4().hex[:8]}", settings)
    made.compose("build", "server", "hospital", "dealer")
    try:
        made.up(HOSPITALS)
        made.wait_for(lambda: _finished(made), "the first run to finish")
        yield made
    finally:
        made.down()


def _finished(consortium: Consortium) -> RunFinished | None:
    return next((event for event in consortium.events() if isinstance(event, RunFinished)), None)


def _rounds(consortium: Consortium) -> list[RoundDone]:
    return [event for event in consortium.events() if isinstance(event, RoundDone)]


def _starts(consortium: Consortium) -> list[RunStarted]:
    return [event for event in consortium.events() if isinstance(event, RunStarted)]


def _is_run_of(consortium: Consortium, hospitals: int) -> bool:
    return any(len(started.hospitals) == hospitals for started in _starts(consortium))


def _images(container: Container) -> set[str]:
    return hashes(container, "-name '*.png' -not -path '*/plots/*'")


def _private_keys(container: Container) -> set[str]:
    return hashes(container, "-size -64k -exec grep -q -s 'PRIVATE KEY' {} ';'")


def _identity(container: Container) -> str:
    return shell(container, "sha256sum /state/identity.key /state/identity.pem", user="hospital")


def _member(container: Container) -> str:
    """Return the name under which a container's hospital has joined."""
    return common_name(read_certificate(shell(container, "cat /state/identity.pem").encode()))


def _exported(container: Container) -> dict[str, set[str]]:
    """Return every sample of an exporter by its metric's name; none while it does not answer."""
    fetch = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9400/metrics', timeout=5).read().decode())"
    told: Any = container.exec_run(["python", "-c", fetch])
    samples: dict[str, set[str]] = {}
    if told.exit_code == 0:
        for line in told.output.decode().splitlines():
            if line and not line.startswith("#"):
                samples.setdefault(re.split("[{ ]", line)[0], set()).add(line)
    return samples


def _ask(consortium: Consortium, query: str) -> list[Any]:
    port = consortium.ports["CONFIDE_PROMETHEUS_PORT"]
    url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        results: list[Any] = json.load(answer)["data"]["result"]
    return results


def test_three_hospitals_train_and_the_server_keeps_the_results(consortium: Consortium) -> None:
    finished = _finished(consortium)
    assert finished is not None
    assert finished.reason == COMPLETED
    assert [done.hospitals for done in _rounds(consortium)] == [HOSPITALS] * ROUNDS
    (server,) = consortium.containers("server")
    consortium.wait_for(lambda: "model.safetensors" in shell(server, "ls /state/runs/*"), "the model to be written")
    rows = list(csv.DictReader(io.StringIO(shell(server, "cat /state/runs/*/metrics.csv"))))
    assert [row["round"] for row in rows] == [str(number) for number in range(1, ROUNDS + 1)]
    assert _starts(consortium)[0].data_set == "phantom-pneumonia"


def test_each_hospital_holds_its_own_records_and_nobody_else_holds_any(consortium: Consortium) -> None:
    hospitals = [_images(container) for container in consortium.containers("hospital")]
    assert all(hospitals)
    assert sum(map(len, hospitals)) == len(set.union(*hospitals))
    for service in ("server", "dealer", "prometheus"):
        (container,) = consortium.containers(service)
        assert _images(container) == set()
    (dealer,) = consortium.containers("dealer")
    assert shell(dealer, "ls /state/shards").split() == [f"{HOSPITALS}.zip"]  # nobody's yet: a free seat


def test_no_container_holds_a_key_of_another(consortium: Consortium) -> None:
    keys = {str(container.name): _private_keys(container) for container in consortium.containers()}
    shared = [key for key, count in Counter(key for held in keys.values() for key in held).items() if count > 1]
    assert shared == []
    # Its identity's, and the one that its relay is registered with.
    assert [len(keys[str(container.name)]) for container in consortium.containers("hospital")] == [2] * HOSPITALS
    assert keys[str(consortium.containers("prometheus")[0].name)] == set()


def test_the_supernodes_user_can_read_neither_data_nor_ledger_nor_identity(consortium: Consortium) -> None:
    for container in consortium.containers("hospital"):
        for file in ("/shard/manifest.csv", "/state/identity.key", "/state/hospital.json", "/state/status.json"):
            assert is_denied(container, "relay", "cat", file)
        for folder in ("/shard", "/state", "/state/ledger", "/state/cache"):
            assert is_denied(container, "relay", "ls", folder)
        for folder in ("/state", "/state/relay"):
            assert is_denied(container, "relay", "touch", f"{folder}/mine")
        assert b"supernode.key" in container.exec_run(["ls", "/state/relay"], user="relay").output


def test_the_supernode_runs_as_its_own_user_and_the_agent_as_another(consortium: Consortium) -> None:
    for container in consortium.containers("hospital"):
        users = {row["uid"]: row["command"] for row in processes(container) if "client." in row["command"]}
        assert "client.flower.supernode" in users[RELAY_USER]
        owners = {row["uid"] for row in processes(container) if "client.flower.supernode" not in row["command"]}
        assert owners == {"0", HOSPITAL_USER}
        agent = shell(container, "grep -l -s -a 'client[.]resident' /proc/[0-9]*/cmdline").split()[0]
        assert is_denied(container, "relay", "cat", agent.replace("cmdline", "environ"))


def test_nothing_but_the_init_process_is_root(consortium: Consortium) -> None:
    for container in consortium.containers():
        roots = [row["command"] for row in processes(container) if row["uid"] == "0"]
        assert all("docker-init" in command for command in roots), (container.name, roots)


def test_every_container_is_confined_and_healthy(consortium: Consortium) -> None:
    for container in consortium.containers():
        consortium.wait_for(lambda container=container: _health(container) == "healthy", f"{container.name}'s health")  # type: ignore[misc]
        host = container.attrs["HostConfig"]
        assert host["ReadonlyRootfs"]
        assert host["CapDrop"] == ["ALL"]
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert host["Memory"] > 0
        assert host["PidsLimit"] > 0
        assert host["Init"]
        assert host["RestartPolicy"]["Name"] == "unless-stopped"
        assert not host["Privileged"]


def _health(container: Container) -> str:
    container.reload()
    return str(container.attrs["State"]["Health"]["Status"])


def test_only_the_servers_two_ports_and_prometheus_on_loopback_are_published(consortium: Consortium) -> None:
    published = {
        (str(container.labels["com.docker.compose.service"]), inside, binding["HostIp"])
        for container in consortium.containers()
        for inside, bindings in container.attrs["HostConfig"]["PortBindings"].items()
        for binding in bindings
    }
    assert {(service, inside) for service, inside, _ in published} == {
        ("server", "9092/tcp"), ("server", "9093/tcp"), ("prometheus", "9090/tcp"),
    }  # fmt: skip
    assert {address for service, _, address in published if service == "prometheus"} == {"127.0.0.1"}


def test_prometheus_finds_the_server_and_every_hospital_by_name(consortium: Consortium) -> None:
    consortium.wait_for(lambda: len(_ask(consortium, "up == 1")) == 1 + HOSPITALS, "Prometheus to find everybody")
    names = {series["metric"]["hospital"] for series in _ask(consortium, "confide_hospital_epsilon_spent")}
    assert names == {f"hospital-{number}" for number in range(1, HOSPITALS + 1)}
    # The names on a dashboard are those of the containers.
    for container in consortium.containers("hospital"):
        told = shell(container, "python -m deploy hospital status --state /state", user="hospital")
        assert str(container.name).endswith(f"-{told.split()[1]}")
    (step,) = _ask(consortium, "confide_round")
    assert step["value"][1] == str(ROUNDS)


def test_a_killed_exporter_comes_back_with_the_same_values(consortium: Consortium) -> None:
    (server,) = consortium.containers("server")
    before = _exported(server)
    shell(server, r"kill -9 $(grep -l -s -a 'server[.]metrics' /proc/[0-9]*/cmdline | tr -dc '0-9\n')")
    consortium.wait_for(lambda: "confide_round" in _exported(server), "the exporter to come back")
    after = _exported(server)
    assert {name: after[name] for name in after if name not in OF_THE_MOMENT} == {
        name: before[name] for name in before if name not in OF_THE_MOMENT
    }
    assert {"confide_accuracy", "confide_precision", "confide_recall", "confide_f1", "confide_auc", "confide_loss",
            "confide_epsilon_spent", "confide_epsilon_budget", "confide_hospitals_online", "confide_dropouts_total",
            "confide_refusals_total", "confide_exchange_seconds_bucket", "confide_upload_bytes_total",
            "confide_build_info", "confide_round"} <= set(before)  # fmt: skip


@pytest.mark.usefixtures("consortium")
def test_images_carry_no_data_no_keys_and_no_configuration() -> None:
    everything = "find / -type f -not -path '/proc/*' -not -path '/sys/*' -not -path '/venv/*' -not -path '/usr/*'"
    inside = ("--rm", "--network", "none", "--user", "root", "--entrypoint", "sh")
    for role in ("server", "hospital", "dealer"):
        command = ("docker", "run", *inside, f"confide-{role}:0.2.0", "-c", everything)
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        files = [Path(line) for line in listed.splitlines()]
        assert Path("/confide/common/config.py") in files
        private = {".key", ".npz", ".png", ".jsonl", ".db"}
        assert [file for file in files if file.suffix in private or file.parts[1] in {"state", "shard", "deal"}] == []
        assert "config.yaml" not in {file.name for file in files}


def test_a_run_of_a_larger_consortium_goes_on_where_stop_left_it(consortium: Consortium) -> None:
    before = [_identity(container) for container in consortium.containers("hospital")]
    spent = {name: value for done in _rounds(consortium) for name, value in done.epsilon_spent.items()}
    consortium.up(SEATS, CONFIDE_RUN="second")
    consortium.wait_for(
        lambda: _starts(consortium) and len(_starts(consortium)[0].hospitals) == SEATS, "a new run of 4"
    )
    consortium.wait_for(lambda: _rounds(consortium), "the new run's first round")
    assert len(_rounds(consortium)) < ROUNDS
    consortium.compose("stop", "--timeout", "20", CONFIDE_RUN="second")
    assert {container.status for container in consortium.containers()} == {"exited"}
    consortium.compose("start", *("server", "dealer", "hospital", "prometheus"), CONFIDE_RUN="second")
    consortium.wait_for(lambda: _finished(consortium), "the run to go on and finish")
    assert len(_starts(consortium)) > 1
    assert _starts(consortium)[-1].resumed_from_round >= 1
    assert [done.step for done in _rounds(consortium)][-1] == ROUNDS
    assert {done.hospitals for done in _rounds(consortium)} == {SEATS}
    after = [_identity(container) for container in consortium.containers("hospital")]
    assert after[: len(before)] == before
    last = _rounds(consortium)[-1].epsilon_spent
    assert all(last[name] > value for name, value in spent.items())


def test_the_newcomer_got_the_free_shard_and_the_dealer_keeps_nothing(consortium: Consortium) -> None:
    hospitals = [_images(container) for container in consortium.containers("hospital")]
    assert sum(map(len, hospitals)) == len(set.union(*hospitals)) == RECORDS
    (dealer,) = consortium.containers("dealer")
    assert shell(dealer, "ls /state/shards") == ""


def test_fewer_hospitals_train_the_next_run(consortium: Consortium) -> None:
    second = _starts(consortium)[0].run_id
    (server,) = consortium.containers("server")
    before = {_member(container) for container in consortium.containers("hospital")}
    consortium.up(HOSPITALS, CONFIDE_RUN="second")
    # Which container goes is compose's choice, and differs between its versions.
    (gone,) = before - {_member(container) for container in consortium.containers("hospital")}
    # It is gone for good: while it is a member the next run waits for its agreement.
    shell(server, f"python -m deploy revoke {gone} --state /state", user="server")
    consortium.up(HOSPITALS, CONFIDE_RUN="third")
    consortium.wait_for(lambda: _starts(consortium) and _starts(consortium)[0].run_id != second, "a third run")
    consortium.wait_for(lambda: _finished(consortium), "the third run to finish")
    finished = _finished(consortium)
    assert finished is not None
    assert finished.reason == COMPLETED
    assert {done.hospitals for done in _rounds(consortium)} == {HOSPITALS}


def test_down_leaves_no_container_network_or_named_volume(consortium: Consortium) -> None:
    """Compose keeps unnamed volumes of containers it replaced, as it did for the second run: see the next test."""
    consortium.down()
    assert consortium.containers() == []
    label = {"label": f"com.docker.compose.project={consortium.project}"}
    assert consortium.client.volumes.list(filters=label) == []
    assert consortium.client.networks.list(filters=label) == []


def test_down_removes_every_volume_of_containers_that_were_never_replaced() -> None:
    server = Consortium(f"confide-test-{uuid.uuid4().hex[:8]}", {})
    try:
        server.compose("up", "--detach", "--no-build", "server")
        volumes = server.volumes()
        assert len(volumes) > 1
    finally:
        server.compose("down", "--volumes", "--timeout", "10")
    for volume in volumes:
        with pytest.raises(NotFound):
            server.client.volumes.get(volume)


def test_a_permanent_hospital_is_confined_like_the_demos() -> None:
    root = Path(__file__).parents[2]
    demo = yaml.safe_load((root / "docker-compose.yml").read_text())["services"]["hospital"]
    own = yaml.safe_load((root / "deploy" / "hospital" / "docker-compose.yml").read_text())["services"]["hospital"]
    for key in ("cap_drop", "cap_add", "read_only", "init", "security_opt", "restart", "pids_limit"):
        assert own[key] == demo[key]
    assert "mem_limit" in own
    assert all(port.startswith("127.0.0.1:") for port in own["ports"])
