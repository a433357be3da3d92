"""``python -m tests.e2e.lying_serverapp …``: the deployed ServerApp, which lies to one hospital as a file bids it.

The file ``LIE`` in the server's state names a lie, of ``tests/support/sum_lies.py`` or
``tests/support/dispute_lies.py``; without it the server is honest. It lies to :data:`VICTIM` alone. What follows are
the arguments of ``flwr-serverapp``.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from flwr.superlink.cli import flwr_serverapp

from common.flower.seam import replace_in
from common.run.messages import ProvedMaskRequest, UnmaskAllRequest
from common.run.terms import layout_of
from common.secagg import messages as secagg
from common.secagg.masked_input import MaskedSum
from common.secagg.phases import Phase
from server.__main__ import STATE_VARIABLE
from server.conversation import Answer
from server.rounds import Following, RoundSum, SecureAggregation
from server.transport import Outgoing
from tests.support import dispute_lies
from tests.support.sum_lies import (
    LIE,
    LIES,
    LIMITS,
    PLACE,
    REMEMBERING,
    TO_JOINERS,
    UNSIGNED_HASH,
    VICTIM,
    WITHHELD,
    Array,
    Known,
    unsigned,
    withheld,
)

HONEST = SecureAggregation._mask_request
COLLECT = SecureAggregation._collect_vectors
ASK = SecureAggregation._ask

Sent = tuple[ProvedMaskRequest, Array, Array]

_remembered: dict[str, SecureAggregation | Sent] = {}
"""The aggregation in hand, and what the victim should have been sent in the last round."""


def bidden() -> str:
    order = Path(os.environ[STATE_VARIABLE]) / LIE
    return order.read_text() if order.exists() else ""


def remember_and_collect(aggregation: SecureAggregation, *asked: Any) -> tuple[MaskedSum, RoundSum]:  # noqa: ANN401
    _remembered["aggregation"] = aggregation
    return COLLECT(aggregation, *asked)


def known(now: Sent) -> Known | None:
    before, aggregation = _remembered.get("sent"), _remembered["aggregation"]
    assert isinstance(aggregation, SecureAggregation)
    if not isinstance(before, tuple):
        return None
    return Known(aggregation._run, layout_of(aggregation._description).proof, *now, *before)


def lie_or_not(hospital: str, model: Any, following: Following | None, **asked: Any) -> Outgoing:  # noqa: ANN401
    """Return what a hospital is sent."""
    honest = HONEST(hospital, model, following, **asked)
    request = honest.request
    if hospital != VICTIM or following is None or not isinstance(request, ProvedMaskRequest):
        return honest
    if following.total is None or following.whole is None:
        return honest
    now = request, np.array(following.total[:]), np.array(following.whole[:])
    told = lie(bidden(), now, known(now), knows=hospital in following.knowing)
    _remembered["sent"] = now
    return told or honest


def lie(name: str, now: Sent, known: Known | None, *, knows: bool) -> Outgoing | None:
    """Return what is sent in the place of an honest request, None where the hospital does not know enough for it."""
    if name in TO_JOINERS and knows:
        return Outgoing(*LIES["a sum with a unit more"][0](*now[:2]))  # So that it must join late in the next round.
    if name in TO_JOINERS and known is not None:
        return Outgoing(*TO_JOINERS[name][0](known))
    if name == "the model of the seed again, with another's hash" or (name in LIES and knows):
        return Outgoing(*LIES[name][0](*now[:2]))
    if name in REMEMBERING and knows and known is not None:
        return Outgoing(*REMEMBERING[name][0](known))
    if name == WITHHELD and knows and known is not None:
        return Outgoing(*withheld(known))
    return None


def ask_lying(
    aggregation: SecureAggregation,
    round_number: int,
    phase: Phase,
    requests: Mapping[str, Outgoing],
    *rest: Any,  # noqa: ANN401 - as the real one
    **more: Any,  # noqa: ANN401 - likewise
) -> Iterator[Answer]:
    """Ask what the server asks, but for what its victim is sent."""
    name, sent = bidden(), dict(requests)
    told = sent.get(VICTIM)
    if told is not None and name == UNSIGNED_HASH and isinstance(told.request, UnmaskAllRequest):
        shown = secagg.decode(told.request.request, secagg.FullUnmaskingRequest, LIMITS, PLACE)
        bent = secagg.encode(replace(shown, views=unsigned(shown.views)))
        sent[VICTIM] = Outgoing(msgspec.structs.replace(told.request, request=bent))
    if name in dispute_lies.LIES:
        sent = dispute_lies.bent(name, sent)
    return ASK(aggregation, round_number, phase, sent, *rest, **more)


if __name__ == "__main__":
    lying = staticmethod(lie_or_not)
    replace_in(SecureAggregation, "_mask_request", lying, used_by=SecureAggregation._collect_vectors)
    replace_in(SecureAggregation, "_collect_vectors", remember_and_collect, used_by=SecureAggregation.aggregate)
    asking = (SecureAggregation._collect_revealed, SecureAggregation._dispute, SecureAggregation._tell_verdicts)
    replace_in(SecureAggregation, "_ask", ask_lying, used_by=asking)
    dispute_lies.claim_as_bidden(bidden)
    flwr_serverapp()
