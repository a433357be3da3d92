"""A year of a consortium, typed from the operator's guide while the clock goes forward: five hospitals, four runs."""

import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from client.kept_runs import kept_runs, refused_runs
from client.ledger.ledger import export
from client.ledger.place import ledger_folder
from common.audit.chain import AUDIT_FILE, read_chain
from common.audit.entries import AnsweredProposal
from common.config import PROTOCOL_VERSION, Config, replace
from common.identity.certificates import load_certificate
from common.run.proposal import RunState
from common.settings import SERVER_SETTINGS_FILE, free_port
from common.telemetry.events import EVENTS_FILE, EventFile, RoundDone, RunFinished
from server.members.certificates import REQUESTS_FOLDER
from server.members.roster import Membership
from server.members.tls import TLS_CERTIFICATE_FILE
from server.run_queue import PROPOSAL_FILE, RunQueue
from tests.support.agent_of_another_version import NEXT, next_release
from tests.support.consortium import ROOT, Consortium
from tests.support.printed import unwrapped
from tests.support.script import Script, chapters_of, filled_in
from tests.support.shifted_clock import Clock

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

GUIDE = ROOT / "docs" / "operator.md"
DAY_SECONDS = 24 * 3600
YEAR_DAYS = 360
"""The year ends today: what checks certificates outside Python goes by the machine's clock, for which they hold."""

FIRST, LATE = ("st-anne", "st-john", "st-luke", "st-mary"), "st-paul"
ALL = (*FIRST, LATE)
ROUNDS, LONG = 3, 20
HOSPITAL_HOURS, LIST_HOURS, SERVER_HOURS, LATER_SERVER_HOURS = 2160.0, 2400.0, 9600.0, 2520.0
SETTINGS = (
    f"experiment.rounds={ROUNDS}", "privacy.mode=local", "privacy.target_epsilon=3", "privacy.accountant=rdp",
    "privacy.delta=0.001", "hospital.delta=0.001", "hospital.allow_no_privacy=false",
    "hospital.stated_training_units=60", "hospital.stated_validation_units=8", "hospital.stated_test_units=8",
    "training.sample_rate=0.5", "evaluation.target_epsilon=0.5", "hospital.allow_partial_roster=true",
    "enrolment.standing_seconds=3",
)  # fmt: skip


