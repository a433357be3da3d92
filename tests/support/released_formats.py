"""One example of everything that lies on a disk or travels between releases, in the encoding of this release.

``python -m tests.support.released_formats`` writes them into ``tests/vectors/formats/VERSION``, once for each release;
afterwards the bytes never change. A later release keeps the folder and its readers.
"""

import sys
from pathlib import Path
from typing import Any

import msgspec

from common.audit import entries
from common.canonical import canonical_json
from common.config import Config, RunDescription
from common.identity import enrolment
from common.identity.invitation import TOKEN_BYTES
from common.provenance import confide_version
from common.run import messages
from common.run.basis import Basis, Evidence
from common.run.delivery import NEEDED_FILES, Delivery, FileFact
from common.run.proposal import Proposal, RunState
from common.run.round_terms import ProvedTerms, Purpose, RoundTerms
from common.run.terms import describe
from server.members.versions import SpokenVersions
from server.run_queue import KeptRun

FOLDER = Path(__file__).parents[1] / "vectors" / "formats"

RUN_ID = "0123456789abcdef" * 2
HASH = "ab" * 32
NAMES = ("general", "st-anne", "st-mary")


def description() -> RunDescription:
    """Return a run's description whose certificates are words: what they hold is no part of the format."""
    roster = {name: f"the certificate of {name}" for name in NAMES}
    return describe(Config(), RUN_ID, ("normal", "pneumonia"), 1, roster, 25_842, "the member list")


def requests() -> tuple[messages.Request, ...]:
    """Return one request of each kind."""
    at: dict[str, Any] = {"run_id": RUN_ID, "round_number": 7}
    return (
        messages.KeysRequest(run_description=b"{}", round_number=7),
        messages.SharesRequest(**at, directory=b"keys"),
        messages.MaskRequest(**at, request=b"request", next_round=8),
        messages.ConsistencyRequest(**at, survivors=b"survivors", next_round=8, next_directory=b"keys"),
        messages.ProvedMaskRequest(**at, request=b"request", next_round=8, basis=b"basis"),
        messages.ProvedConsistencyRequest(
            **at, survivors=b"survivors", next_round=8, next_directory=b"keys", views=b"views"
        ),
        messages.UnmaskRequest(**at, request=b"request"),
        messages.UnmaskAllRequest(**at, request=b"request", next_round=8, next_directory=b"keys"),
        messages.DisputeRequest(**at, request=b"dispute"),
        messages.VerdictRequest(**at, opened=b"opened"),
        messages.MissedVerdictRequest(
            **at,
            terms=b"terms",
            directory=b"keys",
            cohort=("st-anne", "st-mary"),
            view=b"view",
            views=b"views",
            dispute=b"dispute",
            opened=b"opened",
        ),
        messages.PlainRequest(**at, run_description=b"{}", terms=b"terms"),
    )


def replies() -> tuple[messages.Reply, ...]:
    """Return one reply of each kind."""
    spent = messages.EpsilonReport(spent=1.5, budget=10.0)
    return (
        messages.KeysReply(hospital="st-mary", advertised=b"keys"),
        messages.SharesReply(shares=b"shares"),
        messages.MaskReply(masked=b"masked", advertised=b"keys", epsilon=spent),
        messages.ConsistencyReply(signature=b"signature", shares=b"shares"),
        messages.ProvedMaskReply(masked=b"masked", advertised=b"keys", epsilon=spent, sealed=b"sealed"),
        messages.UnmaskReply(revealed=b"revealed", shares=None),
        messages.DisputeReply(opened=b"opened"),
        messages.VerdictReply(named={"st-anne": "length"}),
        messages.PlainReply(epsilon=None),
        messages.RefusedReply(hospital="st-mary", code="policy", reason="not before May", is_attack=False),
    )


def of_enrolment() -> tuple[enrolment.Message, ...]:
    """Return one message of enrolment of each kind."""
    asks: dict[str, Any] = {"certificate": b"certificate", "request": b"request"}
    notice = enrolment.ProposalNotice(run_id=RUN_ID, digest=HASH, answered=True, state="agreed", reason="")
    lists: dict[str, Any] = {"certificate": b"certificate", "revocations": b"revocations", "members": b"members"}
    return (
        enrolment.JoinRequest(token=bytes(TOKEN_BYTES), request=b"request", supernode=b"key"),
        enrolment.JoinedReply(**lists, fleet_port=9092),
        enrolment.WaitingReply(),
        enrolment.StandingRequest(**asks),
        enrolment.StandingReply(**lists, revoked=False, proposals=(notice,)),
        enrolment.ProposalRequest(**asks, run_id=RUN_ID),
        enrolment.ProposalReply(proposal=b"proposal"),
        enrolment.AnswerRequest(**asks, answer=b"answer"),
        enrolment.AnswerReply(),
        enrolment.ResultsRequest(**asks),
        enrolment.ResultsReply(runs={RUN_ID: bytes(32)}),
        enrolment.PieceRequest(**asks, run_id=RUN_ID, name="model.json", offset=0),
        enrolment.PieceReply(content=b"piece"),
        enrolment.LedgerRequest(**asks, statement=b"statement"),
        enrolment.LedgerReply(statement=None),
    )


