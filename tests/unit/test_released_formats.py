"""What a release has written stays what it is, byte for byte, and is read by this one."""

import inspect
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from pydantic import TypeAdapter

from common.audit import entries
from common.config import RunDescription
from common.identity import enrolment
from common.provenance import confide_version
from common.run import messages
from common.run.delivery import Delivery
from common.run.proposal import Proposal
from common.run.round_terms import RoundTerms
from server.run_queue import KeptRun
from tests.support.released_formats import FOLDER, bodies, formats, of_enrolment, replies, requests

RELEASES = sorted(path.name for path in FOLDER.iterdir())


def _files(release: str, pattern: str) -> list[Path]:
    found = sorted((FOLDER / release).glob(pattern))
    assert found
    return found


def test_this_release_writes_what_its_fixtures_hold() -> None:
    assert confide_version() in RELEASES
    kept = {path.name: path.read_bytes() for path in (FOLDER / confide_version()).iterdir()}
    assert formats() == kept


def test_every_kind_of_message_and_entry_has_a_fixture() -> None:
    assert {type(item) for item in requests()} == set(get_args(messages.Request))
    assert {type(item) for item in replies()} == set(get_args(messages.Reply))
    kinds = {kind for _, kind in inspect.getmembers(enrolment, inspect.isclass) if issubclass(kind, enrolment.Message)}
    assert {type(item) for item in of_enrolment()} == kinds - {enrolment.Message}
    assert {type(item) for item in bodies()} == set(get_args(entries.Body))


@pytest.mark.parametrize("release", RELEASES)
def test_messages_of_each_release_in_the_window_are_read_and_written_again(release: str) -> None:
    for path in _files(release, "request_*"):
        assert messages.encode(messages.decode_request(path.read_bytes())) == path.read_bytes()
    for path in _files(release, "reply_*"):
        assert messages.encode(messages.decode_reply(path.read_bytes())) == path.read_bytes()
    by_tag = {str(type(item).__struct_config__.tag): type(item) for item in of_enrolment()}
    for path in _files(release, "enrolment_*"):
        kind = by_tag[path.stem.removeprefix("enrolment_")]
        assert enrolment.encode(enrolment.decode(path.read_bytes(), kind)) == path.read_bytes()


@pytest.mark.parametrize("release", RELEASES)
def test_files_of_each_release_are_read_and_written_again(release: str) -> None:
    folder = FOLDER / release
    for kind, name in ((Proposal, "proposal.json"), (Delivery, "delivery.json")):
        content = (folder / name).read_bytes()
        assert kind.model_validate_json(content).encode() == content
    content = (folder / "run_description.json").read_bytes()
    assert RunDescription.from_json(content).canonical_json() == content
    content = (folder / "run.json").read_bytes()
    assert msgspec.json.encode(msgspec.json.decode(content, type=KeptRun)) == content
    content = (folder / "round_terms.msgpack").read_bytes()
    assert RoundTerms.decode(content).encode() == content
    adapter: TypeAdapter[entries.Body] = TypeAdapter(entries.Body)
    for path in _files(release, "audit_*"):
        assert adapter.validate_json(path.read_bytes()).kind == path.stem.removeprefix("audit_")
