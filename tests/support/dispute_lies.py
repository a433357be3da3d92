"""Lies about disputes, as ``tests/e2e/lying_serverapp.py`` tells them to deployed hospitals."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec

from common.proved_sums.errors import SumNormError
from common.run.messages import VerdictRequest
from common.secagg import messages as secagg
from common.secagg.errors import SERVER, Place
from common.secagg.phases import Phase
from server import rounds
from server.transport import Outgoing
from tests.support.sum_lies import VICTIM

CLAIM = "the sum fails"
"""Of a sum that holds, so that honest hospitals show their changes."""

WITHHOLD = "no verdict"
"""For one hospital."""

FRAME = "another hospital showed another key"
"""To one hospital."""

FRAMED = "hospital-4"

LIES = (CLAIM, WITHHOLD, FRAME)

PLACE = Place(SERVER, 1, Phase.VERDICT)


def bent(name: str, requests: dict[str, Outgoing]) -> dict[str, Outgoing]:
    """Return what hospitals are sent."""
    told = requests.get(VICTIM)
    if told is None or not isinstance(told.request, VerdictRequest):
        return requests
    others = {hospital: item for hospital, item in requests.items() if hospital != VICTIM}
    if name == WITHHOLD:
        return others
    if name == FRAME:
        opened = secagg.decode(told.request.opened, secagg.OpenedChanges, secagg.Limits(4), PLACE)
        lied = tuple(
            replace(each, change_key=bytes(range(32))) if each.hospital == FRAMED else each for each in opened.opened
        )
        framing = secagg.encode(replace(opened, opened=lied))
        return {**others, VICTIM: Outgoing(msgspec.structs.replace(told.request, opened=framing))}
    return requests


def claim_as_bidden(bidden: Callable[[], str]) -> None:
    """Let the server claim that a sum fails when it is bidden to, and see to it that it asks for the changes then."""
    check, require = rounds.check_norm, rounds.require_fault

    def claiming(*arguments: Any) -> None:  # noqa: ANN401 - as the real one
        if bidden() == CLAIM:
            raise SumNormError(PLACE, "a lie")
        check(*arguments)

    def requiring(*arguments: Any) -> None:  # noqa: ANN401 - likewise
        if bidden() != CLAIM:
            require(*arguments)

    rounds.check_norm = claiming
    rounds.require_fault = requiring
