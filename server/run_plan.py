"""What a run is started with."""

from collections.abc import Callable
from dataclasses import dataclass, field

from common.config import Config, RunDescription
from common.secagg.masks import MaskApplier, apply_masks


@dataclass(frozen=True)
class RunPlan:
    """What a run is started with.

    Attributes:
        config: the consortium's.
        description: what hospitals agree to.
        data_set: its name, for every output.
        roster_keys: hospital to raw Ed25519 public key, already verified against the authority.
        apply_masks: takes the masks off a sum.
        absent: who of the roster cannot take part now: its certificate has expired, the server has cut it off, or it
            has not agreed to the run.
        consortium: how many members the authority's list names; None where the roster names them all.
        authority_on_server: the server holds the authority's key, which every output says.
        newest: returns the plan for the members of now: who has joined, was revoked or has a new certificate. Asked
            before each round; by default the members stay the same.
        must_stop: says whether the run is to end after the round in hand.
    """

    config: Config
    description: RunDescription
    data_set: str
    roster_keys: dict[str, bytes] = field(repr=False)
    apply_masks: MaskApplier = apply_masks
    absent: frozenset[str] = frozenset()
    consortium: int | None = None
    authority_on_server: bool = False
    newest: "Callable[[RunPlan], RunPlan]" = lambda plan: plan
    must_stop: Callable[[], bool] = lambda: False
