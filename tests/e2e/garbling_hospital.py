"""``python -m tests.e2e.garbling_hospital --state DIR``: a hospital like any other, but its agent and relay garble."""

import sys

from client import __main__ as hospital
from common.flower.seam import replace_in
from common.processes import python_module

GARBLING = {
    "client.resident": "tests.e2e.garbling_agent",
    "client.flower.supernode": "tests.e2e.garbling_relay",
}


def with_garbling(name: str, *arguments: str) -> tuple[str, ...]:
    return python_module(GARBLING.get(name, name), *arguments)


if __name__ == "__main__":
    replace_in(hospital, "python_module", with_garbling, used_by=(hospital._commands, hospital._supernode))
    sys.exit(hospital.main())