def bodies() -> tuple[entries.Body, ...]:
    """Return one entry of an audit chain of each kind."""
    return (
        entries.Identified(certificate="a certificate"),
        entries.AnsweredProposal(
            run_id=RUN_ID, proposal=HASH, terms=HASH, agreed=True, by="operator", code="", reason=""
        ),
        entries.JoinedRun(run_id=RUN_ID, config_hash=HASH),
        entries.Contributed(
            run_id=RUN_ID, round_number=7, train=True, model_hash=HASH, terms="ab", epsilon=1.5, budget=10.0,
            ledger=f"3:{HASH}", view="cd",
        ),
        entries.SignedSurvivors(run_id=RUN_ID, round_number=7, survivors=NAMES, signature="ab"),
        entries.OpenedSum(run_id=RUN_ID, round_number=7, cohort=NAMES),
        entries.PassedOver(run_id=RUN_ID, round_number=7, of=3),
        entries.ShownChange(run_id=RUN_ID, round_number=7),
        entries.Named(run_id=RUN_ID, round_number=7, hospital="st-anne", fault="length", evidence=HASH),
        entries.Proved(run_id=RUN_ID, round_number=7, evidence_hash=HASH, sum_hash=HASH),
        entries.Began(run_id=RUN_ID, description="{}", data_set="X-rays", step=0, model_hash=HASH),
        entries.Summed(
            run_id=RUN_ID, round_number=7, train=True, model_hash=HASH, terms="ab", survivors=NAMES,
            signatures={"st-mary": "ab"}, views={"st-mary": "cd"}, epsilon={"st-mary": 1.5},
        ),
        entries.Stepped(run_id=RUN_ID, round_number=7, step=5, model_hash=HASH),
        entries.Centred(run_id=RUN_ID, round_number=2, model_hash=HASH),
        entries.Told(run_id=RUN_ID, length_bytes=100, events_hash=HASH),
        entries.Refused(run_id=RUN_ID, round_number=7, hospital="st-mary", code="policy", reason="not before May"),
        entries.Finished(run_id=RUN_ID, reason="completed", steps=10, model_hash=HASH, threshold=0.5),
    )  # fmt: skip


def formats() -> dict[str, bytes]:
    """Return each example by the name of its file."""
    proposal = Proposal(description=description(), data_set="X-rays", hospitals=NAMES, until=2_000_000_000)
    delivery = Delivery(
        run_id=RUN_ID, time=2_000_000_000, model_hash=HASH, chain_head=f"9:{HASH}", hospitals=NAMES,
        files={name: FileFact(length_bytes=9, sha256=HASH) for name in NEEDED_FILES}, certificate="a certificate",
        signature="ab",
    )  # fmt: skip
    kept = KeptRun(
        run_id=RUN_ID, number=1, state=RunState.AGREED, proposed=2e9, data_set="X-rays", channels=1,
        classes=("normal", "pneumonia"), hospitals=NAMES, until=2_000_000_000, terms=HASH,
    )  # fmt: skip
    terms = RoundTerms(purpose=Purpose.TRAIN, model_hash=bytes(32), fewest_survivors=3)
    evidence = Evidence(round_number=7, terms=b"terms", cohort=NAMES, view=b"view", views=b"views", proof=b"proof")
    spoken = {"st-mary": SpokenVersions(3, "0.2.0", 3)}
    said = {"software": "0.2.0"}
    return {
        "run_description.json": description().canonical_json(),
        "proposal.json": proposal.encode(),
        "delivery.json": delivery.encode(),
        "run.json": msgspec.json.encode(kept),
        "round_terms.msgpack": terms.encode(),
        "proved_terms.msgpack": ProvedTerms(**msgspec.structs.asdict(terms), state_hash=bytes(32)).encode(),
        "basis.msgpack": Basis(evidence=evidence).encode(),
        "versions.json": msgspec.json.encode(spoken),
        **{f"request_{_tag(item)}.msgpack": messages.encode(item) for item in requests()},
        **{f"reply_{_tag(item)}.msgpack": messages.encode(item) for item in replies()},
        **{
            f"enrolment_{_tag(item)}.msgpack": enrolment.encode(msgspec.structs.replace(item, **said))
            for item in of_enrolment()
        },
        **{f"audit_{item.kind}.json": canonical_json(item.model_dump(mode="json")) for item in bodies()},
    }


def _tag(message: msgspec.Struct) -> str:
    return str(type(message).__struct_config__.tag)


def main() -> int:
    """Write the examples of this release, unless its folder is there already."""
    folder = FOLDER / confide_version()
    folder.mkdir(parents=True)
    for name, content in formats().items():
        (folder / name).write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
