"""A process that trains with real agents and then looks through its own memory for the secrets of the rounds.

``python -m tests.protocol.erased_round FOLDER [disputes]`` prints as JSON how many secrets there were and what it found
of them.
"""

import json
import os
import sys
from pathlib import Path

from common.config import replace
from common.run.messages import Request, UnmaskAllRequest, UnmaskRequest
from deploy.experiment.consortium import InProcessConsortium, Loss
from tests.support.memory_scan import SECRET_BYTES, Remembered
from tests.support.small_consortium import CONFIG, HOSPITALS, Dealt, Small, Vanishing, everybody

DROPPED = HOSPITALS[-1]

DRAWN_BY = {"advertise": "private keys", "deal": "self-mask seeds"}
"""The functions that draw secrets of the protocol; others draw seeds for rounding, and sampling in training."""


class RememberingSource:
    """Draws from the operating system and remembers the protocol's secrets."""

    def __init__(self, remembered: Remembered) -> None:
        self._remembered = remembered

    def __call__(self, count: int) -> bytes:
        fresh = os.urandom(count)
        kind = DRAWN_BY.get(sys._getframe(1).f_code.co_name)
        if kind is not None and count == SECRET_BYTES:
            self._remembered.remember(kind, fresh)
        return fresh


class Watching(Vanishing):
    """A line on which a hospital vanishes; remembers the shares that an answer leaves unrevealed."""

    def __init__(self, consortium: InProcessConsortium, remembered: Remembered) -> None:
        super().__init__(DROPPED, 1, "masked_input", Loss.OF_REPLY)
        self._agents, self._remembered = consortium.agents, remembered

    def __call__(self, hospital: str, request: Request) -> Loss | None:
        run = self._agents[hospital]._run
        if isinstance(request, UnmaskRequest | UnmaskAllRequest) and run is not None:
            dropped = DROPPED if isinstance(request, UnmaskRequest) else None
            change_key = run.masked[request.round_number].change_key
            if change_key is not None:
                self._remembered.remember("change keys", change_key)
            for owner, pair in run.masked[request.round_number].shares.items():
                unrevealed = pair.self_mask if owner == dropped else pair.masking_key
                self._remembered.remember("unrevealed shares", unrevealed)
        return super().__call__(hospital, request)


def main() -> int:
    """Train, end all agents in good order, and look."""
    folder, remembered = Path(sys.argv[1]), Remembered()
    config = replace(CONFIG, privacy={"mode": "none"})
    if sys.argv[2:] == ["disputes"]:
        config = replace(CONFIG, aggregation={"proved_sums": True, "norm_bound": 2.0, "disputes": True})
    dealt = Dealt.into(folder)
    policies = everybody(allow_no_privacy=True, allow_disputes=True)
    consortium = InProcessConsortium(config, dealt.sites(folder, **policies), RememberingSource(remembered))
    consortium.transport.line = Watching(consortium, remembered)
    made = Small(dealt, folder, config, consortium)
    made.run().train()
    for agent in consortium.agents.values():
        agent.close()
    # What is kept must be found, or finding nothing of the others would mean nothing.
    kept = os.urandom(SECRET_BYTES)
    kept_as_integer = int.from_bytes(kept, "big")
    remembered.remember("kept", kept)
    found = remembered.find()
    result = {"hospitals": made.hospitals, "secrets": remembered.counts(), "found": found}
    sys.stdout.write(json.dumps(result))
    return 0 if kept_as_integer else 1


if __name__ == "__main__":
    sys.exit(main())
