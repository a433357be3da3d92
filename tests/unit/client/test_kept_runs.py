"""A hospital keeps a finished run that its own chain bears out, and refuses every other."""

import datetime
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from client import received_run
from client.enrolment import EnrolmentService
from client.kept_runs import RUNS_FOLDER, RunReceiver, folder_of, kept_runs, refused_runs
from common.audit.chain import AUDIT_FILE, AuditChain, read_chain
from common.audit.entries import Began, Centred, Contributed, JoinedRun, Stepped, Summed
from common.audit.parties import Writer
from common.errors import AuditError, EnrolmentError, RunError
from common.files import write_private
from common.identity.certificates import HospitalIdentity
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
from common.telemetry.events import EVENTS_FILE
from deploy.audit.verify import find_authority, find_chains, verify
from deploy.hospital import model as model_command
from deploy.results.model_file import ModelCard, load_model, save_model
from deploy.results.report import write_report
from deploy.results.report_facts import RunFacts
from server.members.results import FinishedRuns
from tests.support.audited_run import NAMES, RUN_ID
from tests.support.finished_run import FinishedRun, finished_run

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


def test_a_mean_of_features_gives_the_model_that_step_one_begins_from(scene: Scene) -> None:
    chain = read_chain((scene.run.folder / AUDIT_FILE).read_bytes(), AUDIT_FILE, scene.run.authority)
    bodies = [entry.body for entry in chain.entries]
    began = next(body for body in bodies if isinstance(body, Began))
    summed = next(body for body in bodies if isinstance(body, Summed))
    first, centre, last = began.model_hash, "c" * 64, "d" * 64

    def followed(*, centred_by: int) -> object:
        def a_sum(number: int, model: str, *, train: bool) -> Summed:
            changes = {"round_number": number, "model_hash": model, "train": train, "survivors": ()}
            return summed.model_copy(update=changes)

        written = [
            began,
            a_sum(1, first, train=False),
            Centred(run_id=RUN_ID, round_number=centred_by, model_hash=centre),
            a_sum(2, centre, train=True),
            Stepped(run_id=RUN_ID, round_number=2, step=1, model_hash=last),
        ]
        entries = [SimpleNamespace(body=body, sequence=place) for place, body in enumerate(written)]
        server, own = SimpleNamespace(entries=entries), SimpleNamespace(entries=(), party="nobody")
        return received_run._follow(server, own, RUN_ID)  # type: ignore[arg-type]

    assert getattr(followed(centred_by=1), "models", None) == {0: centre, 1: last}
    with pytest.raises(AuditError, match="must follow the sum that gave it"):
        followed(centred_by=3)
