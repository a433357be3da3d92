"""Two real agents whose data differ, in one run that proves its sums: what leaves them differs in vectors alone.

They sit in the place of hospital-1, with one identity and the same random bytes. What the server sends is asked of
both, and what leaves is compared byte by byte. What a vector decides is left out: its hash, the hash of the commitment
to it, the signature over both, and the sealed commitment, of which the length is compared. From the first opened sum on
the twins have committed to different things; where a request holds what one of them signed, the other gets its own.
"""

import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from client.agent import HospitalAgent, Surroundings
from client.data.hospital_data import HospitalData, HospitalRecords, open_data
from common.audit.chain import AUDIT_FILE, AuditChain
from common.audit.parties import Writer
from common.keystream import SEED_BYTES, Keystream
from common.run.basis import Basis
from common.run.messages import (
    KeysRequest,
    ProvedMaskReply,
    ProvedMaskRequest,
    RefusedReply,
    Reply,
    Request,
    UnmaskAllRequest,
    encode,
)
from common.secagg import messages as secagg
from common.secagg.errors import SERVER, Place
from common.secagg.phases import Phase
from tests.support.proving_run import NAME, Array, ProvingRun, proving
from tests.support.small_consortium import HOSPITALS, Dealt

LIMITS = secagg.Limits(hospitals=len(HOSPITALS))
PLACE = Place(SERVER, 1, Phase.MASKED_INPUT)


def view_of(reply: ProvedMaskReply) -> secagg.MaskedInput:
    return secagg.decode(reply.masked, secagg.MaskedInput, LIMITS, PLACE)


def sealed_of(reply: ProvedMaskReply) -> secagg.SealedCommitment:
    return secagg.decode(reply.sealed, secagg.SealedCommitment, LIMITS, PLACE)


def without_vector(encoded: bytes) -> bytes:
    view = secagg.decode(encoded, secagg.MaskedInput, LIMITS, PLACE)
    blank = replace(view, vector_hash=bytes(32), commitment=bytes(32), signature=bytes(len(view.signature)))
    return secagg.encode(blank)


def comparable(reply: Reply) -> bytes:
    if not isinstance(reply, ProvedMaskReply):
        return encode(reply)
    sealed = sealed_of(reply)
    blank = secagg.encode(replace(sealed, ciphertext=bytes(len(sealed.ciphertext))))
    return encode(msgspec.structs.replace(reply, masked=without_vector(reply.masked), sealed=blank))


