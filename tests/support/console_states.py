"""State folders of a server and of a hospital, as an operator's page reads them, without any process."""

from pathlib import Path

import yaml

from client.agreement import Hospital, RunAgreements
from common.config import HospitalConfig, RunConsent, replace
from common.files import write_private
from common.identity.certificates import certificate_pem, private_key_pem
from common.identity.members import MEMBERS_FILE
from common.settings import (
    HOSPITAL_SETTINGS_FILE,
    ROSTER_FILE,
    SERVER_SETTINGS_FILE,
    SUPERNODES_FOLDER,
    HospitalSettings,
    ServerSettings,
)
from server.run_queue import RunQueue
from tests.support import named_patients
from tests.support.proposed_run import CONFIG, NOW, RUN_ID, Members

ASK = HospitalConfig(runs=RunConsent.ASK)


def server_state(made: Path, members: Members) -> Path:
    """Make the state folder of a server that has members and no run."""
    ServerSettings(
        config=made / "config.yaml", run=made / "runs" / RUN_ID[:12], logs=made, run_id=RUN_ID, data_set="phantom",
        classes=("a", "b"), channels=1, enrolment_port=9093, hosts=("confide.example.org",),
    ).write(made / SERVER_SETTINGS_FILE)  # fmt: skip
    write_private(made / "ca.pem", certificate_pem(members.authority.certificate))
    write_private(made / MEMBERS_FILE, members.member_list.encode())
    write_private(made / ROSTER_FILE, yaml.safe_dump(members.roster).encode())
    for name in members.identities:
        write_private(made / SUPERNODES_FOLDER / f"{name}.pub", b"a key")
    return made


def hospital_state(folder: Path, members: Members, name: str) -> Path:
    """Make the state folder of a hospital that has joined and decides by hand; its data is full of people's names."""
    made, identity = folder / "state", members.identities[name]
    write_private(made / "ca.pem", certificate_pem(members.authority.certificate))
    write_private(made / "identity.pem", certificate_pem(identity.certificate))
    write_private(made / "identity.key", private_key_pem(identity.key))
    write_private(made / "config.yaml", replace(CONFIG, hospital=ASK.model_dump()).as_yaml())
    named_patients.write(folder / "data", 3)
    HospitalSettings(
        fleet_address="confide.example.org:9092", logs=made / "logs", data=folder / "data", config=made / "config.yaml"
    ).write(made / HOSPITAL_SETTINGS_FILE)
    RunAgreements(made).keep(members.proposal(), NOW)
    return made


def answer(state: Path, members: Members, name: str, *, agrees: bool, reason: str = "") -> None:
    """Let a hospital answer the first run that is proposed at a server."""
    kept = RunQueue(state).proposal(RUN_ID)
    assert kept is not None
    hospital = Hospital(state.parent / name, members.identities[name], HospitalConfig())
    if agrees:
        said = hospital.agree(kept, "operator", (), lambda _body: None)
    else:
        said = hospital.decline(kept, "operator", "declined", reason, lambda _body: None)
    RunQueue(state).take_answer(said, members.roster[name].encode())
