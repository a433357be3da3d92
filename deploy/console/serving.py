"""Serves an operator's pages on the loopback interface until they are interrupted."""

import uvicorn

from common.settings import check_port_free
from deploy.console.gate import LINK_SECONDS, Gate
from deploy.console.pages import Pages, Side
from deploy.terminal import filled

LOOPBACK = "127.0.0.1"
"""The one address: there is no option for another. From elsewhere one comes through ssh."""

_MINUTE_SECONDS = 60


def serve_pages(side: Side, port: int) -> None:
    """Print the link, and serve.

    Raises:
        ConfigError: the port is taken.
    """
    check_port_free(LOOPBACK, port, "the console")
    gate = Gate()
    print(gate.link(port), flush=True)
    print(
        filled(
            f"opens the page in a browser of this machine, once, within {LINK_SECONDS / _MINUTE_SECONDS:.0f} minutes; "
            f"from another machine, first: ssh -L {port}:{LOOPBACK}:{port} USER@HOST. Ctrl-C ends it."
        ),
        flush=True,
    )
    uvicorn.run(
        Pages(side, gate).application(),
        host=LOOPBACK,
        port=port,
        # The path of a request is part of what lets it in, so none is logged; nothing before this is asked who called.
        access_log=False,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        lifespan="off",
        ws="none",
    )
