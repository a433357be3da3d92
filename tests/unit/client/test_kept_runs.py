"""A hospital keeps a finished run that its own chain bears out, and refuses every other."""

import datetime
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from client.enrolment import EnrolmentService
from client.kept_runs import RUNS_FOLDER, RunReceiver, folder_of, kept_runs, refused_runs
from common.audit.chain import AUDIT_FILE, AuditChain, read_chain
from common.audit.entries import (
    Began,
    Body,
    Centred,
    Contributed,
    ContributedUnbound,
    Identified,
    JoinedRun,
    Stepped,
    Summed,
    Told,
)
from common.audit.parties import Writer
from common.config import Config, RunDescription, replace
from common.errors import AuditError, EnrolmentError, RunError
from common.files import write_private
from common.identity.certificates import HospitalIdentity
from common.run import told_run
from common.run.delivery import (
    DELIVERY_FILE,
    MAXIMUM_READ_WHOLE_BYTES,
    MODEL_FILES,
    NEEDED_FILES,
    Delivery,
    FileFact,
    chain_head,
    file_fact,
    read_delivery,
    sign,
)
from common.run.flat_model import hash_model
from common.run.model_facts import ModelFacts
from common.run.round_terms import RoundTerms
from common.telemetry.events import (
    EVENTS_FILE,
    Evaluated,
    Event,
    RoundDone,
    RunFinished,
    RunStarted,
    parse_event,
)
from deploy.audit.verify import find_authority, find_chains, verify
from deploy.hospital import model as model_command
from deploy.results.model_file import ModelCard, load_model, save_model
from deploy.results.report import write_report
from deploy.results.report_facts import RunFacts
from server.members.results import FinishedRuns
from tests.support.audited_run import EPSILON, NAMES, RUN_ID
from tests.support.finished_run import FinishedRun, finished_run, goes_on_for_one_step

LONG = 60.0


@dataclass(frozen=True)
class Line(EnrolmentService):
    """The enrolment service without a network: what it would answer, and what it was asked."""

    finished: FinishedRuns = field(kw_only=True, repr=False)
    asked: list[tuple[str, str, int]] = field(default_factory=list, kw_only=True)
    breaks_after: list[int] = field(default_factory=list, kw_only=True)

    signed: list[Delivery] = field(default_factory=list, kw_only=True, repr=False)
    """What a server that lies offers instead; the last counts."""
    also: dict[str, bytes] = field(default_factory=dict, kw_only=True)

    def results(self, identity: HospitalIdentity) -> Mapping[str, bytes]:
        lies = {delivery.run_id: bytes.fromhex(delivery.digest()) for delivery in self.signed}
        return {**self.finished.of(identity.name), **lies, **self.also}

    def piece(self, identity: HospitalIdentity, run_id: str, name: str, offset: int) -> bytes:
        self.asked.append((run_id, name, offset))
        if name == DELIVERY_FILE and self.signed:
            return self.signed[-1].encode()
        if self.breaks_after and len(self.asked) > self.breaks_after[0]:
            raise EnrolmentError("the line broke")
        return self.finished.piece(identity.name, run_id, name, offset)