class Year:
    """Types the guide's lines, as the organiser, at the server, or at a hospital."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.consortium = Consortium(folder, len(ALL), SETTINGS)
        self.clock = Clock(folder / "clock")
        # Whatever is started from now on goes by the clock, commands included.
        self.consortium._environment.update(self.clock.environment())
        self.script = Script(chapters_of(GUIDE, "A year"))
        self.queue = RunQueue(self.consortium.state)
        self.states = {name: folder / name for name in ALL}
        self.data = dict(zip(ALL, self.consortium.shards, strict=True))
        self.carried = folder / "organiser" / "requests"
        self.carried.mkdir(parents=True)
        self.said: list[str] = []
        self.running: tuple[str, ...] = ()
        self.server_certificates: list[bytes] = []
        self.hospital_certificates: dict[str, list[bytes]] = {name: [] for name in ALL}
        self._ports = [
            word for kind in ("fleet", "enrolment", "runtime") for word in (f"--{kind}-port", str(free_port()))
        ]
        self.settings = [word for setting in SETTINGS for word in ("--set", setting)]
        self.organise(SERVER_HOURS)

    def organise(self, server_hours: float) -> None:
        """Write the organiser's config.yaml."""
        lifetimes = {
            "hospital_certificate_hours": HOSPITAL_HOURS, "server_certificate_hours": server_hours,
            "revocations_hours": LIST_HOURS,
        }  # fmt: skip
        (self.folder / "organiser" / "config.yaml").write_bytes(replace(Config(), enrolment=lifetimes).as_yaml())

    def day(self, number: int, words: str) -> None:
        """Set the clock forward, and begin the guide's chapter of that day."""
        self.clock.set((number - YEAR_DAYS) * DAY_SECONDS)
        self.script.begin(f"day {number}: {words}")

    # What is typed where. ``again`` types the same line for somebody else.

    def organiser(self, words: str) -> str:
        """Carry what waits to the organiser, type the line there, and carry the answers back."""
        requests = self.consortium.state / REQUESTS_FOLDER
        waiting = sorted(requests.glob("*.csr")) if requests.exists() else []
        for path in waiting:
            shutil.copy(path, self.carried)
        typed = filled_in(self.script.line(f"./confide ca {words}"), {"requests": str(self.carried)})
        given = [
            each
            for word in typed[2:]
            for each in (map(str, sorted(self.carried.glob("*.csr"))) if "*" in word else [word])
        ]
        said = self.confide("ca", "--ca", str(self.folder / "organiser" / "certs"), "--config",
                             str(self.folder / "organiser" / "config.yaml"), *given)  # fmt: skip
        for path in self.carried.iterdir():
            if path.suffix != ".csr" and requests.exists():
                shutil.copy(path, requests)
            path.unlink()
        return said

    def server(self, words: str, *more: str, places: dict[str, str] | None = None) -> str:
        """Type a line at the server."""
        return self.confide(*self._at_server(words, places or {}), *more)

    def hospital(self, words: str, name: str, *more: str, run: str = "") -> str:
        """Type a line at a hospital."""
        return self.confide(*self._at_hospital(self.script.line(f"./confide {words}"), name, run), *more)

    def each_hospital(self, words: str, names: tuple[str, ...], *more: str) -> dict[str, str]:
        """Type one line at each of them."""
        line = self.script.line(f"./confide {words}")
        return {name: self.confide(*self._at_hospital(line, name, ""), *more) for name in names}

    def start_server(self) -> None:
        """Type the line that starts the server."""
        words = self._at_server("server", {"ca.pem": str(self.folder / "organiser" / "certs" / "ca.pem")})
        (self.consortium.folder / "server.out").touch()
        self.consortium.start("server", (*words, *self.consortium._settings, *self._ports))

    def end_of_piece(self) -> None:
        """Stop everybody, and remember who was running."""
        self.running = self.consortium.end()

    def go_on(self) -> None:
        """Start everybody who was running again, as an operator does after a restart of the machine."""
        self.clock.forget_processes()
        state = str(self.consortium.state)
        self.consortium.start("server", ("server", "--state", state, *self.consortium._settings, *self._ports))
        for name in self.running:
            if name != "server":
                self.consortium.start(name, ("hospital", "join", "--state", str(self.states[name])))

    def upgrade(self) -> None:
        """Let whatever is typed from now on be of the next release, which speaks one version more."""
        (release := self.folder / "next-release").mkdir()
        next_release(release, ("client", "common", "server", "deploy"))
        self.consortium.upgrade(release, self.clock.environment(release))

    def invite_and_join(self, names: tuple[str, ...]) -> None:
        """Type the two lines for each of them; they wait for the authority then."""
        invite, join = self.script.line("./confide invite"), self.script.line("./confide hospital join")
        for name in names:
            line = self.folder / f"{name}.invitation"
            places = {
                "/srv/confide": str(self.consortium.state),
                "invitation.txt": str(line),
                **dict.fromkeys(ALL, name),
            }
            self.confide(*filled_in(invite, places)[1:])
            places = {"invitation.txt": str(line), "/srv/xrays": str(self.data[name]),
                      "/srv/confide-hospital": str(self.states[name])}  # fmt: skip
            self.consortium.start(
                name, (*filled_in(join, places)[1:], *self.consortium._settings, "--runtime-port", str(free_port()))
            )
        self.until(lambda: self.waiting() >= set(names), "they must ask for their certificates")

    def start_again(self, name: str, line: str) -> None:
        """Stop a hospital, and type the line that starts it."""
        self.consortium.stop_hospital(name)
        self.consortium.start(name, self._at_hospital(line, name, ""))

    def type_elsewhere(self, words: str) -> None:
        """Type a line that is no command of Confide's."""
        places = {"/srv/confide": str(self.consortium.state), "/srv/confide.lost": str(self.folder / "server.lost"),
                  "/backup": str(self.folder / "backup")}  # fmt: skip
        (self.folder / "backup").mkdir(exist_ok=True)
        subprocess.run(filled_in(self.script.line(words), places), check=True)

    # What is waited for.

    def waiting(self) -> set[str]:
        """Return whose requests wait for the authority."""
        return {path.stem for path in (self.consortium.state / REQUESTS_FOLDER).glob("*.csr")}

    def renewed(self, names: tuple[str, ...], *, server: bool = False) -> None:
        """Type the two lines by which lists and certificates are renewed, and wait until they are used."""
        self.organiser("revoke")
        due = {*names, *(("server.members.tls",) if server else ())}
        self.until(lambda: self.waiting() >= due, f"{due} must ask for certificates")
        self.organiser("sign")
        self.have_certificates(names, server=server)

    def have_certificates(self, names: tuple[str, ...], *, server: bool = False) -> None:
        """Wait until these hospitals have certificates that were not there before."""
        for name in names:
            path, before = self.states[name] / "identity.pem", self.hospital_certificates[name]
            self.until(lambda path=path, before=before: path.exists() and path.read_bytes() not in before,
                       f"{name} must have its certificate")  # fmt: skip
            before.append(path.read_bytes())
        if server:
            path = self.consortium.state / TLS_CERTIFICATE_FILE
            self.until(lambda: path.exists() and path.read_bytes() not in self.server_certificates, "the server's too")
            self.server_certificates.append(path.read_bytes())

    def until(self, condition: object, what: str, seconds: float = 300.0) -> None:
        assert callable(condition)
        try:
            self.consortium.wait_for(condition, seconds)
        except AssertionError as error:
            raise AssertionError(f"{what}\n{error}") from None

    def status_of_all_on_the_next_release(self) -> str:
        """Wait until everybody has said the next release's version; return what the operator then reads."""
        versions = Membership(self.consortium.state).versions
        for name in ALL:
            self.until(lambda name=name: (spoken := versions.of(name)) is not None and spoken.protocol == NEXT,
                       f"{name} must say its new version")  # fmt: skip
        told = self.server("status")
        assert told.count(f"protocol version {NEXT} (Confide 9.") == 1 + len(ALL)
        assert "needs you" not in told
        return told

    def has(self, number: int, state: RunState, seconds: float = 500.0) -> None:
        """Wait until a run is in a state."""
        self.until(lambda: self.queue.find(str(number)).state is state, f"run {number} must be {state}", seconds)

    def approve(self, number: int, name: str) -> None:
        """Type the operator's answer once the proposal is there."""
        self.until(lambda: self.is_asked(name, number), f"{name} must be asked")
        self.hospital("hospital approve", name, run=self.run_id(number)[:12])

    def is_asked(self, name: str, number: int) -> bool:
        run_id = self.run_id(number)
        return (self.states[name] / "proposals" / f"{run_id}.proposal").exists()

    def run_id(self, number: int) -> str:
        return self.queue.find(str(number)).run_id

    def is_member(self, name: str) -> bool:
        return name in Membership(self.consortium.state).roster()

    def rounds(self, number: int) -> list[RoundDone]:
        events = EventFile(self.queue.folder(self.run_id(number)) / EVENTS_FILE).read_new()
        return [event for event in events if isinstance(event, RoundDone)]

    def steps(self, number: int) -> int:
        """Return with how many steps of training a run has ended, the last of which may not have been measured."""
        events = EventFile(self.queue.folder(self.run_id(number)) / EVENTS_FILE).read_new()
        return [event for event in events if isinstance(event, RunFinished)][-1].rounds_done

    def goes_home(self, number: int, names: tuple[str, ...]) -> None:
        """Wait until these hospitals keep the model with which the run has ended."""
        kept = (self.run_id(number), self.steps(number))
        for name in names:
            self.until(lambda name=name: kept in {(each.run_id, each.steps) for each in kept_runs(self.states[name])},
                       f"the model must be at {name}")  # fmt: skip

    def _at_server(self, words: str, places: dict[str, str]) -> list[str]:
        known = {"/srv/confide": str(self.consortium.state), "confide.example.org": "127.0.0.1", **places}
        return filled_in(self.script.line(f"./confide {words}"), known)[1:]

    def _at_hospital(self, line: str, name: str, run: str) -> list[str]:
        return filled_in(line, {"/srv/confide-hospital": str(self.states[name]), "RUN": run})[1:]

    def confide(self, *words: str) -> str:
        said = self.consortium.deploy(*words)
        self.said.append(f"$ confide {' '.join(words)}\n{said}")
        return unwrapped(said)


