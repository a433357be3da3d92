"""Whom to leave out after sums that honest hospitals cannot have caused.

Each such sum has a cheat in it, and masks hide who. What can be known is a set of groups, each of which holds a cheat.
The smallest set of hospitals that has one of each group is left out of the next rounds. If it is wrong, a sum is
spoilt without it, which is one more group. So one cheat costs a run at most as many rounds as it has hospitals,
whenever it cheats, and c cheats at most as many as there are sets of up to c hospitals: no garbage ends a run, as long
as enough hospitals are left for a sum.

This names nobody. A cheat that behaves while another is left out keeps that one out of the run; whoever is left out is
told so nowhere but in the server's own log, as one of a group that a cheat is in.
"""

import itertools
import random
from collections.abc import Callable

_MOST = 3
"""The most that are left out at once: the number of sets that are tried grows with it."""


class Suspects:
    """The groups whose sums were spoilt in one run; forgotten with the process.

    Args:
        shuffle: puts names in an order that no hospital can know.
    """

    def __init__(self, shuffle: Callable[[list[str]], None] | None = None) -> None:
        self._shuffle = shuffle or random.SystemRandom().shuffle
        self._spoilt: list[frozenset[str]] = []
        self._order: list[str] = []

    def spoilt(self, group: frozenset[str]) -> None:
        """Note that there is a cheat among those whose vectors are in a sum."""
        self._spoilt.append(group)
        new = sorted(group.difference(self._order))
        self._shuffle(new)
        self._order += new

    def left_out(self, hospitals: frozenset[str], enough: Callable[[int], bool]) -> frozenset[str]:
        """Return who is left out of the next round: the fewest that may be all cheats.

        Args:
            hospitals: that could take part.
            enough: says of a number of hospitals whether they make a sum.

        Returns:
            Nobody, too, where no such set leaves enough.
        """
        for number in range(1, min(_MOST, len(self._order)) + 1) if self._spoilt else ():
            if not enough(len(hospitals) - number):
                break
            for chosen in itertools.combinations(self._order, number):
                if all(group.intersection(chosen) for group in self._spoilt):
                    return frozenset(chosen)
        return frozenset()