@dataclass(frozen=True)
class Scene:
    """A finished run, a hospital's state folder, and the line between the two."""

    run: FinishedRun
    state: Path
    identity: HospitalIdentity
    line: Line

    def receiver(self) -> RunReceiver:
        return RunReceiver(self.state, self.run.authority, self.line)

    def receive(self) -> None:
        self.receiver().advance(self.identity, LONG)

    def sign_again(self, model_hash: str | None = None) -> None:
        """Be a server that signs what lies in its folder now."""
        self.sign_files({name: file_fact(self.run.folder / name) for name in NEEDED_FILES}, model_hash)

    def sign_files(self, files: Mapping[str, FileFact], model_hash: str | None = None) -> None:
        """Be a server that signs whatever it likes, and hands it over without looking at it."""
        before = read_delivery((self.run.folder / DELIVERY_FILE).read_bytes(), self.run.authority)
        signed = sign(
            RUN_ID,
            model_hash or before.model_hash,
            chain_head((self.run.folder / AUDIT_FILE).read_bytes()),
            files,
            before.hospitals,
            self.run.writer,
            datetime.datetime.now(datetime.UTC),
        )
        (self.run.folder / DELIVERY_FILE).write_bytes(signed.encode())
        self.line.signed.append(signed)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Finish one run, of which each test changes a copy."""
    run = finished_run(tmp_path_factory.mktemp("finished") / "server")
    run.write_results()
    return run


@pytest.fixture
def scene(finished: FinishedRun, tmp_path: Path) -> Scene:
    return _scene_of(finished, tmp_path)


def _scene_of(finished: FinishedRun, tmp_path: Path) -> Scene:
    run = finished.copy(tmp_path / "server")
    identity = run.hospital(tmp_path / "hospital")
    line = Line("localhost:1", run.authority, finished=FinishedRuns(run.state, run.authority))
    return Scene(run, tmp_path / "hospital", identity, line)


def test_a_finished_run_comes_home_is_verified_and_kept(scene: Scene) -> None:
    scene.receive()
    (kept,) = kept_runs(scene.state)
    assert (kept.run_id, kept.steps, kept.rounds, kept.has_seen_model) == (RUN_ID, 2, 3, True)
    folder = folder_of(scene.state, RUN_ID)
    for name in MODEL_FILES:
        assert (folder / name).read_bytes() == (scene.run.folder / name).read_bytes()
    assert refused_runs(scene.state) == {}


def test_what_is_kept_verifies_by_the_hospitals_own_chain_and_authority(scene: Scene) -> None:
    scene.receive()
    folder = folder_of(scene.state, RUN_ID)
    assert find_chains(folder) == [scene.state / AUDIT_FILE]
    assert find_authority(folder) == scene.state / "ca.pem"
    verdict = verify(folder, find_chains(folder), find_authority(folder))
    assert verdict.hospitals == (scene.identity.name,)
    assert (verdict.has_model, verdict.has_figures, verdict.is_complete) == (True, True, True)


def test_it_is_fetched_once_and_what_is_asked_names_the_servers_own_words_alone(scene: Scene) -> None:
    scene.receive()
    names = {DELIVERY_FILE, *read_delivery((scene.run.folder / DELIVERY_FILE).read_bytes(), scene.run.authority).files}
    assert {name for _, name, _ in scene.line.asked} == names
    assert all(run_id == RUN_ID for run_id, _, _ in scene.line.asked)
    asked = len(scene.line.asked)
    scene.receive()
    assert len(scene.line.asked) == asked


def test_a_line_that_breaks_costs_the_piece_in_hand(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.members.results.PIECE_BYTES", 10_000)
    scene.line.breaks_after.append(5)
    with pytest.raises(EnrolmentError, match="the line broke"):
        scene.receive()
    first = list(scene.line.asked)
    scene.line.breaks_after.clear()
    scene.receive()
    assert len(kept_runs(scene.state)) == 1
    assert set(first[:5]).isdisjoint(scene.line.asked[len(first) :])


def test_a_call_ends_when_its_time_is_up_and_the_next_goes_on(scene: Scene) -> None:
    receiver = scene.receiver()
    for _ in range(20):
        receiver.advance(scene.identity, -1.0)
    assert kept_runs(scene.state) == ()
    receiver.advance(scene.identity, LONG)
    assert len(kept_runs(scene.state)) == 1


def test_a_run_that_this_hospitals_chain_does_not_know_is_not_fetched(scene: Scene) -> None:
    chain = scene.state / AUDIT_FILE
    chain.write_bytes(chain.read_bytes().split(b"\n")[0] + b"\n")
    scene.receive()
    assert scene.line.asked == []


def test_a_hospital_that_was_not_on_the_roster_is_offered_nothing(scene: Scene) -> None:
    finished = FinishedRuns(scene.run.state, scene.run.authority)
    assert finished.of("st-mary") == {}
    with pytest.raises(EnrolmentError, match="for this hospital"):
        finished.piece("st-mary", RUN_ID, DELIVERY_FILE, 0)


@pytest.mark.parametrize("name", ["../../tls.key", "checkpoints", "ca.pem", "/etc/passwd"])
def test_no_file_is_handed_over_that_is_not_signed(scene: Scene, name: str) -> None:
    with pytest.raises(EnrolmentError, match="delivery names"):
        FinishedRuns(scene.run.state, scene.run.authority).piece(NAMES[0], RUN_ID, name, 0)


def facts_of(card: ModelCard) -> ModelFacts:
    return ModelFacts.model_validate(card.model_dump(include=set(ModelFacts.model_fields)))


def _another_model(scene: Scene) -> None:
    """Be a server that signs a model which no round made."""
    model, card = load_model(scene.run.folder)
    save_model(scene.run.folder, model + 1, facts_of(card))
    scene.sign_again()


def _another_model_and_hash(scene: Scene) -> None:
    model, card = load_model(scene.run.folder)
    save_model(scene.run.folder, model + 1, facts_of(card))
    scene.sign_again(hash_model(model + 1).hex())


def _a_file_that_was_not_signed(scene: Scene) -> None:
    events = scene.run.folder / EVENTS_FILE
    events.write_bytes(b" " * events.stat().st_size)


def _events_that_the_chain_does_not_know(scene: Scene) -> None:
    events = scene.run.folder / EVENTS_FILE
    events.write_bytes(events.read_bytes().replace(b"0.75", b"0.99"))
    scene.sign_again()


def _more_than_a_hospital_reads(scene: Scene) -> None:
    before = read_delivery((scene.run.folder / DELIVERY_FILE).read_bytes(), scene.run.authority)
    huge = FileFact(length_bytes=MAXIMUM_READ_WHOLE_BYTES["model.json"] + 1, sha256="ab" * 32)
    scene.sign_files({**before.files, "model.json": huge})


def _a_page_with_a_script(scene: Scene) -> None:
    page = scene.run.folder / "report.html"
    page.write_text("<script>alert(1)</script>")
    before = read_delivery((scene.run.folder / DELIVERY_FILE).read_bytes(), scene.run.authority)
    scene.sign_files({**before.files, page.name: file_fact(page)})


def _a_model_larger_than_its_run_says(scene: Scene) -> None:
    path = scene.run.folder / MODEL_FILES[0]
    with path.open("ab") as file:
        file.truncate(path.stat().st_size + 8 * 2**20)
    scene.sign_again()


def _a_chain_cut_short(scene: Scene) -> None:
    chain = scene.run.folder / AUDIT_FILE
    lines = chain.read_bytes().split(b"\n")
    chain.write_bytes(b"\n".join(lines[:3]) + b"\n")
    scene.sign_again()


@pytest.mark.parametrize(
    ("lie", "found"),
    [
        (_another_model, "must hold the model with which the run ended"),
        (_another_model_and_hash, "end the run with the model that was signed"),
        (_a_file_that_was_not_signed, "must be the file that the server signed"),
        (_a_chain_cut_short, "must end the run"),
        (_events_that_the_chain_does_not_know, "events.jsonl: must hold what the server's chain has the hash of"),
        (_more_than_a_hospital_reads, "model.json must be at most 4194304 bytes long"),
        (_a_page_with_a_script, "events.jsonl and nothing else"),
        (_a_model_larger_than_its_run_says, "model.safetensors: must have at most"),
    ],
)
def test_what_does_not_verify_is_refused_once_with_the_reason(
    scene: Scene, lie: Callable[[Scene], None], found: str
) -> None:
    lie(scene)
    scene.receive()
    assert kept_runs(scene.state) == ()
    assert found in refused_runs(scene.state)[RUN_ID].reason
    asked = len(scene.line.asked)
    scene.receive()
    assert len(scene.line.asked) == asked


@pytest.mark.parametrize(
    ("lie", "named"),
    [
        ({"classes": ("pneumonia", "normal")}, "classes"),
        ({"positive": ("normal",)}, "positive"),
        ({"threshold": 0.01}, "threshold"),
        ({"temperature": 7.0}, "temperature"),
        ({"prevalence": 0.99}, "prevalence"),
        ({"task": "tuberculosis"}, "task"),
        ({"data_set": "a large data set"}, "data_set"),
        ({"privacy": {"epsilon": 0.01}}, "privacy"),
        ({"caveats": ("approved by the authorities",)}, "caveats"),
        ({"image_size": 64}, "image_size"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_row_7_a_model_that_is_described_otherwise_than_the_run_made_it_is_refused(
    scene: Scene, lie: dict[str, object], named: str
) -> None:
    path = scene.run.folder / MODEL_FILES[1]
    card = {**json.loads(path.read_bytes()), **lie}
    path.write_text(json.dumps(card, indent=2) + "\n")
    scene.sign_again()
    scene.receive()
    assert kept_runs(scene.state) == ()
    assert f"model.json: {named} must be" in refused_runs(scene.state)[RUN_ID].reason


def test_of_a_long_section_the_message_shows_what_differs(scene: Scene) -> None:
    path = scene.run.folder / MODEL_FILES[1]
    card = json.loads(path.read_bytes())
    path.write_text(json.dumps({**card, "privacy": {**card["privacy"], "epsilon": 0.01}}, indent=2) + "\n")
    scene.sign_again()
    scene.receive()
    reason = f"model.json: privacy must be {{'epsilon': {EPSILON}}} by the chains, got {{'epsilon': 0.01}}"
    assert refused_runs(scene.state)[RUN_ID].reason == reason


def test_a_card_of_another_file_of_tensors_is_refused(scene: Scene) -> None:
    path = scene.run.folder / MODEL_FILES[1]
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "sha256": 64 * "0"}))
    scene.sign_again()
    scene.receive()
    assert "got the SHA-256 of another" in refused_runs(scene.state)[RUN_ID].reason


def test_a_hospital_gets_no_page_of_the_server_and_makes_its_own(scene: Scene, tmp_path: Path) -> None:
    assert (scene.run.folder / "report.html").exists()
    scene.receive()
    folder = folder_of(scene.state, RUN_ID)
    assert {path.name for path in folder.iterdir()} == {*NEEDED_FILES, DELIVERY_FILE, "ca.pem", "received.json"}
    made = write_report([RunFacts.read(folder)], tmp_path / "own")
    assert {"report.html", "model_card.md"} <= {path.name for path in made}


def _speaking(event: RunStarted) -> Event:
    """Return a start whose sentences, and the one setting that no hospital agrees to, are the server's own."""
    words = "```\n\n![nobody can learn anything](https://evil.example/seen.png)\n"
    data = event.config.data.model_copy(update={"source": words})
    config = event.config.model_copy(update={"data": data})
    return event.model_copy(update={"config": config, "evaluation_plan": (words,), "claims": (words,)})