@pytest.fixture(scope="module")
def year(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Year]:
    """Return the one year that the days below are of, each in its turn.

    CONFIDE_YEAR names a folder in which it can be played in pieces, one or more days at a time: everybody is stopped
    at the end of a piece, and started again for the next.
    """
    place = os.environ.get("CONFIDE_YEAR")
    folder = tmp_path_factory.mktemp("year") if place is None else Path(place)
    kept = folder / "year.pickle"
    if kept.exists():
        played: Year = pickle.loads(kept.read_bytes())  # noqa: S301 - the piece before has written it
        played.go_on()
    else:
        folder.mkdir(exist_ok=True)
        played = Year(folder)
    try:
        yield played
    finally:
        (folder / "said.txt").write_text("\n".join(played.said))
        played.end_of_piece()
        if place is not None:
            kept.write_bytes(pickle.dumps(played))


def spent(year: Year, name: str) -> set[tuple[str, int, str]]:
    """Return the run, round and account of each line of a hospital's ledger; none is there twice."""
    entries = [entry for entry in export(ledger_folder(year.states[name]))["entries"] if entry["kind"] == "spent"]
    lines = [(entry["run_id"], entry["round_number"], entry["booking"]["account"]) for entry in entries]
    assert len(set(lines)) == len(lines)
    return set(lines)


