"""A small consortium whose run proves its sums, and a line on which every request to one hospital is overheard."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from client.agent import HospitalAgent
from client.proved_model import ProvedModel
from common.audit.chain import AUDIT_FILE
from common.config import replace
from common.identity.certificates import certificate_pem
from common.run.messages import RefusedReply, Request
from common.run.next_model import ModelState
from deploy.audit.verify import verify
from deploy.experiment.consortium import InProcessConsortium, sound_line
from server.run import Run
from server.transport import Incoming, Outgoing
from tests.support.small_consortium import CONFIG, HOSPITALS, Dealt, Small, everybody

NAME = "hospital-1"

Array = npt.NDArray[Any]


@dataclass
class Heard:
    """A request to a hospital, and the array beside it."""

    request: Request
    array: Array | None


@dataclass
class ProvingRun(Small):
    """A consortium that proves its sums, with everything that one hospital was sent."""

    heard: list[Heard] = field(default_factory=list)

    def listen(self) -> None:
        """Keep what :data:`NAME` is sent from now on, lost or not."""
        transport = self.consortium.transport
        deliver: Callable[[int, Outgoing], Incoming | None] = transport._deliver

        def listening(node: int, item: Outgoing) -> Incoming | None:
            if transport.online().get(node) == NAME:
                array = None if item.model is None else np.array(item.model[:])
                self.heard.append(Heard(item.request, array))
            return deliver(node, item)

        transport._deliver = listening  # type: ignore[method-assign]

    def first(self, kind: type[Any], round_number: int) -> Heard:
        """Return the first request of a kind in a round."""
        return next(
            heard
            for heard in self.heard
            if isinstance(heard.request, kind) and heard.request.round_number == round_number
        )

    @property
    def agent(self) -> HospitalAgent:
        return self.consortium.agents[NAME]

    def refusal(self, request: Request, array: Array | None = None) -> RefusedReply:
        """Return how the hospital refuses; fails when it does not."""
        reply, vector = self.agent.answer(request, array)
        assert isinstance(reply, RefusedReply), reply
        assert vector is None
        return reply

    def model_at(self, hospital: str) -> ModelState:
        """Return the model that a hospital has computed itself."""
        proved = self.consortium.agents[hospital]._proved
        assert isinstance(proved, ProvedModel)
        assert proved._held is not None
        return proved._held.now


def proving(
    dealt: Dealt,
    folder: Path,
    *,
    aggregation: dict[str, Any] | None = None,
    audited: bool = False,
    **changes: dict[str, Any],
) -> ProvingRun:
    """Return a consortium whose runs prove their sums; ``changes`` are keys of sections of the configuration."""
    config = replace(CONFIG, aggregation={"proved_sums": True, **(aggregation or {})}, **changes)
    policies = everybody(allow_no_privacy=True, allow_exact_evaluation=True)
    consortium = InProcessConsortium(config, dealt.sites(folder, **policies), audited=audited)
    return ProvingRun(dealt, folder, config, consortium)


def verdict(made: ProvingRun) -> tuple[str, ...]:
    """Return what ``audit verify`` says of a run whose chains were kept."""
    authority = made.folder / "ca.pem"
    authority.write_bytes(certificate_pem(made.consortium.authority))
    return verify(made.folder, [made.folder / name / AUDIT_FILE for name in HOSPITALS], authority).lines()


def trained(made: ProvingRun) -> Run:
    """Train to the end, on a line that loses nothing any more; return the run."""
    made.consortium.transport.line = sound_line
    run = made.run()
    run.train()
    return run
