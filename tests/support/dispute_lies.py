"""Lies about disputes, as ``tests/e2e/lying_serverapp.py`` tells them to deployed hospitals."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec

from common.flower.seam import replace_in
from common.proved_sums import dispute
from common.proved_sums.errors import SumNormError
from common.run import next_model
from common.run.messages import MissedVerdictRequest, VerdictRequest
from common.secagg import messages as secagg
from common.secagg.errors import SERVER, Place
from common.secagg.phases import Phase
from server import rounds
from server.transport import Outgoing
from tests.support.sum_lies import VICTIM

CLAIM = "the sum fails"
"""What is claimed of a sum that holds, so that honest hospitals show their changes."""

WITHHOLD = "no verdict"
"""For one hospital."""

FRAME = "another hospital showed another key"
"""To one hospital."""

BEND_LATE = "no verdict, and later the evidence of one with another hospital's seed"
"""To one hospital."""

FRAMED = "hospital-4"

LIES = (CLAIM, WITHHOLD, FRAME, BEND_LATE)

PLACE = Place(SERVER, 1, Phase.VERDICT)


def bent(name: str, requests: dict[str, Outgoing]) -> dict[str, Outgoing]:
    """Return what hospitals are sent."""
    told = requests.get(VICTIM)
    if told is None:
        return requests
    others = {hospital: item for hospital, item in requests.items() if hospital != VICTIM}
    if name == BEND_LATE and isinstance(told.request, MissedVerdictRequest):
        return {**others, VICTIM: Outgoing(with_other_seed(told.request), told.model)}
    if not isinstance(told.request, VerdictRequest):
        return requests
    if name in (WITHHOLD, BEND_LATE):
        return others
    if name == FRAME:
        opened = secagg.decode(told.request.opened, secagg.OpenedChanges, secagg.Limits(4), PLACE)
        lied = tuple(
            replace(each, change_key=bytes(range(32))) if each.hospital == FRAMED else each for each in opened.opened
        )
        framing = secagg.encode(replace(opened, opened=lied))
        return {**others, VICTIM: Outgoing(msgspec.structs.replace(told.request, opened=framing))}
    return requests


def with_other_seed(request: MissedVerdictRequest) -> MissedVerdictRequest:
    """Return the evidence with another b_u of one hospital, under whose mask its change would look like noise."""
    shown = secagg.decode(request.dispute, secagg.Dispute, secagg.Limits(4), PLACE)
    vectors = tuple(
        replace(each, self_mask_seed=bytes(range(32))) if each.hospital == FRAMED else each for each in shown.vectors
    )
    return msgspec.structs.replace(request, dispute=secagg.encode(replace(shown, vectors=vectors)))


def claim_as_bidden(bidden: Callable[[], str]) -> None:
    """Let the server claim that a sum fails when it is bidden to, and see to it that it asks for the changes then."""
    check, require = next_model.check_norm, dispute.require_fault

    def claiming(*arguments: Any) -> None:  # noqa: ANN401 - as the real one
        if bidden() == CLAIM:
            raise SumNormError(PLACE, "a lie")
        check(*arguments)

    def requiring(*arguments: Any) -> None:  # noqa: ANN401 - likewise
        if bidden() != CLAIM:
            require(*arguments)

    replace_in(rounds, "check_norm", claiming, used_by=rounds.SecureAggregation._prove)
    replace_in(rounds, "require_fault", requiring, used_by=rounds.SecureAggregation._dispute)