def test_a_report_that_a_hospital_makes_speaks_no_sentence_of_the_servers(scene: Scene, tmp_path: Path) -> None:
    _events_with(scene, _speaking)
    scene.receive()
    assert refused_runs(scene.state) == {}
    write_report([RunFacts.read(folder_of(scene.state, RUN_ID))], tmp_path / "own")
    page = (tmp_path / "own" / "report.html").read_text()
    assert "content=\"default-src 'none'; img-src data:;" in page
    assert '<img src="https' not in page
    assert page.count("evil.example") == 1  # In the command that would repeat the run, on its one line.


def test_a_run_that_has_the_digits_of_a_kept_one_neither_replaces_nor_passes_for_it(scene: Scene) -> None:
    scene.receive()
    (kept,) = kept_runs(scene.state)
    other = RUN_ID[:12] + 20 * "f"
    chain = AuditChain(scene.state / AUDIT_FILE, Writer(scene.identity.certificate, scene.identity.key))
    chain.append(JoinedRun(run_id=other, config_hash="00" * 32))
    chain.close()
    asked = len(scene.line.asked)
    scene.line.also[other] = bytes(32)
    scene.receive()
    assert kept_runs(scene.state) == (kept,)
    assert f"got those of run {RUN_ID}, which is kept here" in refused_runs(scene.state)[other].reason
    assert len(scene.line.asked) == asked