def protocol_of(year: Year, number: int) -> int:
    """Return a run's version of the protocol, which this release's own reader may refuse."""
    proposal = json.loads((year.queue.folder(year.run_id(number)) / PROPOSAL_FILE).read_bytes())
    return int(proposal["description"]["protocol_version"])


def runs_in_ledger(year: Year, name: str) -> set[str]:
    return {run_id for run_id, _, account in spent(year, name) if account == "training"}


def test_day_0_four_hospitals_join_an_authority_that_is_elsewhere(year: Year) -> None:
    year.day(0, "the authority")
    year.organiser("make")
    year.start_server()
    year.until((year.consortium.state / SERVER_SETTINGS_FILE).exists, "the server must start")
    year.until(lambda: year.waiting() == {"server.members.tls"}, "the server must ask for its certificate")
    year.organiser("sign")
    year.have_certificates((), server=True)
    year.invite_and_join(FIRST)
    year.organiser("sign")
    year.have_certificates(FIRST)
    told = year.each_hospital("hospital status", FIRST)
    assert all("the authority's key is not on the server" in words for words in told.values())
    year.hospital("hospital policy", "st-mary")


def test_day_10_a_run_is_agreed_to_by_hand_and_by_policy_and_its_model_goes_home(year: Year) -> None:
    year.day(10, "the first run")
    assert "after this run 3.000: it fits" in year.hospital("privacy plan", "st-anne", *year.settings)
    year.server("run propose")
    year.until(lambda: year.is_asked("st-mary", 1), "st-mary must be asked")
    assert "waits for you" in year.hospital("hospital runs", "st-mary")
    year.approve(1, "st-mary")
    year.has(1, RunState.FINISHED)
    assert "st-mary agrees, by its operator" in year.server("run show")
    assert [done.hospitals for done in year.rounds(1)] == [4] * ROUNDS
    year.goes_home(1, FIRST)
    told = year.each_hospital("hospital model show", FIRST)
    assert all(year.run_id(1) in words for words in told.values())


