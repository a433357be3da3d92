"""``confide hospital status``: how this hospital stands in its consortium, from what lies in its state folder."""

import datetime
from collections.abc import Iterator
from pathlib import Path

from client.agreement import RunAgreements
from client.last_standing import read_last_standing
from client.status import STATUS_FILE, HospitalStatus
from common.config import PROTOCOL_VERSION, HospitalConfig, load_config
from common.identity.certificates import (
    fingerprint,
    load_certificate,
    load_identity,
    who_holds_the_key,
)
from common.identity.members import CONTRADICTION_FILE, KeptMembers
from common.identity.revocation import Revocations
from common.provenance import confide_version, speaks
from common.run.guarantee import shown_epsilon
from common.run.words import RELATION
from common.settings import HOSPITAL_SETTINGS_FILE, HospitalSettings
from deploy.command import command, state_option
from deploy.terminal import Fact, fact_lines

EXIT_NOT_IN_ORDER = 1


@command(
    "status",
    "Show how this hospital stands in its consortium, from what lies in its state folder. The exit code is 1 when "
    "something needs a person.",
    "./confide hospital status --state /srv/confide",
)
@state_option("hospital", Path("hospital-state"))
def main(state: Path) -> int:
    """Print one line a fact; ends with 1 when something needs a person."""
    problems = tuple(problems_of(state, datetime.datetime.now(datetime.UTC)))
    for line in fact_lines((*facts_of(state), *(Fact("needs you", problem) for problem in problems))):
        print(line)
    return EXIT_NOT_IN_ORDER if problems else 0


def facts_of(state: Path) -> Iterator[Fact]:
    """Return everything that is in order, as it is printed."""
    settings = HospitalSettings.read(state / HOSPITAL_SETTINGS_FILE)
    identity, authority = load_identity(state), load_certificate(state / "ca.pem")
    yield Fact("hospital", identity.name)
    yield Fact("server", settings.fleet_address)
    yield Fact("authority", fingerprint(authority))
    yield Fact("", who_holds_the_key(authority))
    members = KeptMembers(state, authority).newest()
    if members is not None:
        yield Fact("members", f"list {members.number}: {len(members.members)} hospitals")
    yield Fact("certificate", f"until {_time(identity.certificate.not_valid_after_utc)}, renewed by itself")
    newest = Revocations(state, authority).newest()
    if newest is not None:
        yield Fact("revocations", f"list {newest.number}, good until {_time(newest.next_update)}")
    yield from _of_the_server(state)
    yield from data_and_privacy(HospitalStatus.read(state / STATUS_FILE), load_config(settings.config).hospital)


def _of_the_server(state: Path) -> Iterator[Fact]:
    """Return what the server said last, and what this hospital has answered."""
    last = read_last_standing(state)
    if last.answered is not None:
        yield Fact("last answer", _time(datetime.datetime.fromtimestamp(last.answered, datetime.UTC)))
    if last.protocol is not None:
        here = speaks(PROTOCOL_VERSION, confide_version())
        yield Fact("versions", f"server {speaks(last.protocol, last.software)}; this hospital {here}")
    for run_id, standing in last.runs.items():
        yield Fact("run", f"{run_id[:12]} is {standing}; {_answered(state, run_id)}")


def _answered(state: Path, run_id: str) -> str:
    answer = RunAgreements(state).answer_to(run_id)
    if answer is None:
        return "this hospital has not answered: ./confide hospital runs"
    return f"this hospital {'agrees' if answer.agreed else 'has declined'}, by its {answer.by}"


def data_and_privacy(status: HospitalStatus | None, policy: HospitalConfig) -> Iterator[Fact]:
    """Return what this hospital states about its data, what its records have cost so far, and what its agent noted."""
    of_each = f" (of each class {policy.stated_units_per_class})" if policy.stated_units_per_class else ""
    yield Fact(
        "states",
        f"{policy.stated_training_units} {policy.unit.value}s to train on{of_each}, "
        f"{policy.stated_validation_units} validation, {policy.stated_test_units} test; whoever takes part in a run "
        "learns these numbers",
    )
    if status is None:
        return
    if status.run_id is not None:
        yield Fact("took part", f"in run {status.run_id[:12]}, last in round {status.round}")
    for code, count in sorted(status.refusals.items()):
        yield Fact("refused", f"{count} requests: {code}")
    counted = f", by the {status.accountant.upper()} accountant" if status.accountant else ""
    meaning = f"at δ={policy.delta:g} for each {policy.unit.value} ({RELATION}){counted}"
    spent = shown_epsilon(status.epsilon_spent)
    yield Fact("privacy", f"training: ε {spent} of {policy.epsilon_budget:g} {meaning}")
    for part, of_part in sorted(status.evaluation_epsilon_spent.items()):
        yield Fact("", f"{part}: ε {shown_epsilon(of_part)} of {policy.evaluation_epsilon_budget:g}, likewise")
    for note in status.notes:
        yield Fact("note", note)


def problems_of(state: Path, now: datetime.datetime) -> Iterator[str]:
    """Return what needs a person."""
    identity = load_identity(state)
    newest = Revocations(state, load_certificate(state / "ca.pem")).newest()
    if newest is not None and identity.certificate.serial_number in newest.revoked:
        yield "the consortium's authority has revoked this hospital"
    if (state / CONTRADICTION_FILE).exists():
        yield f"the consortium's authority has signed two member lists of one number, see {CONTRADICTION_FILE}"
    if newest is not None and now > newest.next_update:
        yield "the revocation list is too old to train by; is the server reachable, and this machine's clock right?"
    if now > identity.certificate.not_valid_after_utc:
        yield "the certificate has expired; it is renewed as soon as the server can be reached"
    problem = read_last_standing(state).problem
    if problem is not None:
        yield problem


def _time(when: datetime.datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC"