@dataclass
class Pair:
    """The twins, in the place of one agent."""

    made: ProvingRun
    change: Callable[[HospitalRecords], HospitalRecords]
    agents: list[HospitalAgent] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    views: list[secagg.MaskedInput] = field(default_factory=list)
    compared: list[str] = field(default_factory=list)
    vectors: int = 0
    lies: int = 0
    differing: int = 0
    """Vectors, and with them commitments, in which the twins differ."""
    seeds: bytes = b""
    """The terms of the round that began from the seed's model."""

    def __post_init__(self) -> None:
        """Begin both agents on folders of their own."""
        site, identity = self.made.consortium.site(NAME), self.made.consortium.identity(NAME)
        now = datetime.datetime.now(datetime.UTC)
        for number in range(2):
            folder = self.made.folder / f"twin-{number}"
            folder.mkdir()
            self.folders.append(folder)
            chain = AuditChain(folder / AUDIT_FILE, Writer(identity.certificate, identity.key))
            surroundings = Surroundings(
                state=folder, data=site.data, cache=site.cache, random=Keystream(bytes(SEED_BYTES)).draw,
                now=lambda: now, record=chain.append,
                open_data=self._changed if number else open_data,
            )  # fmt: skip
            self.agents.append(HospitalAgent(identity, self.made.consortium.authority, site.policy, surroundings))

    def _changed(self, *asked: Any) -> HospitalData:  # noqa: ANN401 - as open_data takes them
        data = open_data(*asked)
        return replace(data, train=self.change(data.train))

    def answer(self, request: Request, array: Array | None) -> tuple[Reply, Array | None]:
        if isinstance(request, ProvedMaskRequest) and self.views:
            # Of the true sum of round 1 the twins' models would differ; every lie about it, and a void round, is alike.
            self._lie(request, array)
            request, array = self._void(request), None
        asked = (request, self._own(request))
        (first, vector), (second, other) = (
            agent.answer(each, None if array is None else array.copy())
            for agent, each in zip(self.agents, asked, strict=True)
        )
        assert comparable(first) == comparable(second)
        assert (vector is None) == (other is None)
        if vector is not None and other is not None:
            assert (vector.shape, vector.dtype) == (other.shape, other.dtype)
            assert isinstance(first, ProvedMaskReply)
            assert isinstance(second, ProvedMaskReply)
            self.views = [view_of(first), view_of(second)]
            self.differing += self.views[0].commitment != self.views[1].commitment
            self.vectors += 1
        self.compared.append(type(request).__name__)
        return first, vector

    def _own(self, request: Request) -> Request:
        """Return a request with the second twin's own view in the place of the first's."""
        if not isinstance(request, UnmaskAllRequest):
            return request
        shown, own = secagg.decode(request.request, secagg.FullUnmaskingRequest, LIMITS, PLACE), self.views[1]
        signed = secagg.SignedView(NAME, own.vector_hash, own.commitment, own.signature)
        views = tuple(signed if view.hospital == NAME else view for view in shown.views)
        return msgspec.structs.replace(request, request=secagg.encode(replace(shown, views=views)))

    def _lie(self, request: ProvedMaskRequest, array: Array | None) -> None:
        assert array is not None
        for lie, words in (
            (msgspec.structs.replace(request, basis=b"\x90"), array),
            (msgspec.structs.replace(request, basis=Basis(evidence=None).encode()), None),
            (request, array[1:]),
            (request, None),
        ):
            replies = [agent.answer(lie, words)[0] for agent in self.agents]
            assert isinstance(replies[0], RefusedReply)
            assert encode(replies[0]) == encode(replies[1])
            self.lies += 1

    def _void(self, request: ProvedMaskRequest) -> ProvedMaskRequest:
        """Return the request for the seed's model again, with the sum of round 1 withheld."""
        inner = secagg.decode(request.request, secagg.MaskedInputRequest, LIMITS, PLACE)
        void = msgspec.structs.replace(request, basis=Basis(evidence=None).encode())
        return msgspec.structs.replace(void, request=secagg.encode(replace(inner, terms=self.seeds)))

    def lines(self, number: int) -> list[Any]:
        bodies = [json.loads(line)["body"] for line in (self.folders[number] / AUDIT_FILE).read_bytes().splitlines()]
        for body in bodies:
            if body.get("ledger"):
                body["ledger"] = body["ledger"].split(":")[0]
            if body.get("view"):
                body["view"] = without_vector(bytes.fromhex(body["view"])).hex()
        return bodies


def one_label(records: HospitalRecords) -> HospitalRecords:
    labels = records.labels.copy()
    labels[0] = 1 - labels[0]
    return replace(records, labels=labels)


def every_label(records: HospitalRecords) -> HospitalRecords:
    return replace(records, labels=1 - records.labels)


@pytest.mark.parametrize("change", [one_label, every_label])
@pytest.mark.parametrize("mode", ["none", "distributed"])
def test_twins_differ_in_vectors_and_commitments_alone(
    dealt: Dealt, tmp_path: Path, change: Callable[[HospitalRecords], HospitalRecords], mode: str
) -> None:
    made = proving(dealt, tmp_path, privacy={"mode": mode}, experiment={"rounds": 1})
    pair = Pair(made, change)

    class InItsPlace:
        """An agent to the transport."""

        def answer(self, request: Request, array: Array | None) -> tuple[Reply, Array | None]:
            if isinstance(request, ProvedMaskRequest) and not pair.seeds:
                pair.seeds = secagg.decode(request.request, secagg.MaskedInputRequest, LIMITS, PLACE).terms
            return pair.answer(request, array)

    made.consortium.agents[NAME] = InItsPlace()  # type: ignore[assignment]
    made.run().train()
    # A whole round, then lies about its sum, then one that was withheld: a second vector from the seed's model.
    assert {"KeysRequest", "SharesRequest", "ProvedMaskRequest", "UnmaskAllRequest"} <= set(pair.compared)
    assert pair.vectors >= 2
    assert pair.lies >= 4
    # One record may be in no batch; where every label differs, so do the vectors that nothing else may show.
    assert pair.differing or change is one_label
    assert pair.lines(0) == pair.lines(1)
    assert any(body["kind"] == "passed" for body in pair.lines(0))
    assert KeysRequest.__name__ in pair.compared
