"""What a server may ask hospitals to count about a model: public, and bound into every mask of the round."""

from typing import Annotated

import msgspec

MOST_RELEASES = 4096
MOST_SCORES = 256
MOST_EDGES = 63

Edge = Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)]
"""An edge on the scale of log-odds. NaN, which MessagePack could carry, is out of range."""


class Question(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One release of the run's evaluation plan, and where its counts are cut.

    Edges only say what is counted: the norm of a record's vector is the same for any, so a hospital need not trust
    them.

    Attributes:
        release: its number in the plan.
        edges: for each score the ascending edges between its leaves.
    """

    release: Annotated[int, msgspec.Meta(ge=0, lt=MOST_RELEASES)]
    edges: Annotated[tuple[Annotated[tuple[Edge, ...], msgspec.Meta(max_length=MOST_EDGES)], ...],
                     msgspec.Meta(max_length=MOST_SCORES)]  # fmt: skip