def test_two_runs_with_the_same_digits_on_their_way_do_not_touch_each_other(scene: Scene) -> None:
    other = RUN_ID[:12] + 20 * "f"
    part = scene.state / RUNS_FOLDER / f".{other}.part"
    write_private(part / "model.safetensors", b"half of another")
    scene.receive()
    assert len(kept_runs(scene.state)) == 1
    assert (part / "model.safetensors").read_bytes() == b"half of another"


def test_a_sum_that_this_hospitals_own_chain_lacks_is_found(scene: Scene) -> None:
    own = scene.state / AUDIT_FILE
    own.write_bytes(b"\n".join(own.read_bytes().split(b"\n")[:3]) + b"\n")
    scene.receive()
    assert "for which it has sent no vector" in refused_runs(scene.state)[RUN_ID].reason


def test_terms_that_this_hospital_agreed_to_and_the_server_lacks_are_found(scene: Scene) -> None:
    chain = AuditChain(scene.state / AUDIT_FILE, Writer(scene.identity.certificate, scene.identity.key))
    chain.append(JoinedRun(run_id=RUN_ID, config_hash="00" * 32))
    chain.close()
    scene.receive()
    assert "agreed to terms that the server lacks" in refused_runs(scene.state)[RUN_ID].reason


def test_a_round_that_was_asked_for_otherwise_than_the_server_records_is_found(scene: Scene) -> None:
    own = scene.state / AUDIT_FILE
    entries = read_chain(own.read_bytes(), AUDIT_FILE, scene.run.authority).entries
    own.unlink()
    chain = AuditChain(own, Writer(scene.identity.certificate, scene.identity.key))
    for entry in entries[1:]:
        body = entry.body
        assert not isinstance(body, ContributedUnbound)
        if isinstance(body, Contributed):
            body = body.model_copy(update={"train": not body.train})
        chain.append(body)
    chain.close()
    scene.receive()
    assert "was asked for something else in round" in refused_runs(scene.state)[RUN_ID].reason