def test_day_70_certificates_are_renewed_and_a_fifth_hospital_joins(year: Year) -> None:
    year.day(70, "certificates")
    year.renewed(FIRST)
    year.invite_and_join((LATE,))
    year.organiser("sign")
    year.have_certificates((LATE,))


def test_day_75_a_run_of_another_task_is_stopped_and_goes_on(year: Year) -> None:
    year.day(75, "the second run")
    opacity = {
        "kind": "binary", "classes": ["clear", "opaque"], "positive": ["opaque"],
        "labels": {"normal": "clear", "pneumonia": "opaque"}, "images": "chest_radiograph",
    }  # fmt: skip
    config = yaml.safe_load((year.consortium.state / "config.yaml").read_bytes())
    config["experiment"].update(task="opacity", rounds=LONG)
    (year.folder / "opacity.yaml").write_text(yaml.safe_dump({**config, "task": opacity}))
    year.server("run propose", places={"opacity.yaml": str(year.folder / "opacity.yaml")})
    year.approve(2, "st-mary")
    year.until(lambda: len(year.rounds(2)) >= 2, "the second run must train", 500)
    year.server("run stop")
    year.has(2, RunState.STOPPED)
    done = len(year.rounds(2))
    assert 2 <= done < LONG
    assert f"stopped {done} of {LONG} opacity" in year.server("run list")
    year.goes_home(2, ALL)
    year.server("run resume")
    year.has(2, RunState.FINISHED)
    assert [each.step for each in year.rounds(2)] == list(range(1, LONG + 1))
    assert year.rounds(2)[-1].hospitals == len(ALL)
    year.goes_home(2, ALL)
    told = year.each_hospital("hospital ledger show", ALL, *year.settings)
    assert all(year.run_id(2)[:8] in words for words in told.values())
    assert [year.run_id(1)[:8] in told[name] for name in ALL] == [True] * 4 + [False]


def test_day_145_a_run_is_declined_a_member_revoked_and_the_server_comes_back_from_its_backup(year: Year) -> None:
    year.day(145, "certificates again")
    year.renewed(ALL)
    year.server("run propose")
    year.until(lambda: year.is_asked("st-mary", 3), "st-mary must be asked")
    year.hospital("hospital decline", "st-mary", run=year.run_id(3)[:12])
    year.has(3, RunState.DECLINED)
    assert "declines, by its operator: later" in year.server("run show")
    year.consortium.stop_hospital("server")
    year.type_elsewhere("cp")
    year.start_server()
    year.consortium.may_end("st-luke")
    year.server("revoke")
    year.organiser("revoke")
    year.until(lambda: not year.is_member("st-luke"), "st-luke must be off the roster")
    year.until(lambda: year.consortium.ended("st-luke") is not None, "the revoked hospital must end")
    year.consortium.stop_hospital("server")
    year.type_elsewhere("mv")
    year.type_elsewhere("cp")
    assert year.is_member("st-luke")
    year.start_server()
    year.server("revoke")
    year.organiser("revoke")
    year.until(lambda: not year.is_member("st-luke"), "st-luke must be off it again")
    told = year.server("status")
    assert "needs you" not in told
    assert "member st-luke" not in told
    assert f"run 3 ({year.run_id(3)[:12]}) is declined" in told


