"""A server that a test leads through a round by hand, so that it can bend any message on its way to an agent."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from common.config import RunDescription
from common.config import replace as changed
from common.run.flat_model import hash_model
from common.run.messages import (
    ConsistencyRequest,
    KeysReply,
    KeysRequest,
    MaskRequest,
    RefusedReply,
    Reply,
    Request,
    SharesReply,
    SharesRequest,
    UnmaskAllRequest,
    UnmaskRequest,
)
from common.run.round_terms import Purpose, RoundTerms
from common.run.terms import describe, protocol_parameters
from common.secagg import advertise_keys, consistency_check, full_unmasking, masked_input, share_keys
from common.secagg import messages as secagg
from common.secagg.errors import SERVER, Place
from common.secagg.parameters import RunParameters
from common.secagg.phases import Phase
from server.initial_model import initial_model
from tests.support.small_consortium import CONFIG, HOSPITALS, RUN_ID, Dealt, Small, small

VICTIM = "hospital-1"
ROUND = 1
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class LyingServer:
    """Leads agents through a round by hand, so that a test can bend any message on its way."""

    consortium: Small
    description: RunDescription

    @property
    def model(self) -> Array:
        return initial_model(self.description)

    def terms(self, **changes: Any) -> RoundTerms:  # noqa: ANN401 - fields of RoundTerms
        """Return the terms of an honest round of training, with some of them changed."""
        honest = RoundTerms(purpose=Purpose.TRAIN, model_hash=hash_model(self.model), fewest_survivors=0)
        return msgspec.structs.replace(honest, **changes)

    def ask(self, hospital: str, request: Request, array: Array | None = None) -> tuple[Reply, Array | None]:
        return self.consortium.consortium.agents[hospital].answer(request, array)

    def refusal(self, request: Request, array: Array | None = None) -> RefusedReply:
        """Return how the victim refuses; fails when it does not."""
        reply, vector = self.ask(VICTIM, request, array)
        assert isinstance(reply, RefusedReply)
        assert vector is None
        return reply

    def parameters(self) -> RunParameters:
        return protocol_parameters(self.description, self.consortium.consortium.roster_keys, 3)

    def decode(self, encoded: bytes, kind: type[secagg.M], phase: Phase) -> secagg.M:
        return secagg.decode(encoded, kind, secagg.Limits(len(HOSPITALS)), Place(SERVER, ROUND, phase))

    def advertised(self, hospital: str, round_number: int = ROUND) -> secagg.AdvertisedKeys:
        request = KeysRequest(run_description=self.description.canonical_json(), round_number=round_number)
        reply, _ = self.ask(hospital, request)
        assert isinstance(reply, KeysReply)
        return self.decode(reply.advertised, secagg.AdvertisedKeys, Phase.ADVERTISE_KEYS)

    def directory(self) -> secagg.KeyDirectory:
        keys = {hospital: self.advertised(hospital) for hospital in HOSPITALS}
        return advertise_keys.collect(self.parameters(), ROUND, keys).directory

    def share_request(self, directory: secagg.KeyDirectory) -> SharesRequest:
        return SharesRequest(run_id=RUN_ID, round_number=ROUND, directory=secagg.encode(directory))

    def routed(self) -> share_keys.Routed:
        directory, shares = self.directory(), {}
        for hospital in HOSPITALS:
            reply, _ = self.ask(hospital, self.share_request(directory))
            assert isinstance(reply, SharesReply)
            shares[hospital] = self.decode(reply.shares, secagg.EncryptedShares, Phase.SHARE_KEYS)
        return share_keys.route(self.parameters(), directory, shares)

    def mask_request(self, routed: share_keys.Routed, hospital: str = VICTIM) -> MaskRequest:
        return self.mask_with(routed.request_for(hospital, self.terms().encode()))

    def mask_with(self, asked: secagg.MaskedInputRequest) -> MaskRequest:
        return MaskRequest(run_id=RUN_ID, round_number=ROUND, request=secagg.encode(asked))

    def masked(self) -> masked_input.MaskedSum:
        routed = self.routed()
        total = masked_input.MaskedSum(routed, self.terms().encode())
        for hospital in HOSPITALS:
            reply, vector = self.ask(hospital, self.mask_request(routed, hospital), self.model)
            total.add(hospital, self.decode(reply.masked, secagg.MaskedInput, Phase.MASKED_INPUT), vector)  # type: ignore[union-attr,arg-type]
        return total

    def check_request(self, survivors: secagg.SurvivorList) -> ConsistencyRequest:
        return ConsistencyRequest(run_id=RUN_ID, round_number=ROUND, survivors=secagg.encode(survivors))

    def open_request(self, total: masked_input.MaskedSum) -> UnmaskAllRequest:
        asked = full_unmasking.request_all(total)
        return UnmaskAllRequest(run_id=RUN_ID, round_number=ROUND, request=secagg.encode(asked))

    def unmask_request(self) -> UnmaskRequest:
        total = self.masked()
        return self.signed_by(HOSPITALS, total, total.close())

    def signed_by(
        self, hospitals: Iterable[str], total: masked_input.MaskedSum, survivors: secagg.SurvivorList
    ) -> UnmaskRequest:
        """Return the request for shares that these hospitals' signatures make."""
        signatures = {}
        for hospital in hospitals:
            reply, _ = self.ask(hospital, self.check_request(survivors))
            signature = reply.signature  # type: ignore[union-attr]
            signatures[hospital] = self.decode(signature, secagg.SurvivorSignature, Phase.CONSISTENCY_CHECK)
        asked = consistency_check.collect(total, signatures).request
        return UnmaskRequest(run_id=RUN_ID, round_number=ROUND, request=secagg.encode(asked))


def lying(dealt: Dealt, folder: Path, **changes: Mapping[str, Any]) -> LyingServer:
    consortium = small(dealt, folder)
    config = changed(CONFIG, **{section: dict(values) for section, values in changes.items()})
    data = dealt.data
    return LyingServer(
        consortium,
        describe(
            config,
            RUN_ID,
            data.classes,
            data.channels,
            consortium.consortium.roster,
            member_list=consortium.consortium.member_list,
        ),
    )


def assert_attack(refused: RefusedReply, code: str, phase: Phase) -> None:
    assert (refused.hospital, refused.code, refused.is_attack) == (VICTIM, code, True)
    assert refused.reason.startswith(f"round {ROUND}, {phase}, {VICTIM} refuses")
