"""Who masks for whom: everybody for everybody."""

from dataclasses import dataclass

from common.secagg.messages import KeyDirectory
from common.secagg.parameters import RunParameters


@dataclass(frozen=True)
class Neighbourhoods:
    """The graph of a round: an edge for each pair that shares a mask and holds each other's shares."""

    hospitals: tuple[str, ...]
    share_threshold: int
    """How many shares of one hospital's secret rebuild it."""

    def of(self, hospital: str) -> tuple[str, ...]:
        """Return the neighbours of ``hospital``, sorted, without itself."""
        return tuple(other for other in self.hospitals if other != hospital)

    def point(self, hospital: str) -> int:
        """Return where the shares meant for ``hospital`` lie on every dealer's polynomial."""
        return self.hospitals.index(hospital) + 1


def neighbourhoods(run: RunParameters, directory: KeyDirectory) -> Neighbourhoods:  # noqa: ARG001
    """Return the graph of the round that ``directory`` opens."""
    return Neighbourhoods(tuple(keys.hospital for keys in directory.keys), directory.threshold)
