"""``python -m tests.e2e.lying_server --state DIR --once``: a server like any other, but its ServerApp lies."""

import sys

from common.flower.seam import replace_in
from common.processes import python_module
from server import __main__ as server

LYING = {"server.flower.superexec": "tests.e2e.lying_superexec"}


def with_lies(name: str, *arguments: str) -> tuple[str, ...]:
    return python_module(LYING.get(name, name), *arguments)


if __name__ == "__main__":
    replace_in(server, "python_module", with_lies, used_by=server._Server._superexec)
    sys.exit(server.main())