def test_a_run_that_goes_on_replaces_its_model_and_another_past_does_not(scene: Scene) -> None:
    scene.receive()
    before = kept_runs(scene.state)[0].delivery
    scene.sign_again()
    scene.receive()
    (kept,) = kept_runs(scene.state)
    assert kept.delivery != before
    folder = folder_of(scene.state, RUN_ID)
    write_private(folder / AUDIT_FILE, b"another past\n")
    scene.sign_again()
    scene.receive()
    assert kept_runs(scene.state) == (kept,)
    assert "must go on from the one that this hospital keeps" in refused_runs(scene.state)[RUN_ID].reason


def test_what_was_refused_is_no_longer_shown_once_a_later_delivery_holds(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    events = scene.run.folder / EVENTS_FILE
    whole = events.read_bytes()
    events.write_bytes(whole.replace(b"0.75", b"0.99"))
    scene.sign_again()
    scene.receive()
    assert RUN_ID in refused_runs(scene.state)
    listed = ["list", "--state", str(scene.state)]
    assert model_command.main(["model", *listed]) == 0
    assert f"REFUSED {RUN_ID[:12]}" in capsys.readouterr().out
    events.write_bytes(whole)
    scene.sign_again()
    scene.receive()
    assert refused_runs(scene.state) == {}
    assert model_command.main(["model", *listed]) == 0
    told = capsys.readouterr().out
    assert RUN_ID[:12] in told
    assert "REFUSED" not in told


def test_a_server_that_offers_again_what_is_kept_is_no_longer_shown_as_refused(scene: Scene) -> None:
    scene.receive()
    good = read_delivery((scene.run.folder / DELIVERY_FILE).read_bytes(), scene.run.authority)
    _another_model(scene)
    scene.receive()
    assert RUN_ID in refused_runs(scene.state)
    scene.line.signed.append(good)
    scene.receive()
    assert refused_runs(scene.state) == {}
    assert [kept.delivery for kept in kept_runs(scene.state)] == [good.digest()]


def test_an_exchange_that_a_kill_cut_short_is_undone(scene: Scene) -> None:
    scene.receive()
    place = folder_of(scene.state, RUN_ID)
    place.rename(place.with_name(f".{place.name}.old"))
    assert kept_runs(scene.state) == ()
    scene.receiver()
    assert len(kept_runs(scene.state)) == 1


def test_a_full_disk_leaves_the_ledger_room(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.kept_runs._DISK_RESERVE_BYTES", 2**60)
    with pytest.raises(RunError, match="free space"):
        scene.receive()
    assert kept_runs(scene.state) == ()


def test_a_person_sees_lists_and_finds_the_model(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    state = ("--state", str(scene.state))
    assert model_command.main(["model", "list", *state]) == 0
    assert "no model yet" in capsys.readouterr().out
    scene.receive()
    assert model_command.main(["model", "list", *state]) == 0
    assert RUN_ID[:12] in capsys.readouterr().out
    assert model_command.main(["model", "show", RUN_ID[:5], *state]) == 0
    assert "the final model was here to be measured" in capsys.readouterr().out
    assert model_command.main(["model", "path", *state]) == 0
    assert Path(capsys.readouterr().out.strip()) == scene.state / RUNS_FOLDER / RUN_ID[:12]
    with pytest.raises(RunError, match="must be how one of this hospital's runs begins"):
        model_command.main(["model", "path", "ff", *state])


def test_a_damaged_list_of_refusals_is_begun_anew(scene: Scene) -> None:
    write_private(scene.state / RUNS_FOLDER / "refused.json", json.dumps({"version": 7}).encode())
    assert refused_runs(scene.state) == {}


Written = list[Body]
"""What a server's chain holds, without who writes it."""


def _told_anew(scene: Scene, lie: Callable[[Written], Written]) -> None:
    """Be a server that writes another chain than the one it kept during the run, and signs it."""
    path = scene.run.folder / AUDIT_FILE
    chain = read_chain(path.read_bytes(), AUDIT_FILE, scene.run.authority)
    written: Written = [
        entry.body for entry in chain.entries if not isinstance(entry.body, Identified | ContributedUnbound)
    ]
    path.unlink()
    anew = AuditChain(path, scene.run.writer)
    for body in lie(written):
        anew.append(body)
    anew.close()
    scene.sign_again()


def _place_of(written: Written, kind: type[Body]) -> int:
    return next(place for place, body in enumerate(written) if isinstance(body, kind))


def _goes_on(written: Written, change: Callable[[RunDescription], RunDescription]) -> Written:
    """Return the chain with a restart after step 1, under a description of this function's making."""
    began, place = written[0], _place_of(written, Stepped)
    stepped = written[place]
    assert isinstance(began, Began)
    assert isinstance(stepped, Stepped)
    changed = change(RunDescription.from_json(began.description.encode())).canonical_json().decode()
    update = {"description": changed, "step": 1, "model_hash": stepped.model_hash}
    return [*written[: place + 1], began.model_copy(update=update), *written[place + 1 :]]


def _without_one(description: RunDescription) -> RunDescription:
    roster = {name: certificate for name, certificate in description.roster.items() if name != NAMES[-1]}
    return description.model_copy(update={"roster": roster})


@pytest.mark.parametrize("change", [lambda same: same, _without_one], ids=["the same", "members"])
def test_a_run_that_was_interrupted_or_lost_a_member_is_received(
    scene: Scene, change: Callable[[RunDescription], RunDescription]
) -> None:
    _told_anew(scene, lambda written: _goes_on(written, change))
    scene.receive()
    assert refused_runs(scene.state) == {}
    assert len(kept_runs(scene.state)) == 1


def test_the_model_of_a_run_stopped_before_its_last_step_is_measured_bears_the_epsilon_of_that_step(
    tmp_path: Path,
) -> None:
    run = finished_run(tmp_path / "server")
    goes_on_for_one_step(run, EPSILON + 1)
    run.write_results()
    identity = run.hospital(tmp_path / "hospital")
    line = Line("localhost:1", run.authority, finished=FinishedRuns(run.state, run.authority))
    scene = Scene(run, tmp_path / "hospital", identity, line)
    scene.receive()
    assert refused_runs(scene.state) == {}
    (kept,) = kept_runs(scene.state)
    assert kept.steps == 3
    assert facts_of(load_model(folder_of(scene.state, RUN_ID))[1]).privacy["epsilon"] == EPSILON + 1


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("privacy", {"target_epsilon": 7.5}),
        ("training", {"sample_rate": 0.5}),
        ("evaluation", {"repeats": 3}),
        ("aggregation", {"max_weight": 7}),
    ],
)
def test_terms_that_change_in_the_middle_of_a_run_are_found(
    scene: Scene, section: str, change: dict[str, object]
) -> None:
    def changed(description: RunDescription) -> RunDescription:
        made = getattr(description, section).model_copy(update=change)
        assert made != getattr(description, section)
        return description.model_copy(update={section: made})

    _told_anew(scene, lambda written: _goes_on(written, changed))
    scene.receive()
    assert "a run must go on under its own terms" in refused_runs(scene.state)[RUN_ID].reason


def _a_sum_twice(written: Written) -> Written:
    place = next(place for place, body in enumerate(written) if isinstance(body, Summed) and not body.train)
    return [*written[:place], written[place], *written[place:]]


def test_a_sum_that_is_recorded_twice_is_found(scene: Scene) -> None:
    _told_anew(scene, _a_sum_twice)
    scene.receive()
    assert "its round gave a sum before" in refused_runs(scene.state)[RUN_ID].reason


@pytest.fixture(scope="module")
def finished_with_a_mean(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    config = replace(
        Config(), model={"name": "scattering_linear"}, privacy={"mode": "local", "mean_share": 0.1, "accountant": "rdp"}
    )
    run = finished_run(tmp_path_factory.mktemp("mean") / "server", config)
    run.write_results()
    return run


@pytest.fixture
def with_a_mean(finished_with_a_mean: FinishedRun, tmp_path: Path) -> Scene:
    return _scene_of(finished_with_a_mean, tmp_path)


def test_a_run_that_told_a_mean_of_features_is_received_whole(with_a_mean: Scene) -> None:
    with_a_mean.receive()
    assert refused_runs(with_a_mean.state) == {}
    (kept,) = kept_runs(with_a_mean.state)
    assert (kept.steps, kept.rounds, kept.has_seen_model) == (2, 4, True)


def _before_it_kept_the_centre(written: Written) -> Written:
    """Return what a server leaves that was killed between the chain's line and its checkpoint, and asked again."""
    place = _place_of(written, Centred)
    asked, centre = written[place - 1], written[place]
    assert isinstance(asked, Summed)
    again = asked.model_copy(update={"round_number": 99, "survivors": NAMES[1:]})
    other = centre.model_copy(update={"round_number": 99})
    first = centre.model_copy(update={"model_hash": "c" * 64})
    return [*written[:place], first, written[0], again, other, *written[place + 1 :]]


def test_a_server_that_was_killed_before_it_kept_the_centre_goes_on_from_the_first_model(with_a_mean: Scene) -> None:
    _told_anew(with_a_mean, _before_it_kept_the_centre)
    with_a_mean.receive()
    assert refused_runs(with_a_mean.state) == {}


def _a_centre_of_no_sum(written: Written) -> Written:
    place = _place_of(written, Centred)
    return [*written[:place], written[place].model_copy(update={"round_number": 99}), *written[place + 1 :]]


def _a_centre_after_step_one(written: Written) -> Written:
    place, step = _place_of(written, Centred), _place_of(written, Stepped)
    centre = written[place].model_copy(update={"model_hash": "c" * 64})
    return [*written[: step + 1], centre, *written[step + 1 :]]


def _a_centre_after_an_evaluation(written: Written) -> Written:
    place = _place_of(written, Centred)
    first, measured = written[0], next(body for body in reversed(written) if isinstance(body, Summed))
    assert isinstance(first, Began)
    terms = RoundTerms.decode(bytes.fromhex(measured.terms))
    terms = structs.replace(terms, model_hash=bytes.fromhex(first.model_hash))
    update = {"round_number": 99, "survivors": NAMES[1:], "model_hash": first.model_hash, "terms": terms.encode().hex()}
    centre = written[place].model_copy(update={"round_number": 99})
    return [*written[: place - 1], measured.model_copy(update=update), centre, *written[place + 1 :]]


@pytest.mark.parametrize("lie", [_a_centre_of_no_sum, _a_centre_after_step_one, _a_centre_after_an_evaluation])
def test_a_false_centre_is_found(with_a_mean: Scene, lie: Callable[[Written], Written]) -> None:
    _told_anew(with_a_mean, lie)
    with_a_mean.receive()
    assert "a centre must follow the sum that gave it, before step 1" in refused_runs(with_a_mean.state)[RUN_ID].reason


def _of_another_run(event: RunStarted) -> Event:
    return event.model_copy(update={"run_id": "f" * 32})


def _more_private(event: RunStarted) -> Event:
    privacy = event.config.privacy.model_copy(update={"target_epsilon": 0.1})
    return event.model_copy(update={"config": event.config.model_copy(update={"privacy": privacy})})


def _under_other_terms(event: RunStarted) -> Event:
    return event.model_copy(update={"config_hash": "f" * 64})


def _with_more_hospitals(event: RunStarted) -> Event:
    return event.model_copy(update={"hospitals": (*event.hospitals, "st-nobody")})


def _of_other_data(event: RunStarted) -> Event:
    return event.model_copy(update={"data_set": "a large data set"})


def _of_other_classes(event: RunStarted) -> Event:
    classes = event.terms.classes[::-1]
    return event.model_copy(update={"terms": event.terms.model_copy(update={"classes": classes})})


def _cheaper(event: RoundDone) -> Event:
    return event.model_copy(update={"epsilon_spent": dict.fromkeys(event.epsilon_spent, 0.01)})


def _cheaper_at_most(event: RoundDone) -> Event:
    return event.model_copy(update={"epsilon": 0.01})


def _of_a_round_without_a_sum(event: RoundDone) -> Event:
    return event.model_copy(update={"round": 77})


def _over_more(event: RoundDone) -> Event:
    return event.model_copy(update={"hospitals": 64})


def _exact(event: Evaluated) -> Event:
    return event.model_copy(update={"exact": True})


def _longer(event: RunFinished) -> Event:
    return event.model_copy(update={"rounds_done": 1000})


_LIES: tuple[tuple[Callable[[Any], Event], str], ...] = (
    (_of_another_run, "run_id"),
    (_more_private, "config.privacy"),
    (_under_other_terms, "config_hash"),
    (_with_more_hospitals, "hospitals"),
    (_of_other_data, "data_set"),
    (_of_other_classes, "terms"),
    (_cheaper, "epsilon_spent"),
    (_cheaper_at_most, "epsilon"),
    (_of_a_round_without_a_sum, "round"),
    (_over_more, "hospitals"),
    (_exact, "exact"),
    (_longer, "rounds_done"),
)


def _events_with(scene: Scene, lie: Callable[[Any], Event]) -> None:
    """Be a server whose events lie, in a chain that has their hash."""
    path = scene.run.folder / EVENTS_FILE
    asked = next(iter(inspect.signature(lie, eval_str=True).parameters.values())).annotation
    events = [event for line in path.read_bytes().splitlines() if (event := parse_event(line)) is not None]
    events = [lie(event) if isinstance(event, asked) else event for event in events]
    content = "".join(event.to_line() for event in events).encode()
    path.write_bytes(content)
    told = {"length_bytes": len(content), "events_hash": hashlib.sha256(content).hexdigest()}
    _told_anew(
        scene,
        lambda written: [body.model_copy(update=told) if isinstance(body, Told) else body for body in written],
    )


@pytest.mark.parametrize(("lie", "named"), _LIES)
def test_events_that_say_something_else_than_the_chain_are_found(
    scene: Scene, lie: Callable[[Any], Event], named: str
) -> None:
    _events_with(scene, lie)
    scene.receive()
    reason = refused_runs(scene.state)[RUN_ID].reason
    assert reason.startswith(f"{EVENTS_FILE}, line ")
    assert f": {named} must be" in reason


def test_a_server_that_holds_the_key_and_does_not_admit_it_in_the_model_is_found(scene: Scene) -> None:
    _events_with(scene, _holds_the_key)
    scene.receive()
    assert "model.json: caveats must be" in refused_runs(scene.state)[RUN_ID].reason


def _holds_the_key(event: RunStarted) -> Event:
    return event.model_copy(update={"authority_on_server": True})


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "must say how the run began"),
        (b'{"kind":"round"}\n', "line 1: an event must hold to its format"),
        (b" " * (told_run.LONGEST_LINE_BYTES + 1), "line 1: must have at most"),
    ],
    ids=["nothing", "no event", "one endless line"],
)
def test_events_that_cannot_be_read_are_refused(scene: Scene, content: bytes, named: str) -> None:
    (scene.run.folder / EVENTS_FILE).write_bytes(content)
    with pytest.raises(AuditError, match=named):
        told_run.check_told(scene.run.folder / EVENTS_FILE, told_run.Chained({}, "", {}, None))
