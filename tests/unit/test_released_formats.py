"""What a release has written stays what it is, byte for byte, and is read by this one."""

import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from pydantic import TypeAdapter

from client.kept_runs import ReceivedRun
from client.last_standing import LastStanding, read_last_standing
from client.ledger.held import newest_entry
from client.ledger.ledger import LEDGER_FOLDER, Ledger
from client.status import HospitalStatus
from common.audit import entries
from common.audit.chain import AUDIT_FILE, AuditChain, read_chain
from common.audit.parties import Writer
from common.config import RunDescription, load_config
from common.errors import ConfideError, EnrolmentError, OtherVersionError
from common.identity import enrolment
from common.identity.certificates import load_certificate
from common.identity.invitation import Invitation
from common.identity.ledger_statement import LedgerStatement
from common.identity.members import KeptMembers
from common.models.first_model import FIRST_MODEL_FILE, FirstModel
from common.privacy.budget import Account, BudgetPolicy
from common.provenance import confide_version
from common.run import messages
from common.run.basis import Basis
from common.run.delivery import Delivery
from common.run.proposal import Proposal, RunAnswer
from common.run.round_terms import RoundTerms
from common.run.versions import SPOKEN
from common.settings import CHECKPOINTS_FOLDER, HospitalSettings, ServerSettings
from common.telemetry.events import EVENTS_FILE, Event, EventFile
from deploy.results.model_file import ModelCard, load_model
from server.checkpoints import CheckpointStore
from server.members.versions import MemberVersions, SaidVersions
from server.run_queue import KeptRun
from tests.support.proposed_run import Members
from tests.support.released_formats import (
    BOOKING,
    FOLDER,
    ONCE,
    RUN_ID,
    bodies,
    events,
    formats,
    of_enrolment,
    replies,
    requests,
)

RELEASES = sorted(path.name for path in FOLDER.iterdir())
IN_THE_WINDOW = [release for release in RELEASES if release != "0.1.0"]
FIRST = FOLDER / "0.1.0"
"""What the code of 0.1.0 wrote (commit 30890c7): outside the window. docs/upgrade.md says what it takes to go on."""


def _files(release: str, pattern: str) -> list[Path]:
    found = sorted((FOLDER / release).glob(pattern))
    assert found
    return found


def test_this_release_writes_what_its_fixtures_hold() -> None:
    assert confide_version() in RELEASES
    kept = {path.name: path.read_bytes() for path in (FOLDER / confide_version()).iterdir() if path.is_file()}
    assert formats() == kept


def test_every_kind_of_message_and_entry_has_a_fixture() -> None:
    assert {type(item) for item in requests()} == set(get_args(messages.Request))
    assert {type(item) for item in replies()} == set(get_args(messages.Reply))
    kinds = {kind for _, kind in inspect.getmembers(enrolment, inspect.isclass) if issubclass(kind, enrolment.Message)}
    assert {type(item) for item in of_enrolment()} == kinds - {enrolment.Message}
    assert {type(item) for item in bodies()} == set(get_args(entries.Body))
    assert {type(item) for item in events()} == set(get_args(Event))


@pytest.mark.parametrize("release", IN_THE_WINDOW)
def test_messages_of_each_release_in_the_window_are_read_and_written_again(release: str) -> None:
    for path in _files(release, "request_*"):
        assert messages.encode(messages.decode_request(path.read_bytes())) == path.read_bytes()
    for path in _files(release, "reply_*"):
        assert messages.encode(messages.decode_reply(path.read_bytes())) == path.read_bytes()
    by_tag = {str(type(item).__struct_config__.tag): type(item) for item in of_enrolment()}
    for path in _files(release, "enrolment_*"):
        kind = by_tag[path.stem.removeprefix("enrolment_")]
        assert enrolment.encode(enrolment.decode(path.read_bytes(), kind)) == path.read_bytes()


@pytest.mark.parametrize("release", IN_THE_WINDOW)
def test_files_of_each_release_are_read_and_written_again(release: str) -> None:
    folder = FOLDER / release
    for kind, name in ((Proposal, "proposal.json"), (Delivery, "delivery.json")):
        content = (folder / name).read_bytes()
        assert kind.model_validate_json(content).encode() == content
    for decoded, name in ((RunAnswer, "answer.json"), (LedgerStatement, "ledger_statement.json")):
        content = (folder / name).read_bytes()
        assert decoded.model_validate_json(content).encode() == content
    for told, name, indent in (
        (ReceivedRun, "received.json", 2), (HospitalStatus, "status.json", None), (ModelCard, "model.json", 2),
        (ServerSettings, "server.json", 2), (HospitalSettings, "hospital.json", 2),
    ):  # fmt: skip
        content = (folder / name).read_bytes()
        assert told.model_validate_json(content).model_dump_json(indent=indent).encode() == content
    for said, name in ((SaidVersions, "versions.json"), (LastStanding, "standing.json")):
        content = (folder / name).read_bytes()
        assert msgspec.json.encode(msgspec.json.decode(content, type=said)) == content
    line = (folder / "invitation.txt").read_text().strip()
    assert Invitation.decode(line).encode() == line
    lines = "".join(event.to_line() for event in EventFile(folder / EVENTS_FILE).read_new())
    assert lines.encode() == (folder / EVENTS_FILE).read_bytes()
    content = (folder / "run_description.json").read_bytes()
    assert RunDescription.from_json(content).canonical_json() == content
    content = (folder / "run.json").read_bytes()
    assert msgspec.json.encode(msgspec.json.decode(content, type=KeptRun)) == content
    for name in ("round_terms.msgpack", "proved_terms.msgpack"):
        content = (folder / name).read_bytes()
        assert RoundTerms.decode(content).encode() == content
    content = (folder / "basis.msgpack").read_bytes()
    assert Basis.decode(content).encode() == content
    adapter: TypeAdapter[entries.Body] = TypeAdapter(entries.Body)
    for path in _files(release, "audit_*"):
        assert adapter.validate_json(path.read_bytes()).kind == path.stem.removeprefix("audit_")


