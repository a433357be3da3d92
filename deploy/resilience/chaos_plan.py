"""What ``confide chaos`` kills, and when: drawn once, from a seed."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np


class Role(StrEnum):
    """A process of a deployment."""

    SUPERLINK = "SuperLink"
    SERVERAPP = "ServerApp"
    SUPEREXEC = "executor"
    SERVER = "server supervisor"
    SUPERNODE = "SuperNode"
    AGENT = "agent"
    HOSPITAL = "hospital supervisor"


class Point(StrEnum):
    """A stretch of the protocol; the kill falls somewhere inside it."""

    START = "start"
    """The ServerApp has come up and has not asked anybody yet."""
    ADVERTISE_KEYS = "advertise_keys"
    SHARE_KEYS = "share_keys"
    MASKED_INPUT = "masked_input"
    FULL_UNMASKING = "full_unmasking"
    """Where somebody is missing, the exchanges that take its place."""
    STEP = "step"
    """The sum is there; the server unmasks, steps and writes its checkpoint."""


SERVER_ROLES = (Role.SUPERLINK, Role.SERVERAPP, Role.SUPEREXEC, Role.SERVER)
STARTING_POINTS = (Point.START, Point.ADVERTISE_KEYS, Point.SHARE_KEYS)
"""Stretches that a server passes only when it takes up a run."""

_WHILE_RECOVERING = 0.25
"""The share of kills of a server's process that are followed by another before the run has recovered."""


@dataclass(frozen=True)
class Kill:
    """One process to kill at one moment.

    Attributes:
        role: of the process.
        hospital: index of its hospital, None for the server's.
        point: the stretch of the protocol.
        fraction: of the stretch's usual length that passes first, in [0, 1).
        while_recovering: the kill before this one has not been recovered from yet.
    """

    role: Role
    hospital: int | None
    point: Point
    fraction: float
    while_recovering: bool = False


def plan_kills(count: int, hospitals: int, seed: int) -> tuple[Kill, ...]:
    """Draw ``count`` kills; the same seed gives the same.

    >>> plan_kills(3, 4, seed=1) == plan_kills(3, 4, seed=1)
    True
    """
    draw = np.random.default_rng(seed)
    steady = [point for point in Point if point not in STARTING_POINTS]
    kills: list[Kill] = []
    for _ in range(count):
        after_server = bool(kills) and kills[-1].hospital is None and not kills[-1].while_recovering
        recovering = after_server and draw.random() < _WHILE_RECOVERING
        points = STARTING_POINTS if recovering else steady
        role = list(Role)[draw.integers(len(Role))]
        hospital = None if role in SERVER_ROLES else int(draw.integers(hospitals))
        point = points[draw.integers(len(points))]
        kills.append(Kill(role, hospital, point, float(draw.random()), recovering))
    return tuple(kills)
