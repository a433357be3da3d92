"""``python -m tests.e2e.garbling_hospital --state DIR``: a hospital like any other, but its agent garbles."""

import sys

from client import __main__ as hospital
from common.flower.seam import replace_in
from common.processes import python_module


def with_garbling_agent(name: str, *arguments: str) -> tuple[str, ...]:
    return python_module("tests.e2e.garbling_agent" if name == "client.resident" else name, *arguments)


if __name__ == "__main__":
    replace_in(hospital, "python_module", with_garbling_agent, used_by=hospital._commands)
    sys.exit(hospital.main())
