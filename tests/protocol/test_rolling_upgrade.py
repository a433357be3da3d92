"""Hospitals are replaced by the next release, one at a time, while a run goes on and messages are lost."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from client.agent import HospitalAgent
from common.audit.chain import AUDIT_FILE
from common.config import PROTOCOL_VERSION, replace
from common.files import write_private
from common.identity.certificates import certificate_pem
from common.run.messages import Request, phase_of
from common.telemetry.events import COMPLETED, AttackRefused, Refusal, RoundDone
from deploy.audit.verify import verify
from deploy.experiment.consortium import InProcessConsortium, Loss
from tests.support.agent_of_another_version import NEXT, AgentOfAnotherVersion, next_release
from tests.support.small_consortium import CONFIG, HOSPITALS, POLICY, Dealt, Small

ROUNDS = 20

UPGRADES = {
    "hospital-1": (3, "masked_input", Loss.OF_REQUEST),  # gone before it is asked
    "hospital-2": (7, "masked_input", Loss.OF_REPLY),    # has booked the round, and is gone before its vector is out
    "hospital-3": (11, "full_unmasking", Loss.OF_REQUEST),
    "hospital-4": (15, "full_unmasking", Loss.OF_REPLY),
}  # fmt: skip
"""In which round and exchange each hospital ends, and what it still does; its successor is the next release."""


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return next_release(tmp_path_factory.mktemp("next-release"))


@dataclass
class Upgrading:
    """A line on which each hospital ends once, in its round; whoever takes over is of the next release."""

    small: Small
    release: Path
    ends: ExitStack
    successors: dict[str, AgentOfAnotherVersion] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)

    def __call__(self, hospital: str, request: Request) -> Loss | None:
        """See :data:`deploy.experiment.consortium.Line`."""
        for name in self.ended:
            self._replace(name)
        self.ended.clear()
        round_number, phase, loss = UPGRADES[hospital]
        due = request.round_number >= round_number and phase_of(request) == phase
        if hospital in self.successors or not due:
            return None
        self.ended.append(hospital)
        return loss

    def _replace(self, name: str) -> None:
        consortium, state = self.small.consortium, self.small.folder / name
        consortium.agents[name].close()
        consortium.restart(name)  # Its lock on the ledger and its open chain go with it.
        site = consortium.site(name)
        folders = {"state": state, "data": site.data, "cache": site.cache}
        successor = AgentOfAnotherVersion(
            self.release, consortium.identity(name), certificate_pem(consortium.authority), POLICY, folders
        )
        self.ends.callback(successor.close)
        self.successors[name] = successor
        consortium.agents[name] = cast("HospitalAgent", successor)


@pytest.fixture
def upgraded(tmp_path: Path, release: Path) -> Iterator[Upgrading]:
    dealt = Dealt.into(tmp_path / "dealt")
    config = replace(CONFIG, experiment={"rounds": ROUNDS})
    consortium = InProcessConsortium(config, dealt.sites(tmp_path), audited=True)
    small = Small(dealt, tmp_path, config, consortium)
    with ExitStack() as ends:
        line = Upgrading(small, release, ends)
        consortium.transport.line = line
        yield line


@pytest.mark.slow
def test_hospitals_are_upgraded_one_at_a_time_and_no_round_is_lost(upgraded: Upgrading, tmp_path: Path) -> None:
    small = upgraded.small
    assert small.run().train() == COMPLETED
    assert {name: agent.version for name, agent in upgraded.successors.items()} == dict.fromkeys(HOSPITALS, NEXT)
    # Each round ended with a model, and no more than the one that was just replaced was missing.
    assert [done.step for done in small.of(RoundDone)] == list(range(1, ROUNDS + 1))
    assert min(small.hospitals) >= len(HOSPITALS) - 1
    assert sum(len(HOSPITALS) - hospitals for hospitals in small.hospitals) <= 2 * len(HOSPITALS)
    assert small.of(AttackRefused) == []
    assert {refusal.code for refusal in small.of(Refusal)} <= {"run"}  # A new process has not joined yet.
    # No round is booked twice, whichever release booked it, and what is booked is what was spent.
    for name in HOSPITALS:
        rounds = [entry["round_number"] for entry in small.booked(name)]
        assert len(rounds) == len(set(rounds)) >= ROUNDS - 2
    # The chains, each written by two releases, verify together with the server's.
    upgraded.ends.close()
    write_private(tmp_path / "ca.pem", certificate_pem(small.consortium.authority))
    verdict = verify(tmp_path, [tmp_path / name / AUDIT_FILE for name in HOSPITALS], tmp_path / "ca.pem")
    assert (verdict.steps, verdict.hospitals, verdict.without_chain) == (ROUNDS, HOSPITALS, ())
    assert verdict.is_complete


def test_the_next_release_speaks_two_versions_and_this_one_its_own(release: Path) -> None:
    config = (release / "common" / "config.py").read_text()
    assert f"\nPROTOCOL_VERSION = {PROTOCOL_VERSION + 1}\n" in config
    assert f"\nOLDEST_PROTOCOL_VERSION = {PROTOCOL_VERSION}\n" in config