@pytest.mark.parametrize("release", IN_THE_WINDOW)
def test_chain_ledger_list_first_model_and_checkpoint_of_each_release_are_read_and_go_on(
    release: str, tmp_path: Path
) -> None:
    made = shutil.copytree(FOLDER / release / ONCE, tmp_path / "made")
    authority = load_certificate(made / "ca.pem")
    assert read_chain((made / AUDIT_FILE).read_bytes(), AUDIT_FILE, authority).party == "st-mary"
    members = KeptMembers(made, authority).newest()
    assert members is not None
    assert set(members.members) == {"st-anne", "st-john", "st-mary"}
    policy = BudgetPolicy(10.0, 1e-4)
    ledger = Ledger.open(made / LEDGER_FOLDER, bytes(32))
    before = ledger.spent(Account.TRAINING, policy)
    assert 0 < before < ledger.record(RUN_ID, 8, BOOKING, policy)
    first = FirstModel.read(made / FIRST_MODEL_FILE)
    assert (first.facts.tensors, first.shapes, first.flat.tolist()) == (("weight",), ((2, 3),), [0, 1, 2, 3, 4, 5])
    checkpoint = CheckpointStore(made / CHECKPOINTS_FOLDER).latest(RUN_ID)
    assert checkpoint is not None
    assert (checkpoint.step, checkpoint.round_number, checkpoint.progress.threshold) == (2, 4, 0.5)
    assert checkpoint.model[:].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("file", ["standing.json", "versions.json"])
def test_what_each_side_is_told_anew_is_passed_over_in_another_version(file: str, tmp_path: Path) -> None:
    content = (FOLDER / confide_version() / file).read_bytes()
    (tmp_path / file).write_bytes(content)
    assert read_last_standing(tmp_path).protocol == 3 or MemberVersions(tmp_path).of("st-mary") is not None
    (tmp_path / file).write_bytes(content.replace(b'"version":1', b'"version":2'))
    assert read_last_standing(tmp_path).protocol is None
    assert MemberVersions(tmp_path).all() == {}


def test_every_message_of_0_1_0_is_refused_by_one_line_that_names_both_versions() -> None:
    for path in _files("0.1.0", "request_*"):
        with pytest.raises(OtherVersionError, match=f"the server speaks version 1, this hospital speaks {SPOKEN}; up"):
            messages.decode_request(path.read_bytes())
    for path in _files("0.1.0", "reply_*"):
        with pytest.raises(OtherVersionError, match=f"the hospital speaks version 1, this server speaks {SPOKEN}; up"):
            messages.decode_reply(path.read_bytes())
    by_tag = {str(type(item).__struct_config__.tag): type(item) for item in of_enrolment()}
    for path in _files("0.1.0", "enrolment_*"):
        with pytest.raises(EnrolmentError, match=r"one version of enrolment; .* the other 1 \(Confide of an earlier"):
            enrolment.decode(path.read_bytes(), by_tag[path.stem.removeprefix("enrolment_")])


def test_an_invitation_of_0_1_0_is_still_one() -> None:
    line = (FIRST / "invitation.txt").read_text().strip()
    assert Invitation.decode(line).encode() == line


def test_a_chain_of_0_1_0_is_verified_and_goes_on(tmp_path: Path) -> None:
    content = (FIRST / AUDIT_FILE).read_bytes()
    chain = read_chain(content, AUDIT_FILE, load_certificate(FIRST / "ca.pem"))
    assert [entry.body.kind for entry in chain.entries] == ["identified", "joined", "contributed", "signed", "refused"]
    assert isinstance(chain.entries[2].body, entries.ContributedUnbound)
    held = newest_entry(FIRST / AUDIT_FILE)
    assert held is not None
    assert held.anchor.sequence == 3
    # Even where a vector was the last that it wrote.
    (tmp_path / AUDIT_FILE).write_bytes(b"".join(content.splitlines(keepends=True)[:3]))
    identity = Members.made().identities["st-mary"]
    AuditChain(tmp_path / AUDIT_FILE, Writer(identity.certificate, identity.key)).close()
    assert (tmp_path / AUDIT_FILE).read_bytes().count(b"\n") == 4


def test_a_vector_whose_terms_nothing_bound_cannot_be_written_today() -> None:
    assert entries.ContributedUnbound not in get_args(entries.Body)


@pytest.mark.parametrize(
    ("name", "read", "because"),
    [
        ("run_description.json", lambda path: RunDescription.from_json(path.read_bytes()), "protocol_version .* got 1"),
        ("config.yaml", load_config, "unknown key 'hospital.min_delta'"),
        ("events.jsonl", lambda path: EventFile(path).read_new(), "hold to its format"),
        ("model.json", lambda path: load_model(path.parent), "format_version"),
    ],
)
def test_a_file_of_0_1_0_that_is_not_read_any_more_is_refused_with_the_reason(
    tmp_path: Path, name: str, read: Callable[[Path], object], because: str
) -> None:
    (tmp_path / name).write_bytes((FIRST / name).read_bytes())
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ConfideError, match=because):
        read(tmp_path / name)
