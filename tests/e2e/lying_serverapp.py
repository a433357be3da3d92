"""``python -m tests.e2e.lying_serverapp …``: the deployed ServerApp, which lies to one hospital as a file bids it.

The file ``LIE`` in the server's state names one of ``tests/support/sum_lies.py``; without it the server is honest. It
lies to :data:`VICTIM` alone, where that hospital needs the last sum and no more. What follows are the arguments of
``flwr-serverapp``.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from flwr.superlink.cli import flwr_serverapp

from common.flower.seam import replace_in
from common.run.messages import ProvedMaskRequest
from server.__main__ import STATE_VARIABLE
from server.rounds import Following, SecureAggregation
from server.transport import Outgoing
from tests.support.sum_lies import LIE, LIES, VICTIM

HONEST = SecureAggregation._mask_request


def lie_or_not(hospital: str, model: Any, following: Following | None, **asked: Any) -> Outgoing:  # noqa: ANN401
    """Return what a hospital is sent."""
    honest = HONEST(hospital, model, following, **asked)
    order = Path(os.environ[STATE_VARIABLE]) / LIE
    if hospital != VICTIM or following is None or following.total is None or not order.exists():
        return honest
    if hospital not in following.knowing or not isinstance(honest.request, ProvedMaskRequest):
        return honest
    bend, _ = LIES[order.read_text()]
    request, array = bend(honest.request, np.array(following.total[:]))
    return Outgoing(request, array)


if __name__ == "__main__":
    lying = staticmethod(lie_or_not)
    replace_in(SecureAggregation, "_mask_request", lying, used_by=SecureAggregation._collect_vectors)
    flwr_serverapp()