def test_day_215_the_member_is_taken_back_with_its_ledger_and_everybody_starts_anew(year: Year) -> None:
    year.day(215, "st-luke is taken back")
    year.renewed(tuple(name for name in ALL if name != "st-luke"))
    year.states["st-luke"] = year.folder / "st-luke-again"
    year.invite_and_join(("st-luke",))
    year.organiser("sign")
    year.have_certificates(("st-luke",))
    year.upgrade()
    year.consortium.stop_hospital("server")
    year.start_server()
    line = year.script.line("./confide hospital join")
    for name in ALL:
        year.start_again(name, line)
    year.status_of_all_on_the_next_release()


def test_day_280_a_run_trains_without_the_one_whose_budget_is_reached(year: Year) -> None:
    year.day(280, "certificates, the server's too")
    year.organise(LATER_SERVER_HOURS)
    year.renewed(ALL, server=True)
    assert "epsilon_budget 4.5" in year.hospital("hospital policy", "st-john")
    year.server("run propose")
    year.approve(4, "st-mary")
    year.has(4, RunState.FINISHED)
    assert "st-john declines, by its policy" in year.server("run show")
    assert [protocol_of(year, number) for number in (1, 2, 4)] == [PROTOCOL_VERSION, PROTOCOL_VERSION, NEXT]
    assert [done.hospitals for done in year.rounds(4)] == [4] * ROUNDS
    year.goes_home(4, tuple(name for name in ALL if name != "st-john"))


def test_day_352_every_chain_every_ledger_and_every_model_agrees(year: Year) -> None:
    year.day(352, "certificates; everything is verified")
    year.renewed(ALL, server=True)
    assert "needs you" not in year.server("status")
    everything_agrees(year, {number: year.run_id(number) for number in (1, 2, 4)})
    year.script.end()


def everything_agrees(year: Year, finished: dict[int, str]) -> None:
    """Check every chain, every ledger and every model, with the commands of the last day."""
    authority = load_certificate(year.consortium.state / "ca.pem")
    line = year.script.line("./confide audit verify")
    rosters = {1: set(FIRST), 2: set(ALL), 4: set(ALL) - {"st-john"}}
    for number, run_id in finished.items():
        chains = [word for name in sorted(rosters[number]) for word in ("--chain", str(chain_of(year, name, run_id)))]
        verdict = year.confide(*filled_in(line, {"/srv/confide/runs/RUN": str(year.queue.folder(run_id))})[1:], *chains)
        assert "the one the rounds produced" in verdict
        assert f"hospitals {', '.join(sorted(rosters[number]))}: each chain agrees" in verdict
        events = EventFile(year.queue.folder(run_id) / EVENTS_FILE).read_new()
        assert sum(isinstance(event, RunFinished) for event in events) == (2 if number == 2 else 1)
    year.each_hospital("hospital ledger verify", ALL)
    year.each_hospital("hospital model list", ALL)
    first, second, fourth = finished.values()
    # st-luke has one ledger through both memberships, since its images are the same.
    assert {name: runs_in_ledger(year, name) for name in ALL} == {
        "st-anne": {first, second, fourth}, "st-john": {first, second}, "st-luke": {first, second, fourth},
        "st-mary": {first, second, fourth}, LATE: {second, fourth},
    }  # fmt: skip
    for state in (*year.states.values(), year.folder / "st-luke"):
        assert refused_runs(state) == {}
        chain = read_chain((state / AUDIT_FILE).read_bytes(), state.name, authority)
        answered = [entry.body.run_id for entry in chain.entries if isinstance(entry.body, AnsweredProposal)]
        assert len(set(answered)) == len(answered)
    assert len(year.server_certificates) == 3
    assert all(len(set(found)) >= 3 for found in year.hospital_certificates.values())


def chain_of(year: Year, name: str, run_id: str) -> Path:
    """Return the chain that a hospital wrote in a run: st-luke has one of each membership."""
    places = [year.states[name], year.folder / name]
    return next(place / AUDIT_FILE for place in places if run_id.encode() in (place / AUDIT_FILE).read_bytes())
